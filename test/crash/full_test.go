package crash

import (
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"livemount/server/api"
	"livemount/test/harness"
)

// fullDisk is a store on a small file system of its own.
type fullDisk struct {
	fs, side string // where the store is; where sources and mounts are
	d        *harness.Daemon
	rng      *rand.Rand
}

func newFullDisk(t *testing.T, sizeMiB int64) *fullDisk {
	t.Helper()
	harness.NeedRoot(t)
	f := &fullDisk{rng: rand.New(rand.NewPCG(harness.Seed(t), 0)), fs: harness.FileSystem(t, sizeMiB), side: harness.Dir(t)}
	f.d = harness.New(t, filepath.Join(f.fs, "store"), "--log-level", "warn")
	f.d.Start()
	return f
}

func (f *fullDisk) free(t *testing.T) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(f.fs, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// fill takes what is free but for some bytes, as somebody else's file.
func (f *fullDisk) fill(t *testing.T, name string, leave int64) {
	t.Helper()
	file, err := os.Create(filepath.Join(f.fs, name))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for chunk := int64(64 << 20); chunk >= 4096; chunk /= 2 {
		for f.free(t)-leave >= chunk {
			end, err := file.Seek(0, 2)
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Fallocate(int(file.Fd()), 0, end, chunk); err != nil {
				break
			}
			if _, err := file.Seek(0, 2); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func (f *fullDisk) makeRoom(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(f.fs, name)); err != nil {
		t.Fatal(err)
	}
}

// TestIngestOfMoreThanFits: it ends with exit code 15 and leaves nothing.
func TestIngestOfMoreThanFits(t *testing.T) {
	f := newFullDisk(t, 320)
	small := newVM(t, f.side, "small", f.rng, 2<<20)
	if ok, err := small.backup(f.d); !ok {
		t.Fatal(err)
	}
	large := newVM(t, f.side, "large", f.rng, 320<<20)
	before, files := f.free(t), payload(t, f.d.Data)
	for range 2 {
		r := f.d.Ctl(append([]string{"backup", "large"}, large.diskArgs()...)...)
		if r.Code != 15 || !strings.Contains(r.Err, "Try: ") || !strings.Contains(r.Err, "room") {
			t.Fatalf("exit %d: %s", r.Code, r.Err)
		}
		t.Log(r.Err)
		if now := payload(t, f.d.Data); !slices.Equal(files, now) {
			t.Errorf("containers before %v, after %v", files, now)
		}
		if after := f.free(t); after < before-1<<20 {
			t.Errorf("%d bytes free before, %d after", before, after)
		}
		large.settle(t, f.d)
		if err := small.change(f.rng, 100); err != nil {
			t.Fatal(err)
		}
		if ok, err := small.backup(f.d); !ok {
			t.Fatal(err)
		}
		before, files = f.free(t), payload(t, f.d.Data)
	}
	for _, e := range small.points {
		checkPoint(t, f.d, "small", e)
	}
}

// TestMountFillsTheDisk: the writer gets ENOSPC, what was synced is there, and it goes on when there is room.
func TestMountFillsTheDisk(t *testing.T) {
	f := newFullDisk(t, 320)
	v := newVM(t, f.side, "vm", f.rng, 100<<20, 100<<20)
	for _, s := range v.sources { // mostly holes: the mount writes more than the store has
		if err := os.Truncate(s, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(s, 100<<20); err != nil {
			t.Fatal(err)
		}
	}
	f.d.Backup("vm", v.diskArgs()[1], v.diskArgs()[3])
	f.fill(t, "others", 120<<20)
	m := f.d.Mount("vm@latest", filepath.Join(f.side, "mnt"))
	disks, err := readDisks(diskPaths(&m))
	if err != nil {
		t.Fatal(err)
	}
	seed := f.rng.Uint64()
	w := startWriter(t, seed, "full", diskPaths(&m)...)
	w.until(t, "the disk is full", func(_ uint64, full bool) bool { return full })
	held, _, _ := w.state()
	if _, err := harness.SumFile(m.Disks[0].Path); err != nil {
		t.Errorf("reading while the disk is full: %v", err)
	}
	if s := f.d.Status(); s.ReadOnly != "" {
		t.Errorf("the store takes no changes: %s", s.ReadOnly)
	}
	f.makeRoom(t, "others")
	w.until(t, "it goes on by itself", func(synced uint64, full bool) bool { return !full && synced > held+200 })
	f.d.Kill()
	f.d.Start()
	checkPrefix(t, f.d, m.Mount, disks, seed, w)
}

// checkPrefix finds the prefix of a writer's history that the disks of a mount hold.
func checkPrefix(t *testing.T, d *harness.Daemon, id string, disks [][]byte, seed uint64, w *writerProcess) {
	t.Helper()
	m := d.MountByID(id)
	if m.State != "mounted" {
		t.Fatalf("the mount is %s: %s", m.State, m.Reason)
	}
	seen, err := readDisks(diskPaths(&m))
	if err != nil {
		t.Fatal(err)
	}
	var sizes []int64
	for _, b := range seen {
		sizes = append(sizes, int64(len(b)))
	}
	least, most := w.bounds()
	found, err := prefix(disks, seen, newHistory(seed, sizes), least, most)
	if err != nil {
		t.Fatalf("history %d (the writer ended with %q): %v", seed, w.why, err)
	}
	t.Logf("writes: %d acknowledged, %d returned, %d found", least, most-1, found)
}

// TestSomebodyElseFillsTheDisk: another program takes every byte while a backup and a writer run.
func TestSomebodyElseFillsTheDisk(t *testing.T) {
	for range harness.Soak(4, 60) {
		f := newFullDisk(t, 400)
		v := newVM(t, f.side, "vm", f.rng, 24<<20)
		other := newVM(t, f.side, "other", f.rng, 4<<20, 3<<20)
		for _, one := range []*vm{v, other} {
			if ok, err := one.backup(f.d); !ok {
				t.Fatal(err)
			}
		}
		m := f.d.Mount("other@latest", filepath.Join(f.side, "mnt"))
		disks, err := readDisks(diskPaths(&m))
		if err != nil {
			t.Fatal(err)
		}
		seed := f.rng.Uint64()
		w := startWriter(t, seed, "full", diskPaths(&m)...)
		stop := make(chan struct{})
		var errs errorList
		var client sync.WaitGroup
		client.Go(func() { errs.add(backupsUntilFull(f.d, v, f.rng, stop)) })
		w.until(t, "it writes", func(synced uint64, _ bool) bool { return synced > 100 })
		out, err := exec.Command("dd", "if=/dev/zero", "of="+filepath.Join(f.fs, "others"), "bs=1M").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "No space") {
			t.Fatalf("dd: %v: %s", err, out)
		}
		w.until(t, "the disk is full", func(_ uint64, full bool) bool { return full })
		if _, err := exec.Command("dd", "if=/dev/zero", "of="+filepath.Join(f.fs, "more"), "bs=4k").CombinedOutput(); err == nil {
			t.Fatal("there is room still")
		}
		died := !f.d.Running()
		close(stop)
		client.Wait()
		if died = died || !f.d.Running(); died {
			t.Errorf("the daemon died: %s", f.d.Log())
		} else {
			for i, want := range other.points[0].disks {
				if sum, err := readPoint(t, f, other.points[0].id, i); err == nil && sum != want.sum {
					t.Error("a point reads wrong on the full disk")
				}
			}
		}
		errs.report(t)
		f.makeRoom(t, "others")
		f.makeRoom(t, "more")
		held, _, _ := w.state()
		w.until(t, "it goes on by itself", func(synced uint64, full bool) bool { return !full && synced > held+50 })
		if f.d.Status().ReadOnly != "" { // the disk filled up between a journal record and its commit
			f.d.Kill()
			f.d.Start()
		}
		v.settleLoose(t, f.d)
		if ok, err := v.backup(f.d); !ok {
			t.Fatal(err)
		}
		f.d.Kill()
		f.d.Start()
		checkPrefix(t, f.d, m.Mount, disks, seed, w)
		v.settle(t, f.d)
		for _, e := range v.points {
			checkPoint(t, f.d, "vm", e)
		}
		checkPoint(t, f.d, "other", other.points[0])
		if s := f.d.Status(); !s.Healthy {
			t.Errorf("read-only %q, damage %q", s.ReadOnly, s.Damage)
		}
	}
}

// readPoint may fail for want of room: a mount needs some.
func readPoint(t *testing.T, f *fullDisk, id string, disk int) (string, error) {
	t.Helper()
	dir := harness.Mkdir(t, f.side, "look-"+strconv.Itoa(disk))
	r := f.d.Ctl("mount", "other@id:"+id, dir, "--read-only")
	if r.Code != 0 {
		if r.Code != 15 {
			t.Errorf("mounting on a full disk: exit %d: %s", r.Code, r.Err)
		}
		return "", errors.New(r.Err)
	}
	sum, err := harness.SumFile(filepath.Join(dir, "sd"+string(rune('a'+disk))+".raw"))
	if err != nil {
		t.Error(err)
	}
	if r := f.d.Ctl("unmount", dir, "--yes"); r.Code != 0 && r.Code != 15 {
		t.Errorf("unmounting on a full disk: exit %d: %s", r.Code, r.Err)
	}
	return sum, err
}

func backupsUntilFull(d *harness.Daemon, v *vm, rng *rand.Rand, stop <-chan struct{}) error {
	own := rand.New(rand.NewPCG(rng.Uint64(), 9))
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if err := v.change(own, 500); err != nil {
			return err
		}
		e := v.now()
		r := d.Ctl(append([]string{"backup", v.name, "--output", "json"}, v.diskArgs()...)...)
		switch r.Code {
		case 0:
			v.acknowledge(r.Out, e)
		case 15:
			if !strings.Contains(r.Out+r.Err, "takes no more changes") { // those that follow never begin
				v.flight = &e // behind the journal it may exist
			}
		default:
			return errors.New(r.Err)
		}
	}
}

// TestStartOnAFullDisk: the daemon says so, or works; with room it works.
func TestStartOnAFullDisk(t *testing.T) {
	f := newFullDisk(t, 320)
	v := newVM(t, f.side, "vm", f.rng, 4<<20)
	if ok, err := v.backup(f.d); !ok {
		t.Fatal(err)
	}
	m := f.d.Mount("vm@latest", filepath.Join(f.side, "mnt"))
	for _, kill := range []bool{true, false} {
		if kill {
			f.d.Kill()
		} else {
			f.d.Stop()
		}
		f.fill(t, "others", 0)
		var exit *harness.Exit
		if err := f.d.TryStart(); errors.As(err, &exit) {
			if exit.Code != 15 || !strings.Contains(exit.Stderr, "Try: make room") {
				t.Fatal(exit)
			}
			t.Log(exit)
		} else if err != nil {
			t.Fatal(err)
		} else {
			checkPoint(t, f.d, "vm", v.points[0])
			f.d.Stop()
		}
		f.makeRoom(t, "others")
		f.d.Start()
		checkPoint(t, f.d, "vm", v.points[0])
		if now := f.d.MountByID(m.Mount); now.State != "mounted" {
			t.Errorf("the mount is %s: %s", now.State, now.Reason)
		}
		if s := f.d.Status(); !s.Healthy {
			t.Errorf("read-only %q, damage %q", s.ReadOnly, s.Damage)
		}
		if ok, err := v.backup(f.d); !ok {
			t.Fatal(err)
		}
	}
	var l api.Points
	f.d.Must(&l, "points", "vm")
	if len(l.Points) != 3 {
		t.Errorf("%d points", len(l.Points))
	}
}
