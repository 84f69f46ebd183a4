package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"syscall"
	"time"

	"livemount/snapshotchain"
)

// childStore is the first argument of a process that does one thing with a store, so that what it takes is told apart.
const childStore = "store-child"

// profileFolder is the variable that says where children leave their CPU profiles.
const profileFolder = "BENCH_PROFILES"

// daemonMemory is the limit that livemountd gives its heap.
const daemonMemory = 400 << 20

// work is what a child did; it is written to its standard output.
type work struct {
	Steps      []step
	Collection *snapshotchain.Collection `json:",omitempty"`
	Bad        int
}

type step struct {
	Name string
	cost
}

func (w *work) step(name string) step {
	i := slices.IndexFunc(w.Steps, func(s step) bool { return s.Name == name })
	if i < 0 {
		return step{}
	}
	return w.Steps[i]
}

// onStore lets a child do something with a store.
func (b *bench) onStore(ctx context.Context, what, dir string) (*work, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := command(ctx, self, childStore, what, dir)
	if b.profiles != "" {
		p = p.env(profileFolder + "=" + b.profiles)
	}
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s of %s: %w", what, dir, err)
	}
	w := &work{}
	return w, json.Unmarshal(out, w)
}

// storeWork is what a child does: grow-SHAPE, or one of the others.
func storeWork(ctx context.Context, what, dir string) error {
	w := &work{}
	err := w.do(ctx, what, dir)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(w)
	}
	return err
}

func (w *work) do(ctx context.Context, what, dir string) (err error) {
	debug.SetMemoryLimit(daemonMemory)
	var s *snapshotchain.Store
	open := func() error {
		s, err = openStore(ctx, dir)
		return err
	}
	opened := time.Now()
	if what == "open" {
		err = w.measure("open", open)
		opened = time.Now()
	} else {
		err = open()
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close(context.WithoutCancel(ctx))) }()
	switch what {
	case "open":
		return w.settled(opened)
	case "mark":
		settle()
		return w.collect(ctx, s, true)
	case "forget":
		settle()
		if err := w.measure("expire", func() error { return expireMiddle(ctx, s) }); err != nil {
			return err
		}
		return w.collect(ctx, s, false)
	case "scrub":
		return w.measure("scrub", func() error { return w.scrub(ctx, s) })
	}
	for _, h := range shapes() {
		if what == "grow-"+h.name {
			return h.grow(ctx, s)
		}
	}
	return fmt.Errorf("nothing to do is named %q", what)
}

// settled notes what went on in the background after the store was opened.
func (w *work) settled(opened time.Time) error {
	var last time.Time
	err := w.measure("settle", func() error { last = settle(); return nil })
	w.Steps[len(w.Steps)-1].Wall = max(0, last.Sub(opened))
	return err
}

func (w *work) collect(ctx context.Context, s *snapshotchain.Store, dry bool) error {
	return w.measure("collect", func() error {
		c, err := s.Collect(ctx, snapshotchain.CollectOptions{DryRun: dry})
		w.Collection = &c
		return err
	})
}

func (w *work) scrub(ctx context.Context, s *snapshotchain.Store) error {
	done, err := s.Scrub(ctx, 0, func(ctx context.Context, _ int64) error { return ctx.Err() }, nil)
	w.Bad = done.Bad
	return err
}

// expireMiddle expires the point in the middle of the only VM.
func expireMiddle(ctx context.Context, s *snapshotchain.Store) error {
	vm := s.VMs()[0]
	points, err := s.Points(ctx, &vm)
	if err != nil {
		return err
	}
	return s.Expire(ctx, vm.Name, points[len(points)/2].ID)
}

// settle waits until what goes on in the background has ended, as the compactions that are left of before: until the
// process has done nothing for some time. It returns when it last did something.
func settle() time.Time {
	const quiet = 1500 * time.Millisecond // Badger looks for work within a second after it was opened
	last := time.Now()
	for before := used(); time.Since(last) < quiet; {
		time.Sleep(100 * time.Millisecond)
		if now := used(); now-before > 3*time.Millisecond {
			before, last = now, time.Now()
		} else {
			before = now
		}
	}
	return last
}

// measure notes what fn takes of this process: its time, and the peak of its memory, which the kernel is told to forget
// before (proc(5), clear_refs).
func (w *work) measure(name string, fn func() error) error {
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		return err
	}
	stop, err := profile(name)
	if err != nil {
		return err
	}
	before, began := used(), time.Now()
	err = fn()
	c := cost{Wall: time.Since(began), CPU: used() - before}
	stop()
	if err == nil {
		c.RSS, err = peak(os.Getpid())
	}
	w.Steps = append(w.Steps, step{name, c})
	return err
}

// used is the user and system time of this process so far, all threads.
func used() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic("getrusage: " + err.Error()) // only for bad arguments
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func profile(name string) (stop func(), err error) {
	dir := os.Getenv(profileFolder)
	if dir == "" {
		return func() {}, nil
	}
	f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%s-%d.prof", name, os.Getpid())))
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, err
	}
	return func() {
		pprof.StopCPUProfile()
		f.Close()
	}, nil
}
