package crash

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"livemount/server/api"
	"livemount/test/harness"
)

// powerWork does to a store what users do, and tells the story of it.
type powerWork struct {
	*story
	rng   *rand.Rand
	d     *harness.Daemon
	top   string
	vms   []*vm
	mount *toldMount

	started   int64 // the position when the daemon was started last
	collected int   // containers that are gone, or were written anew
}

// run does everything: backups, a mount that is written to and committed, points that are held, locked,
// released and expired, collections; and the daemon is stopped and killed between.
func (w *powerWork) run(t *testing.T) {
	t.Helper()
	w.vms = []*vm{newVM(t, w.top, "small", w.rng, 3<<20, 1<<20+512), newVM(t, w.top, "large", w.rng, 16<<20)}
	w.start(t)
	for _, phase := range []func(){
		func() { w.backups(t, 2); w.makeMount(t) },
		func() { w.backups(t, 2); w.writes(t, 200) },
		func() { w.guards(t); w.commit(t); w.writes(t, 50) },
		func() { w.stop(t); w.start(t); w.backups(t, 3) },
		func() { w.expire(t); w.gc(t) },
		func() { w.guards(t); w.commit(t); w.stop(t); w.start(t) },
		func() { w.backups(t, 2); w.expire(t); w.together(t) },
		func() { w.writes(t, 100); w.d.Kill(); w.start(t) },
		func() { w.backups(t, 2); w.release(t); w.together(t) },
		func() { w.stop(t); w.start(t); w.backups(t, 1); w.expire(t) },
		func() { w.gc(t); w.commit(t); w.together(t); w.stop(t); w.start(t) },
		func() { w.backups(t, 1); w.expire(t); w.writes(t, 100); w.gc(t) },
	} {
		stop := startHost(t, rand.New(rand.NewPCG(w.rng.Uint64(), 8)), filepath.Dir(w.d.Data), host(w.rng.IntN(3)))
		before := payload(t, w.d.Data)
		phase()
		stop()
		after := payload(t, w.d.Data)
		w.collected += len(slices.DeleteFunc(before, func(c string) bool { return slices.Contains(after, c) }))
	}
}

func (w *powerWork) step(t *testing.T, kind string, what func() error) *span {
	t.Helper()
	s, err := w.do(kind, what)
	if err != nil {
		t.Fatalf("%s: %v", kind, err)
	}
	return s
}

