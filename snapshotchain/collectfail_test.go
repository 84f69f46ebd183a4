package snapshotchain

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// failingStore is a store with points to expire, whose containers are on a disk that fails when it is told to.
type failingStore struct {
	t    *testing.T
	o    Options
	mem  *vfs.Mem
	left int // changes of the disk until one fails; negative never
	err  error
	s    *Store
	all  []Point
}

func newFailingStore(t *testing.T, err error) *failingStore {
	f := &failingStore{t: t, mem: vfs.NewMem(), left: -1, err: err}
	if err := f.mem.MkdirAll("/c"); err != nil {
		t.Fatal(err)
	}
	f.o = Options{
		Dir: t.TempDir(), Containers: "/c", Clock: &clock.Fixed{T: time.Unix(1_800_000_000, 0)}, ContainerBytes: 256 << 10,
		FS: &vfs.Faulty{FS: f.mem, Fail: func(op vfs.Op, _ string) error {
			if op == vfs.OpRead || op == vfs.OpOpen || f.left < 0 {
				return nil
			}
			if errs.Is(f.err, errs.NoSpace) && op != vfs.OpWrite && op != vfs.OpCreate {
				return nil // cutting and removing need no space
			}
			if f.left--; f.left > 0 {
				return nil
			}
			f.left = 0 // from now on all fail
			return f.err
		}},
	}
	f.open()
	for i := range uint64(12) {
		f.all = append(f.all, putPages(t, f.s, "web", false, 100+i, 7, 200+i))
	}
	return f
}

func (f *failingStore) open() {
	f.left = -1
	s, err := Open(f.t.Context(), f.o)
	if err != nil {
		f.t.Fatal(err)
	}
	f.s = s
}

func (f *failingStore) close() {
	f.left = -1
	if err := f.s.Close(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
}

// check proves all points that are there, and that all are there but those that may be expired.
func (f *failingStore) check(gone int) {
	f.t.Helper()
	vm, err := f.s.VM("web")
	if err != nil {
		f.t.Fatal(err)
	}
	points, err := f.s.Points(f.t.Context(), &vm)
	if err != nil || (len(points) != len(f.all) && len(points) != len(f.all)-gone) {
		f.t.Fatalf("%d points of %d: %v", len(points), len(f.all), err)
	}
	f.s.DropCaches()
	for i := range points {
		if proof := proofOf(f.t, f.s, &points[i]); len(proof.Bad) > 0 {
			f.t.Fatalf("%+v", proof)
		}
	}
	if damage, _ := f.s.Health(); len(damage) > 0 {
		f.t.Fatal(damage)
	}
}

// Whatever change of the disk fails while points are expired and collected: nothing is lost or wrong, now and when
// the store is opened again, and the same works once the disk does.
func TestEveryChangeOfTheDiskMayFailInACollection(t *testing.T) {
	for name, cause := range map[string]error{
		"full":   errs.New(errs.NoSpace, "no space left on device"),
		"broken": syscall.EIO,
	} {
		t.Run(name, func(t *testing.T) {
			for n := 1; ; n++ {
				if done := collectOnAFailingDisk(t, cause, n); done {
					t.Logf("%d changes of the disk", n-1)
					break
				}
			}
		})
	}
}

// collectOnAFailingDisk lets the n-th change fail; it reports whether there are fewer.
func collectOnAFailingDisk(t *testing.T, cause error, n int) bool {
	f := newFailingStore(t, cause)
	f.close()
	f.open() // all containers are sealed
	f.left = n
	var ids []PointID
	for _, p := range f.all[2:10] {
		ids = append(ids, p.ID)
	}
	err := f.s.Expire(t.Context(), "web", ids...)
	if err == nil {
		_, err = f.s.Collect(t.Context(), CollectOptions{})
	}
	done := f.left > 0
	if err == nil && !done {
		t.Logf("change %d failed, and nothing was said: a file stays until the next start", n)
	}
	if err != nil && !errors.Is(err, cause) && !errs.Is(err, errs.NoSpace) {
		t.Fatalf("change %d: %v", n, err)
	}
	f.left = -1
	f.check(len(ids))
	_, broken := f.s.Health()
	if broken != nil && errs.Is(cause, errs.NoSpace) {
		t.Fatalf("change %d: a full disk broke the store: %v", n, broken)
	}
	if broken != nil {
		f.close()
		f.open()
	}
	f.finish(ids)
	f.close()
	f.open()
	f.check(len(ids))
	f.close()
	return done
}

// finish expires and collects on a disk that works.
func (f *failingStore) finish(ids []PointID) {
	f.t.Helper()
	ctx := context.Background()
	if err := f.s.Expire(ctx, "web", ids...); err != nil && !errs.Is(err, errs.NotFound) {
		f.t.Fatal(err)
	}
	if _, err := f.s.Collect(ctx, CollectOptions{}); err != nil {
		f.t.Fatal(err)
	}
	again, err := f.s.Collect(ctx, CollectOptions{})
	if err != nil || again.FreedBytes > 0 {
		f.t.Fatalf("%+v: %v", again, err)
	}
	f.check(len(ids))
}
