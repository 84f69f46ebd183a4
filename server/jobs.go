package server

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"livemount/ingest"
	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/server/api"
	"livemount/snapshotchain"
)

const (
	keptJobs    = 1000 // finished ones that are remembered
	waitingJobs = 200  // that may wait; more are Busy
)

// jobs runs pieces of work, a bounded number at a time, and remembers them across restarts.
type jobs struct {
	dir   string
	clock clock.Clock
	log   *slog.Logger
	slots chan struct{}
	check chan struct{} // one at a time of those that only read
	// packer rests while a job runs.
	packer *packer
	wg     sync.WaitGroup

	ctx  context.Context // ends when the daemon stops
	stop context.CancelFunc

	mu   sync.Mutex // guards list
	list map[string]*job
}

// job is one piece of work. Its view is guarded by mu; counters are read at any time.
type job struct {
	mu       sync.Mutex
	view     api.Job
	counters *ingest.Counters
	cancel   context.CancelFunc
	done     chan struct{}
}

// work is what a job does; step begins a new step.
type work func(ctx context.Context, j *job, step func(string)) (*api.Backup, error)

func openJobs(dir string, slots int, c clock.Clock, log *slog.Logger) (*jobs, error) {
	js := &jobs{dir: dir, clock: c, log: log, slots: make(chan struct{}, slots), check: make(chan struct{}, 1), list: map[string]*job{}}
	js.ctx, js.stop = context.WithCancel(context.Background())
	fsys := vfs.OS{}
	if err := fsys.MkdirAll(dir); err != nil {
		return nil, err
	}
	names, err := fsys.List(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		js.load(filepath.Join(dir, name))
	}
	return js, js.trim()
}

// load reads a job of an earlier run. One that was not finished was interrupted.
func (js *jobs) load(path string) {
	if !strings.HasSuffix(path, ".json") {
		return
	}
	j := &job{done: make(chan struct{})}
	close(j.done)
	b, err := vfs.ReadFile(vfs.OS{}, path, 1<<20)
	if err == nil {
		err = json.Unmarshal(b, &j.view)
	}
	if err != nil || j.view.Job == "" {
		js.log.Warn("job file was not readable", "path", path, "err", err)
		return
	}
	if !j.view.Finished() {
		now := js.clock.Now().UTC()
		j.view.State, j.view.Ended = "interrupted", &now
		j.view.Error = &api.Error{Kind: errs.Canceled.String(), Message: "livemountd ended while the job was running; unless its point was sealed, nothing of it is left"}
		js.save(j)
	}
	js.list[j.view.Job] = j
}

// save writes the job's file. Losing it costs history only.
func (js *jobs) save(j *job) {
	b, err := json.Marshal(&j.view)
	if err == nil {
		err = vfs.WriteFile(vfs.OS{}, filepath.Join(js.dir, j.view.Job+".json"), b)
	}
	if err != nil {
		js.log.Warn("job was not recorded", "job", j.view.Job, "err", err)
	}
}

// start runs w as a new job as soon as there is a slot, and cleanup when it has ended, also before it began.
func (js *jobs) start(kind, subject string, counters *ingest.Counters, w work, cleanup func()) (*job, error) {
	ctx, cancel := context.WithCancel(js.ctx)
	j := &job{counters: counters, cancel: cancel, done: make(chan struct{})}
	j.view = api.Job{
		Job: snapshotchain.NewID[job]().String(), Kind: kind, Subject: subject, State: "waiting",
		Started: js.clock.Now().UTC(), Steps: []api.Step{},
	}
	if err := js.add(j); err != nil {
		cancel()
		return nil, err
	}
	js.wg.Go(func() {
		defer cancel()
		defer cleanup()
		js.run(ctx, j, w)
	})
	return j, nil
}

func (js *jobs) add(j *job) error {
	js.mu.Lock()
	defer js.mu.Unlock()
	if js.ctx.Err() != nil {
		return errs.New(errs.Canceled, "livemountd is stopping")
	}
	active := 0
	for _, other := range js.list {
		if !other.finished() {
			active++
		}
	}
	if active >= waitingJobs {
		return errs.WithTry(errs.New(errs.Busy, "%d jobs are waiting already", active), "mountctl jobs")
	}
	js.list[j.view.Job] = j
	return nil
}

func (j *job) finished() bool {
	select {
	case <-j.done:
		return true
	default:
		return false
	}
}

func (js *jobs) run(ctx context.Context, j *job, w work) {
	var result *api.Backup
	var err error
	slots := js.slots
	if j.view.Kind == kindVerify || j.view.Kind == kindScrub {
		slots = js.check
	}
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
		js.packer.pause()
		defer js.packer.resume()
		j.update(func(v *api.Job) { v.State = "running" })
		js.saveLocked(j)
		result, err = js.guarded(ctx, j, w)
	case <-ctx.Done():
		err = ctx.Err()
	}
	js.finish(j, result, err)
	close(j.done)
	if err := js.trim(); err != nil {
		js.log.Warn("old jobs were not removed", "err", err)
	}
}