// ctl runs mountctl and decodes what it says.
func (w *powerWork) ctl(out any, args ...string) error {
	r := w.d.Ctl(append(args, "--output", "json")...)
	if r.Code != 0 {
		return fmt.Errorf("mountctl %s: exit %d: %s", strings.Join(args, " "), r.Code, r.Err)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal([]byte(r.Out), out)
}

func (w *powerWork) backups(t *testing.T, rounds int) {
	t.Helper()
	for range rounds {
		for _, v := range w.vms {
			if err := w.backup(v, w.rng); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func (w *powerWork) backup(v *vm, rng *rand.Rand) error {
	if err := v.change(rng, len(v.content[0])/harness.PageSize/3); err != nil {
		return err
	}
	want := v.now()
	made, err := w.do("backup", func() error {
		var b api.Backup
		err := w.ctl(&b, append([]string{"backup", v.name}, v.diskArgs()...)...)
		want.id = b.Point
		return err
	})
	if err == nil {
		w.addPoint(v.name, want, made)
	}
	return err
}

func (w *powerWork) makeMount(t *testing.T) {
	t.Helper()
	var err error
	if w.mount, err = w.addMounted("written", w.rng); err != nil {
		t.Fatal(err)
	}
}

func (w *powerWork) addMounted(name string, rng *rand.Rand) (*toldMount, error) {
	var a api.Mount
	m := &toldMount{path: filepath.Join(w.top, name), seed: rng.Uint64()}
	made, err := w.do("mount", func() error { return w.ctl(&a, "mount", "small@latest", m.path) })
	if err != nil {
		return nil, err
	}
	m.id, m.made = a.Mount, *made
	if m.base, err = readDisks(diskPaths(&a)); err != nil {
		return nil, err
	}
	m.disks, m.history = cloned(m.base), newHistory(m.seed, sizesOf(m.base))
	w.addMount(m)
	return m, nil
}

// visit mounts, writes, and unmounts in one way or the other.
func (w *powerWork) visit(rng *rand.Rand) error {
	m, err := w.addMounted(fmt.Sprintf("visit-%d", rng.Uint32()), rng)
	if err != nil {
		return err
	}
	if err := w.write(m, 10, rng); err != nil {
		return err
	}
	if rng.IntN(2) == 0 {
		m.kept, err = w.do("keep", func() error { return w.ctl(nil, "unmount", m.id, "--keep") })
	} else {
		m.gone, err = w.do("unmount", func() error { return w.ctl(nil, "unmount", m.id, "--yes") })
	}
	return err
}

// pinned is what mounts stand on.
func (w *powerWork) pinned() []string {
	var list []string
	for _, m := range w.d.Mounts() {
		list = append(list, m.Point)
	}
	return list
}

func (w *powerWork) writes(t *testing.T, n int) {
	t.Helper()
	if err := w.write(w.mount, n, w.rng); err != nil {
		t.Fatal(err)
	}
}

// write makes n writes to a mount, and an fsync now and then and at the end.
func (w *powerWork) write(m *toldMount, n int, rng *rand.Rand) error {
	var files []*os.File
	for i := range m.disks {
		f, err := os.OpenFile(filepath.Join(m.path, fmt.Sprintf("sd%c.raw", 'a'+i)), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		files = append(files, f)
	}
	one := &writer{files: files, h: m.history}
	for i := range n {
		o := m.history.next()
		if err := one.apply(o); err != nil {
			return err
		}
		m.done++
		copy(m.disks[o.disk][o.off:], m.history.data(o))
		if i < n-1 && rng.IntN(6) > 0 {
			continue
		}
		s, err := w.do("fsync", func() error { return unix.Fsync(int(files[o.disk].Fd())) })
		if err != nil {
			return err
		}
		m.syncs = append(m.syncs, toldSync{m.done, s.to})
	}
	return nil
}

func (w *powerWork) commit(t *testing.T) {
	t.Helper()
	now := &vm{content: w.mount.disks}
	want := now.now()
	made := w.step(t, "commit", func() error {
		var b api.Backup
		err := w.ctl(&b, "commit", w.mount.id, "--branch", "kept")
		want.id = b.Point
		return err
	})
	w.addPoint("small:kept", want, made)
}

// some returns a point that nothing keeps yet.
func (w *powerWork) some(t *testing.T) *toldPoint {
	t.Helper()
	list := w.free(w.pinned()...)
	if len(list) == 0 {
		t.Fatal("make more points: none is free")
	}
	return list[w.rng.IntN(len(list))]
}

func (p *toldPoint) ref() string { return p.vm + "@id:" + p.want.id }

// guards holds a point and locks another.
func (w *powerWork) guards(t *testing.T) {
	t.Helper()
	held := w.some(t)
	reason := fmt.Sprintf("held %d", w.rng.Uint32())
	made := w.step(t, "hold", func() error { return w.ctl(nil, "hold", held.ref(), "--reason", reason) })
	held.holds = append(held.holds, &toldHold{reason: reason, made: *made})
	locked := w.some(t)
	var p api.Point
	locked.lock = w.step(t, "lock", func() error { return w.ctl(&p, "lock", locked.ref(), "--until", "30d") })
	if p.LockedUntil == nil {
		t.Fatalf("%s was locked, and is not", locked.ref())
	}
	locked.until = *p.LockedUntil
}

// release ends the hold of a point.
func (w *powerWork) release(t *testing.T) {
	t.Helper()
	for _, p := range w.points {
		for _, h := range p.holds {
			if h.ended == nil {
				h.ended = w.step(t, "release", func() error { return w.ctl(nil, "release", p.ref(), "--reason", h.reason) })
				return
			}
		}
	}
	t.Fatal("no point is held")
}

// expire lets nearly all points go, with one command, that were made before the daemon was started last: the
// containers that it sealed then are mostly unused.
func (w *powerWork) expire(t *testing.T) {
	t.Helper()
	list := w.free(w.pinned()...)
	list = slices.DeleteFunc(list, func(p *toldPoint) bool { return p.made.to > w.started })
	w.rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	if len(list) < 2 {
		t.Fatal("make more points: none is free")
	}
	list = list[1:]
	args := []string{"expire", "--yes"}
	for _, p := range list {
		args = append(args, p.ref())
	}
	gone := w.step(t, "expire", func() error { return w.ctl(nil, args...) })
	for _, p := range list {
		p.gone = gone
	}
}

func (w *powerWork) gc(t *testing.T) {
	t.Helper()
	if err := w.collect(); err != nil {
		t.Fatal(err)
	}
}

func (w *powerWork) collect() error {
	_, err := w.do("gc", func() error { return w.ctl(nil, "gc") })
	return err
}

// together does everything that may run beside a collection.
func (w *powerWork) together(t *testing.T) {
	t.Helper()
	rng := func() *rand.Rand { return rand.New(rand.NewPCG(w.rng.Uint64(), 7)) }
	large, small, writes, visits := rng(), rng(), rng(), rng()
	var errs errorList
	var actors sync.WaitGroup
	actors.Go(func() { errs.add(w.collect()) })
	actors.Go(func() { errs.add(w.backup(w.vms[1], large)) })
	actors.Go(func() { errs.add(w.backup(w.vms[0], small)) })
	actors.Go(func() { errs.add(w.write(w.mount, 60, writes)) })
	actors.Go(func() { errs.add(w.visit(visits)) })
	actors.Wait()
	errs.report(t)
}

func (w *powerWork) start(t *testing.T) {
	t.Helper()
	w.started = w.step(t, "start", w.d.TryStart).to
}

func (w *powerWork) stop(t *testing.T) {
	t.Helper()
	w.step(t, "stop", func() error {
		w.d.Stop()
		return nil
	})
}
