package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"livemount/internal/errs"
	"livemount/internal/vfs"
)

func TestFailedSyncFailsTheLogForGoodAndReadsGoOn(t *testing.T) {
	var broken atomic.Bool
	o := testOptions(&vfs.Faulty{FS: vfs.NewMem(), Fail: func(op vfs.Op, name string) error {
		if op == vfs.OpSync && broken.Load() && strings.HasSuffix(name, ".seg") {
			return syscall.EIO
		}
		return nil
	}})
	nodes := []Node{{ID: 1, Size: 10000}}
	l := mustCreate(t, o, nodes)
	d := mustDevice(t, l, 1)
	p := stamp(5000, 1)
	must(t, d.WriteAt(bg(), p, 10))
	broken.Store(true)
	first := d.Sync(bg())
	if !errors.Is(first, syscall.EIO) {
		t.Fatal(first)
	}
	broken.Store(false) // the next fdatasync would say all is well, and lie
	for i, err := range []error{d.Sync(bg()), d.WriteAt(bg(), p, 0), d.Zero(bg(), 0, 1), l.Err(), l.Clean(bg())} {
		if err != first {
			t.Fatalf("operation %d: %v, want %v", i, err, first)
		}
	}
	got := make([]byte, 5000)
	must(t, d.ReadAt(bg(), got, 10))
	if !bytes.Equal(got, p) {
		t.Fatal("other bytes")
	}
	if err := l.Close(); err != first {
		t.Fatal(err)
	}
}

func TestFullDiskIsNoSpaceAndEndsWhenThereIsRoom(t *testing.T) {
	for limit := int64(13000); limit < 90000; limit += 777 {
		mem := vfs.NewMem()
		o := testOptions(mem)
		nodes := []Node{{ID: 1, Base: pattern(20000, 1), Size: 20000}}
		l := mustCreate(t, o, nodes)
		d := mustDevice(t, l, 1)
		model := modelOf(t, nodes)[0]
		mem.SetLimit(limit)
		full := false
		for i := range 60 {
			off, p := int64(i*331%15000), stamp(100+i*77, uint64(i))
			err := d.WriteAt(bg(), p, off)
			if err == nil {
				copy(model[off:], p)
				must(t, d.Sync(bg()))
				continue
			}
			wantKind(t, err, errs.NoSpace)
			full = true
			if !bytes.Equal(readAllOf(t, d), model) {
				t.Fatalf("limit %d: a refused write is seen", limit)
			}
		}
		mem.SetLimit(0)
		p := stamp(9999, 77)
		must(t, d.WriteAt(bg(), p, 3))
		copy(model[3:], p)
		must(t, l.Close())
		l, rep := mustOpen(t, o, nodes)
		if rep.Rotten || rep.CutBytes > 0 || !full {
			t.Fatalf("limit %d, full %v: %+v", limit, full, rep)
		}
		if !bytes.Equal(readAllOf(t, mustDevice(t, l, 1)), model) {
			t.Fatalf("limit %d: other bytes", limit)
		}
		must(t, l.Close())
	}
}

func TestLogOnFullDiskOpensForReadingAndWritesWhenThereIsRoom(t *testing.T) {
	mem := vfs.NewMem()
	o, nodes := testOptions(mem), []Node{{ID: 1, Size: 10000}}
	l := mustCreate(t, o, nodes)
	must(t, mustDevice(t, l, 1).WriteAt(bg(), stamp(10000, 1), 0))
	must(t, l.Close())
	mem.SetLimit(1)
	for range 2 {
		l, _ = mustOpen(t, o, nodes)
		d := mustDevice(t, l, 1)
		if !bytes.Equal(readAllOf(t, d), stamp(10000, 1)) {
			t.Fatal("other bytes")
		}
		wantKind(t, d.WriteAt(bg(), []byte{1}, 0), errs.NoSpace)
		wantKind(t, l.Clean(bg()), errs.NoSpace)
		must(t, d.Sync(bg()))
		must(t, l.Close())
	}
	l, _ = mustOpen(t, o, nodes)
	mem.SetLimit(0)
	d := mustDevice(t, l, 1)
	must(t, d.WriteAt(bg(), stamp(10000, 2), 0))
	must(t, l.Clean(bg()))
	must(t, l.Close())
	l, _ = mustOpen(t, o, nodes)
	if !bytes.Equal(readAllOf(t, mustDevice(t, l, 1)), stamp(10000, 2)) {
		t.Fatal("other bytes")
	}
	must(t, l.Close())
}

func TestFailureOfAnyOneOperationLosesNothingSynced(t *testing.T) {
	for nth := 0; ; nth++ {
		if done := failNth(t, nth); done {
			t.Logf("%d operations", nth)
			return
		}
	}
}

