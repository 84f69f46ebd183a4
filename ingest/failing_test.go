package ingest

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"livemount/blockdev"
	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/snapshotchain"
)

// failing is a store whose containers lie on a disk that fails from the n-th change of it on.
type failing struct {
	t     *testing.T
	cause error
	left  atomic.Int64 // changes until it fails; it does not while this is negative
	o     snapshotchain.Options
	s     *snapshotchain.Store
}

func newFailing(t *testing.T, cause error) *failing {
	f := &failing{t: t, cause: cause}
	mem := vfs.NewMem()
	if err := mem.MkdirAll("/c"); err != nil {
		t.Fatal(err)
	}
	f.o = snapshotchain.Options{
		Dir: t.TempDir(), Containers: "/c", Clock: &clock.Fixed{T: time.Unix(1_800_000_000, 0)}, ContainerBytes: 512 << 10,
		FS: &vfs.Faulty{FS: mem, Fail: f.ask},
	}
	f.left.Store(-1)
	f.open()
	return f
}

func (f *failing) ask(op vfs.Op, _ string) error {
	full := errs.Is(f.cause, errs.NoSpace)
	if op == vfs.OpRead || op == vfs.OpOpen || full && op != vfs.OpWrite && op != vfs.OpCreate || f.left.Load() < 0 {
		return nil
	}
	if f.left.Add(-1) > 0 {
		return nil
	}
	f.left.Store(0)
	return f.cause
}

func (f *failing) open() {
	s, err := snapshotchain.Open(f.t.Context(), f.o)
	if err != nil {
		f.t.Fatal(err)
	}
	f.s = s
}

func (f *failing) reopen() {
	if err := f.s.Close(context.Background()); err != nil {
		f.t.Fatal(err)
	}
	f.open()
}

// Whatever write, sync or creation of an ingest fails, by a full disk or a broken one: there is no point, or a whole one; the
// points before are what they were, now and when the store is opened again; and the next ingest works.
func TestEveryChangeOfTheDiskMayFailInAnIngest(t *testing.T) {
	for name, cause := range map[string]error{"full": errs.New(errs.NoSpace, "no space left on device"), "broken": syscall.EIO} {
		t.Run(name, func(t *testing.T) {
			n := int64(1)
			for !ingestOnAFailingDisk(t, cause, n) {
				n++
			}
			t.Logf("%d changes of the disk", n-1)
		})
	}
}

// ingestOnAFailingDisk reports whether an ingest has fewer than n changes.
func ingestOnAFailingDisk(t *testing.T, cause error, n int64) (done bool) {
	f := newFailing(t, cause)
	rng := rand.New(rand.NewPCG(uint64(n), 3))
	disk := blockdev.NewMem(3<<20 + 512)
	var want [][]byte
	var points []snapshotchain.Point
	change := func() {
		p := make([]byte, 1200<<10)
		fillRandom(rng, p)
		write(t, disk, p, rng.Int64N(1<<20))
		want = append(want, snapshot(t, disk))
	}
	change()
	points = append(points, backup(t, f.s, Disk{Name: "sda", Source: source{disk}}))
	change()
	f.left.Store(n)
	var c Counters
	p, err := Run(t.Context(), f.s, Request{VM: "web", Disks: []Disk{{Name: "sda", Source: source{disk}}}}, &c, func(string) {})
	done = f.left.Load() > 0
	f.left.Store(-1)
	if err == nil {
		points = append(points, p)
	} else if !errors.Is(err, cause) && !errs.Is(err, errs.NoSpace) {
		t.Fatalf("change %d: %v", n, err)
	}
	_, broken := f.s.Health()
	if broken != nil && errs.Is(cause, errs.NoSpace) {
		t.Fatalf("change %d: a full disk broke the store: %v", n, broken)
	}
	f.check(n, points, want, err != nil)
	if broken != nil {
		f.reopen()
	}
	there := f.check(n, points, want, err != nil)
	again, err := Run(t.Context(), f.s, Request{VM: "web", Disks: []Disk{{Name: "sda", Source: source{disk}}}}, &c, func(string) {})
	if err != nil {
		t.Fatalf("change %d: the next ingest: %v", n, err)
	}
	points, want = append(there, again), append(want[:len(there):len(there)], want[1])
	f.check(n, points, want, false)
	f.reopen()
	f.check(n, points, want, false)
	if damage, broken := f.s.Health(); len(damage) > 0 || broken != nil {
		t.Fatalf("change %d: %v %v", n, damage, broken)
	}
	if err := f.s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return done
}

// check compares all points; one more than acknowledged may be there.
func (f *failing) check(n int64, points []snapshotchain.Point, want [][]byte, more bool) []snapshotchain.Point {
	f.t.Helper()
	vm, err := f.s.VM("web")
	if err != nil {
		f.t.Fatalf("change %d: %v", n, err)
	}
	list, err := f.s.Points(f.t.Context(), &vm)
	if err != nil || len(list) != len(points) && !(more && len(list) == len(points)+1) {
		f.t.Fatalf("change %d: %d points, %d acknowledged: %v", n, len(list), len(points), err)
	}
	f.s.DropCaches()
	for i := range list {
		if !bytes.Equal(content(f.t, f.s, list[i], "sda"), want[i]) {
			f.t.Fatalf("change %d: point %d differs", n, i)
		}
	}
	return append([]snapshotchain.Point(nil), list...)
}