// guarded turns a panic into an error of the job, so that our own bug in one does not end the others.
func (js *jobs) guarded(ctx context.Context, j *job, w work) (result *api.Backup, err error) {
	defer func() {
		if p := recover(); p != nil {
			js.log.Error("job panicked", "job", j.view.Job, "panic", p)
			err = errs.New(errs.Other, "internal error: %v", p)
		}
	}()
	return w(ctx, j, func(name string) { j.step(name, js.clock.Now().UTC()) })
}

func (js *jobs) saveLocked(j *job) {
	j.mu.Lock()
	defer j.mu.Unlock()
	js.save(j)
}

func (js *jobs) finish(j *job, result *api.Backup, err error) {
	now := js.clock.Now().UTC()
	j.step("", now)
	p := j.progress(now)
	j.update(func(v *api.Job) {
		v.Ended, v.Result, v.State, v.Progress = &now, result, "done", p
		if err != nil {
			e := api.FromErr(err)
			v.State, v.Error = "failed", &e
			if errs.Is(err, errs.Canceled) {
				v.State = "canceled"
			}
		}
	})
	js.saveLocked(j)
	if err != nil {
		js.log.Error("job failed", "job", j.view.Job, "kind", j.view.Kind, "subject", j.view.Subject, "err", err)
		return
	}
	js.log.Info("job done", "job", j.view.Job, "kind", j.view.Kind, "subject", j.view.Subject)
}

func (j *job) update(f func(*api.Job)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	f(&j.view)
}

// step ends the present step and begins the named one, if any.
func (j *job) step(name string, now time.Time) {
	j.update(func(v *api.Job) {
		if n := len(v.Steps); n > 0 && v.Steps[n-1].Ended == nil {
			v.Steps[n-1].Ended = &now
		}
		if name != "" {
			v.Steps = append(v.Steps, api.Step{Name: name, Started: now})
		}
	})
}

func (j *job) progress(now time.Time) *api.Progress {
	if j.counters == nil {
		return j.view.Progress
	}
	c := j.counters
	p := &api.Progress{
		TotalBytes: c.Total.Load(), LookedBytes: c.Looked.Load(), ReadBytes: c.Read.Load(),
		ChangedBytes: c.Changed.Load(), StoredBytes: c.Stored.Load(),
	}
	seconds := now.Sub(j.view.Started).Seconds()
	if seconds > 0 {
		p.BytesPerSecond = float64(p.ReadBytes) / seconds
	}
	if p.LookedBytes > 0 && p.TotalBytes >= p.LookedBytes {
		left := seconds * float64(p.TotalBytes-p.LookedBytes) / float64(p.LookedBytes)
		p.SecondsLeft = &left
	}
	return p
}

// snapshot returns the job as it is now.
func (js *jobs) snapshot(j *job) api.Job {
	now := js.clock.Now()
	j.mu.Lock()
	defer j.mu.Unlock()
	v := j.view
	v.Steps = append([]api.Step{}, v.Steps...)
	if v.Ended == nil {
		v.Progress = j.progress(now)
	}
	return v
}

// find returns the job whose id begins with prefix.
func (js *jobs) find(prefix string) (*job, error) {
	js.mu.Lock()
	defer js.mu.Unlock()
	var found *job
	for id, j := range js.list {
		if !strings.HasPrefix(id, prefix) || prefix == "" {
			continue
		}
		if found != nil {
			return nil, errs.New(errs.Invalid, "several jobs begin with %q", prefix)
		}
		found = j
	}
	if found == nil {
		return nil, errs.WithTry(errs.New(errs.NotFound, "no job begins with %q", prefix), "mountctl jobs")
	}
	return found, nil
}

// all returns the jobs, newest first.
func (js *jobs) all() []api.Job {
	js.mu.Lock()
	list := make([]*job, 0, len(js.list))
	for _, j := range js.list {
		list = append(list, j)
	}
	js.mu.Unlock()
	views := make([]api.Job, 0, len(list))
	for _, j := range list {
		views = append(views, js.snapshot(j))
	}
	sort.Slice(views, func(a, b int) bool {
		if !views[a].Started.Equal(views[b].Started) {
			return views[a].Started.After(views[b].Started)
		}
		return views[a].Job < views[b].Job
	})
	return views
}

// trim forgets the oldest finished jobs.
func (js *jobs) trim() error {
	views := js.all()
	for i := keptJobs; i < len(views); i++ {
		if !views[i].Finished() {
			continue
		}
		js.mu.Lock()
		delete(js.list, views[i].Job)
		js.mu.Unlock()
		err := vfs.OS{}.Remove(filepath.Join(js.dir, views[i].Job+".json"))
		if err != nil && !errs.Is(err, errs.NotFound) {
			return fmt.Errorf("remove job %s: %w", views[i].Job, err)
		}
	}
	return nil
}

// close cancels what runs and waits for it.
func (js *jobs) close() {
	js.stop()
	js.wg.Wait()
}