// failNth lets the nth file operation after Create fail, once, and compares after a reopening.
func failNth(t *testing.T, nth int) (done bool) {
	left, hit, armed := nth, "", false
	mem := vfs.NewMem()
	o := testOptions(&vfs.Faulty{FS: mem, Fail: func(op vfs.Op, name string) error {
		if left--; armed && left == -1 {
			hit = fmt.Sprint(op, " ", name)
			return syscall.EIO
		}
		return nil
	}})
	nodes := []Node{{ID: 1, Size: 30000}}
	l := mustCreate(t, o, nodes)
	left, armed = nth, true
	d := mustDevice(t, l, 1)
	model := modelOf(t, nodes)[0]
	for i := range 40 {
		off, p := int64(i*997%20000), stamp(10+i*100, uint64(i))
		if d.WriteAt(bg(), p, off) == nil {
			copy(model[off:], p)
		}
		if i%4 == 3 {
			_ = d.Sync(bg())
		}
		if i%13 == 12 {
			_ = l.Clean(bg())
		}
	}
	got := make([]byte, len(model))
	if err := d.ReadAt(bg(), got, 0); err == nil && !bytes.Equal(got, model) {
		t.Fatalf("operation %d (%s): other bytes", nth, hit)
	}
	armed = false
	failed := l.Err() != nil
	if err := l.Close(); err != nil && !failed {
		t.Fatalf("operation %d (%s): close: %v", nth, hit, err)
	}
	l, rep := mustOpen(t, o, nodes)
	if !bytes.Equal(readAllOf(t, mustDevice(t, l, 1)), model) || rep.Rotten {
		t.Fatalf("operation %d (%s): other bytes after reopening: %+v", nth, hit, rep)
	}
	must(t, l.Close())
	return hit == ""
}

func TestConcurrentSyncsShareOneFdatasync(t *testing.T) {
	const writers = 16
	var gate atomic.Pointer[chan struct{}]
	var syncs, waiting atomic.Int32
	o := testOptions(&vfs.Faulty{FS: vfs.NewMem(), Fail: func(op vfs.Op, name string) error {
		if g := gate.Load(); g != nil && op == vfs.OpSync {
			syncs.Add(1)
			<-*g
		}
		return nil
	}})
	o.SegmentBytes = 1 << 20
	l := mustCreate(t, o, []Node{{ID: 1, Size: writers * 512}})
	d := mustDevice(t, l, 1)
	open := make(chan struct{})
	gate.Store(&open)
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			if err := d.WriteAt(bg(), stamp(512, uint64(i)), int64(i)*512); err != nil {
				t.Error(err)
			}
			if waiting.Add(1) == writers {
				close(open) // the disk answers only when all have written
			}
			if err := d.Sync(bg()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := syncs.Load(); n > 3 {
		t.Fatalf("%d fdatasyncs for %d callers", n, writers)
	}
	must(t, l.Close())
}

func TestRefusedAdmissionReachesTheWriter(t *testing.T) {
	o := testOptions(vfs.NewMem())
	room := int64(9000)
	o.Admit = func(n int64) error {
		if n > room {
			return errs.New(errs.NoSpace, "quota")
		}
		room -= n
		return nil
	}
	o.PrewriteBytes = -1
	l := mustCreate(t, o, []Node{{ID: 1, Size: 10000}})
	d := mustDevice(t, l, 1)
	must(t, d.WriteAt(bg(), stamp(8000, 1), 0))
	wantKind(t, d.WriteAt(bg(), stamp(8000, 2), 0), errs.NoSpace)
	must(t, d.WriteAt(bg(), stamp(100, 3), 0))
	must(t, l.Close())
}

func TestMisuseIsClassified(t *testing.T) {
	o := testOptions(vfs.NewMem())
	nodes := []Node{{ID: 1, Size: 100}}
	must(t, o.FS.MkdirAll(testDir))
	_, _, err := Open(bg(), o, nodes)
	wantKind(t, err, errs.NotFound)
	l := mustCreate(t, o, nodes)
	_, err = Create(bg(), o, nodes)
	wantKind(t, err, errs.Exists)
	d := mustDevice(t, l, 1)
	wantKind(t, d.WriteAt(bg(), make([]byte, 2), 99), errs.Invalid)
	wantKind(t, d.ReadAt(bg(), make([]byte, 2), -1), errs.Invalid)
	wantKind(t, l.Append(bg(), nil, nil), errs.Invalid)
	_, err = l.Device(2)
	wantKind(t, err, errs.NotFound)
	must(t, l.Close())
	wantKind(t, d.WriteAt(bg(), make([]byte, 2), 0), errs.Invalid)
	wantKind(t, d.ReadAt(bg(), make([]byte, 2), 0), errs.Invalid)
	o.Mount[0]++
	_, _, err = Open(bg(), o, nodes)
	wantKind(t, err, errs.Invalid)
}
