package overlay

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"livemount/internal/errs"
	"livemount/internal/vfs"
)

func TestOverwritingTheSameDataCostsAboutTwice(t *testing.T) {
	o := testOptions(vfs.NewMem())
	o.NoBackground = false
	o.SegmentBytes = 128 << 10
	const size = 2 << 20
	l := mustCreate(t, o, []Node{{ID: 1, Size: size}})
	d := mustDevice(t, l, 1)
	model := make([]byte, size)
	rng := rand.New(rand.NewPCG(1, 2))
	most := int64(0)
	for i := range 8 * size / 4096 {
		off, p := rng.Int64N(size/4096)*4096, stamp(4096, uint64(i))
		must(t, d.WriteAt(bg(), p, off))
		copy(model[off:], p)
		most = max(most, l.logBytes.Load())
		for l.worthCleaning() && len(l.cleaner.wake) > 0 {
			runtime.Gosched() // the writer of this test is faster than any disk
		}
	}
	if limit := int64(5 * size / 2); most > limit {
		t.Fatalf("the log had %d bytes, more than %d", most, limit)
	}
	if !bytes.Equal(readAllOf(t, d), model) {
		t.Fatal("other bytes")
	}
	must(t, l.Close())
}

func TestDiscardingAllGivesTheSpaceBackWithoutFurtherWrites(t *testing.T) {
	for _, background := range []bool{false, true} {
		o := testOptions(vfs.NewMem())
		o.NoBackground = !background
		const size = 1 << 20
		nodes := []Node{{ID: 1, Base: pattern(1000, 1), Size: size}}
		l := mustCreate(t, o, nodes)
		d := mustDevice(t, l, 1)
		must(t, d.WriteAt(bg(), stamp(size, 1), 0))
		must(t, d.Zero(bg(), 0, size))
		if !background {
			must(t, l.Clean(bg()))
		}
		for l.Stats().LogBytes > 3*o.SegmentBytes {
			runtime.Gosched()
		}
		if s := l.Stats(); s.LiveBytes != 0 || s.Extents != 1 {
			t.Fatalf("%+v", s)
		}
		must(t, l.Close())
		l, _ = mustOpen(t, o, nodes)
		if !bytes.Equal(readAllOf(t, mustDevice(t, l, 1)), make([]byte, size)) {
			t.Fatal("not zero")
		}
		must(t, l.Close())
	}
}

func TestCleanUpThatFoundTheDiskFullGoesOnWithoutFurtherWrites(t *testing.T) {
	var full atomic.Bool
	failed := make(chan struct{})
	o := testOptions(&vfs.Faulty{FS: vfs.NewMem(), Fail: func(op vfs.Op, name string) error {
		if op != vfs.OpCreate || strings.HasSuffix(name, ".seg") || !full.Load() {
			return nil
		}
		select {
		case failed <- struct{}{}:
		case <-time.After(time.Minute):
		}
		return errs.New(errs.NoSpace, "full")
	}})
	o.NoBackground = false
	const size = 1 << 20
	l := mustCreate(t, o, []Node{{ID: 1, Size: size}})
	d := mustDevice(t, l, 1)
	must(t, d.WriteAt(bg(), stamp(size, 1), 0))
	full.Store(true)
	must(t, d.Zero(bg(), 0, size))
	for range 3 { // nothing that a write woke is left then
		<-failed
	}
	full.Store(false)
	for l.Stats().LogBytes > 3*o.SegmentBytes {
		runtime.Gosched()
	}
	must(t, l.Close())
}

func TestGuestWinsOverCleanUpAndReadersKeepTheirSegments(t *testing.T) {
	o := testOptions(vfs.NewMem())
	const size, parts = 256 << 10, 4
	l := mustCreate(t, o, []Node{{ID: 1, Size: size}})
	d := mustDevice(t, l, 1)
	model := make([]byte, size)
	var wg, cleaning sync.WaitGroup
	stop := make(chan struct{})
	cleaning.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := l.Clean(bg()); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for part := range int64(parts) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(part), 3))
			lo := part * size / parts
			mine := model[lo : lo+size/parts]
			for i := range 400 {
				n := 1 + rng.Int64N(6000)
				off := rng.Int64N(size/parts - n)
				p := stamp(int(n), uint64(i)<<8|uint64(part))
				if err := d.WriteAt(bg(), p, lo+off); err != nil {
					t.Error(err)
				}
				copy(mine[off:], p)
				got := make([]byte, size/parts)
				if err := d.ReadAt(bg(), got, lo); err != nil || !bytes.Equal(got, mine) {
					t.Errorf("part %d, write %d: other bytes: %v", part, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	cleaning.Wait()
	must(t, l.Close())
}
