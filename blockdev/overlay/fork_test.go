package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"sync"
	"sync/atomic"
	"testing"

	"livemount/internal/errs"
	"livemount/internal/vfs"
)

const forkDir = "/m/fork"

// forkOptions are those of the log that Fork made of o's in a folder.
func forkOptions(o Options, dir string, id byte) Options {
	o.Dir, o.Mount = dir, [16]byte{id, 0xf}
	return o
}

func memOf(fsys vfs.FS) *vfs.Mem {
	if f, ok := fsys.(*vfs.Faulty); ok {
		return f.FS.(*vfs.Mem)
	}
	return fsys.(*vfs.Mem)
}

func usedBytes(t *testing.T, fsys vfs.FS) int64 {
	s, err := fsys.Space("/")
	must(t, err)
	return s.TotalBytes - s.FreeBytes
}

func TestForkShowsTheSameCopiesNothingAndGoesItsOwnWay(t *testing.T) {
	u := &upper{}
	o := u.options(testOptions(vfs.NewMem()))
	nodes := []Node{{ID: 1, Base: pattern(50000, 1), Size: 300000}, {ID: 2, Size: 9000}}
	l := mustCreate(t, o, nodes)
	d := devicesOf(t, l, nodes)
	must(t, d[0].WriteAt(bg(), stamp(200000, 1), 1000))
	must(t, d[0].Zero(bg(), 5000, 70000))
	must(t, l.SetSize(bg(), 2, 5000))
	must(t, d[1].WriteAt(bg(), stamp(5000, 2), 0))
	must(t, u.append(l, []byte("names")))
	want := [][]byte{readAllOf(t, d[0]), readAllOf(t, d[1])}
	before := usedBytes(t, o.FS)
	must(t, l.Fork(bg(), forkDir, [16]byte{7, 0xf}))
	if grown := usedBytes(t, o.FS) - before; grown > 2*testForm.first()+4*blockBytes {
		t.Fatalf("the fork took %d bytes", grown)
	}
	must(t, d[0].WriteAt(bg(), stamp(300000, 3), 0))
	must(t, l.Clean(bg()))
	must(t, l.Close())
	must(t, vfs.RemoveAll(o.FS, o.Dir))

	u.state = nil
	fo := forkOptions(o, forkDir, 7)
	f, rep := mustOpen(t, fo, nodes)
	if len(rep.Notes) > 0 || rep.Rotten || string(u.state) != "names" {
		t.Fatalf("%q, %+v", u.state, rep)
	}
	fd := devicesOf(t, f, nodes)
	for i := range nodes {
		if !bytes.Equal(readAllOf(t, fd[i]), want[i]) {
			t.Fatalf("node %d: other bytes", i)
		}
	}
	if s := f.Stats(); s.LogBytes < s.LiveBytes || s.LiveBytes == 0 {
		t.Fatalf("%+v", s)
	}
	must(t, fd[0].WriteAt(bg(), stamp(300000, 4), 0))
	must(t, fd[1].WriteAt(bg(), stamp(5000, 5), 0))
	must(t, f.Clean(bg()))
	must(t, f.Clean(bg())) // the first one removed the segments after its checkpoint
	for _, s := range f.live.segments {
		if s.mount != fo.Mount {
			t.Fatalf("segment %d is still there", s.number)
		}
	}
	must(t, f.Close())
	f, _ = mustOpen(t, fo, nodes)
	if !bytes.Equal(readAllOf(t, mustDevice(t, f, 1)), stamp(300000, 4)) {
		t.Fatal("other bytes")
	}
	must(t, f.Close())
	if h := checkpointHeadOf(t, fo); h.origins != 0 {
		t.Fatalf("a log without segments of others has %d origins", h.origins)
	}
}

func checkpointHeadOf(t *testing.T, o Options) checkpointHead {
	for name, b := range takeImageOf(t, o.FS, o.Dir) {
		if n, ok := parseName(name, checkpointPrefix, ""); ok {
			h, err := decodeCheckpointHead(streamOf(t, b, checkpointID{o.Mount, n}))
			must(t, err)
			return h
		}
	}
	t.Fatal("no checkpoint")
	return checkpointHead{}
}

func TestForkOfAnEmptyLogIsAnEmptyLog(t *testing.T) {
	o := testOptions(vfs.NewMem())
	nodes := []Node{{ID: 1, Base: pattern(5000, 1), Size: 9000}}
	l := mustCreate(t, o, nodes)
	must(t, l.Fork(bg(), forkDir, [16]byte{7, 0xf}))
	f, rep := mustOpen(t, forkOptions(o, forkDir, 7), nodes)
	if len(rep.Notes) > 0 || !bytes.Equal(readAllOf(t, mustDevice(t, f, 1)), modelOf(t, nodes)[0]) {
		t.Fatalf("%+v", rep)
	}
	must(t, f.Close())
	// Without its checkpoint one must not be taken for a log that was just made.
	must(t, l.Fork(bg(), "/m/second", [16]byte{8, 0xf}))
	must(t, o.FS.Remove(checkpointName("/m/second", 1)))
	_, _, err := Open(bg(), forkOptions(o, "/m/second", 8), nodes)
	wantKind(t, err, errs.Corrupt)
	must(t, l.Close())
}

func TestMisuseOfForkIsClassifiedAndHarmless(t *testing.T) {
	broken := error(nil)
	o := testOptions(&vfs.Faulty{FS: vfs.NewMem(), Fail: func(op vfs.Op, name string) error {
		if op == vfs.OpLink {
			return broken
		}
		return nil
	}})
	nodes := []Node{{ID: 1, Size: 90000}}
	l := mustCreate(t, o, nodes)
	d := mustDevice(t, l, 1)
	must(t, d.WriteAt(bg(), stamp(90000, 1), 0))
	wantKind(t, l.Fork(bg(), forkDir, o.Mount), errs.Invalid)
	wantKind(t, l.Fork(bg(), o.Dir, [16]byte{7}), errs.Exists)
	broken = errs.New(errs.Invalid, "another file system")
	wantKind(t, l.Fork(bg(), forkDir, [16]byte{7, 0xf}), errs.Invalid)
	_, _, err := Open(bg(), forkOptions(o, forkDir, 7), nodes)
	wantKind(t, err, errs.NotFound)
	broken = nil
	must(t, l.Fork(bg(), forkDir, [16]byte{7, 0xf}))
	wantKind(t, l.Fork(bg(), forkDir, [16]byte{8, 0xf}), errs.Exists)
	f, _ := mustOpen(t, forkOptions(o, forkDir, 7), nodes)
	wantKind(t, f.Fork(bg(), "/m/second", o.Mount), errs.Invalid)
	must(t, f.Close())
	must(t, l.Close())
	wantKind(t, l.Fork(bg(), "/m/second", [16]byte{8, 0xf}), errs.Invalid)
}

// flipFork is flipLog for a fork of a fork: what it shows is in segments of three mounts.
func flipFork(t testing.TB) (image, [][]byte, []byte) {
	u := &upper{}
	o := u.options(testOptions(vfs.NewMem()))
	o.SegmentBytes = segmentBytesMin
	own := o
	o = forkOptions(o, "/m/first", 1)
	nodes := flipNodes()
	l := mustCreate(t, o, nodes)
	d := devicesOf(t, l, nodes)
	must(t, d[0].WriteAt(bg(), stamp(4096, 1), 8192))
	must(t, u.append(l, []byte("first")))
	must(t, d[1].WriteAt(bg(), stamp(300, 2), 100))
	must(t, l.Fork(bg(), "/m/second", [16]byte{2, 0xf}))
	must(t, l.Close())
	u.state = nil
	l, _ = mustOpen(t, forkOptions(o, "/m/second", 2), nodes)
	d = devicesOf(t, l, nodes)
	must(t, d[0].Zero(bg(), 0, 700))
	must(t, d[1].WriteAt(bg(), stamp(512, 3), 4000))
	must(t, l.Fork(bg(), own.Dir, own.Mount))
	must(t, l.Close())
	u.state = nil
	l, _ = mustOpen(t, own, nodes)
	d = devicesOf(t, l, nodes)
	must(t, d[0].WriteAt(bg(), stamp(3000, 5), 9100))
	must(t, u.append(l, []byte("second")))
	must(t, l.Sync(bg()))
	want := [][]byte{readAllOf(t, d[0]), readAllOf(t, d[1])}
	must(t, l.Close())
	return takeImage(t, o.FS), want, u.state
}

func TestFlippedByteInAForkNeverGivesOtherData(t *testing.T) {
	m, want, state := flipFork(t)
	flipEach(t, m, want, state)
}

func TestMissingOrShortFileOfAForkNeverGivesOtherData(t *testing.T) {
	m, want, state := flipFork(t)
	shortenEach(t, m, want, state)
}

func TestForkWithABlockBadInBothCopiesIsCorrupt(t *testing.T) {
	m, _, _ := flipFork(t)
	const name = "checkpoint-0000000000000001"
	for off := 0; off < len(m[name])/2; off += blockBytes {
		for _, lost := range []string{"", "mark", segmentName("", 1)} {
			img := image{}
			for n, b := range m {
				img[n] = bytes.Clone(b)
			}
			img[name][off+100] ^= 1
			img[name][len(m[name])/2+off+200] ^= 1
			delete(img, lost)
			for _, accept := range []bool{false, true} {
				o := (&upper{}).options(testOptions(img.mount(t)))
				o.AcceptDamage = accept
				_, rep, err := Open(bg(), o, flipNodes())
				if !errs.Is(err, errs.Corrupt) {
					t.Fatalf("block at %d, without %q, accept %v: %v, %+v", off, lost, accept, err, rep)
				}
			}
		}
	}
}

// otherLog is a folder of a log of another mount with the same history as flipFork's first.
func otherLog(t *testing.T) image {
	o := testOptions(vfs.NewMem())
	o.SegmentBytes, o.Mount = segmentBytesMin, [16]byte{66}
	nodes := flipNodes()
	l := mustCreate(t, o, nodes)
	for i := range uint64(12) {
		must(t, mustDevice(t, l, 1).WriteAt(bg(), stamp(4096, i), 8192))
	}
	must(t, l.Close())
	return takeImage(t, o.FS)
}

func TestSegmentOfAMountThatTheTableDoesNotNameIsRefused(t *testing.T) {
	m, want, state := flipFork(t)
	other := otherLog(t)
	for number := uint64(1); number < 9; number++ {
		img := image{}
		for n, b := range m {
			img[n] = b
		}
		name := segmentName("", number)
		img[name] = other[segmentName("", 1)]
		if b := other[name]; b != nil {
			img[name] = b
		}
		o := (&upper{}).options(testOptions(img.mount(t)))
		_, _, err := Open(bg(), o, flipNodes())
		if !errs.Is(err, errs.Invalid) && !errs.Is(err, errs.Corrupt) {
			t.Fatalf("segment %d of another mount: %v", number, err)
		}
		// The same with a header that lies: the records must not pass.
		if was := m[name]; was != nil && other[name] != nil {
			img[name] = append(bytes.Clone(was[:testForm.first()]), other[name][testForm.first():]...)
			bad, refused, err := flipCase(t, img, want, state, false)
			if err != nil || bad == 0 && !refused {
				t.Fatalf("records of another mount in segment %d: %d bad, %v", number, bad, err)
			}
		}
	}
}

// After Fork the origin knows for good that all in the shared segments was synced: rot at their end must
// not be taken for a torn tail and cut off, because the fork may have use for the rest.
func TestOriginNeverCutsASharedSegment(t *testing.T) {
	for seed := range uint64(60 / thin) {
		second := testForm.first() + testForm.dataBytes(5000)
		originWithRot(t, seed, blockBytes, testForm.first()+2000)
		originWithRot(t, seed, 0, second+40)
		originWithRot(t, seed, 0, testForm.first()+40, second+40) // nothing tells what the first one was
	}
}

func originWithRot(t *testing.T, seed uint64, badMost int, at ...int64) {
	o, nodes := testOptions(vfs.NewMem()), []Node{{ID: 1, Size: 9000}}
	l := mustCreate(t, o, nodes)
	must(t, o.FS.SyncDir("/m"))
	d := mustDevice(t, l, 1)
	want := stamp(9000, 1)
	must(t, d.WriteAt(bg(), want[:5000], 0))
	must(t, d.WriteAt(bg(), want[5000:], 5000))
	must(t, l.Fork(bg(), forkDir, [16]byte{7, 0xf}))
	o.FS = crashed(o.FS, seed)
	l.closeFiles()
	f, err := o.FS.OpenRW(segmentName(testDir, 1))
	must(t, err)
	before, err := f.Size()
	must(t, err)
	for _, off := range at {
		_, err = f.WriteAt([]byte{1, 2, 3, 4}, off)
		must(t, err)
	}
	o.AcceptDamage = true
	l, _, err = Open(bg(), o, nodes)
	must(t, err)
	must(t, mustDevice(t, l, 1).WriteAt(bg(), stamp(100, 2), 50))
	must(t, l.Clean(bg()))
	must(t, l.Close())
	f, err = o.FS.Open(segmentName(forkDir, 1))
	must(t, err)
	if now, err := f.Size(); err != nil || now < testForm.first()+testForm.dataBytes(5000)+testForm.dataBytes(4000) || now > before {
		t.Fatalf("seed %d: the shared segment had %d bytes, now %d", seed, before, now)
	}
	l, _ = mustOpen(t, forkOptions(o, forkDir, 7), nodes)
	if n, err := badBytes(mustDevice(t, l, 1), want); err != nil || n > badMost {
		t.Fatalf("seed %d: %d bytes bad, %v", seed, n, err)
	}
	must(t, l.Close())
}

func TestFailureOfAnyOneOperationOfForkIsHarmless(t *testing.T) {
	for nth := 0; ; nth++ {
		left, armed, hit := nth, false, ""
		o := testOptions(&vfs.Faulty{FS: vfs.NewMem(), Fail: func(op vfs.Op, name string) error {
			if left--; armed && left == -1 {
				hit = fmt.Sprint(op, " ", name)
				return errs.New(errs.NoSpace, "full")
			}
			return nil
		}})
		nodes := []Node{{ID: 1, Base: pattern(500, 1), Size: 90000}}
		l := mustCreate(t, o, nodes)
		must(t, mustDevice(t, l, 1).WriteAt(bg(), stamp(80000, 1), 0))
		want := readAllOf(t, mustDevice(t, l, 1))
		left, armed = nth, true
		err := l.Fork(bg(), forkDir, [16]byte{7, 0xf})
		armed = false
		if hit == "" {
			must(t, err)
			t.Logf("%d operations", nth)
			return
		}
		if err != nil {
			_, _, err := Open(bg(), forkOptions(o, forkDir, 7), nodes)
			wantKind(t, err, errs.NotFound)
		}
		if err != nil && l.Err() == nil {
			must(t, l.Fork(bg(), forkDir, [16]byte{7, 0xf}))
		}
		if err := l.Close(); err != nil && path.Ext(hit) != ".seg" && path.Base(hit) != "log" {
			t.Fatalf("operation %d (%s): %v", nth, hit, err)
		}
		l, rep := mustOpen(t, o, nodes)
		if rep.Rotten || !bytes.Equal(readAllOf(t, mustDevice(t, l, 1)), want) {
			t.Fatalf("operation %d (%s): %+v", nth, hit, rep)
		}
		must(t, l.Close())
	}
}

func isUnfinished(err error) bool {
	return errs.Is(err, errs.NotFound) || errs.Is(err, errs.Corrupt) && !errors.Is(err, errPower)
}

func TestForksAmongWritersAndCleanUpShowOneMoment(t *testing.T) {
	o := testOptions(vfs.NewMem())
	o.NoBackground = false
	const places, room, writes = 4, 3000, 200
	nodes := []Node{{ID: 1, Size: places * room}, {ID: 2, Size: places * room}}
	l := mustCreate(t, o, nodes)
	a, b := mustDevice(t, l, 1), mustDevice(t, l, 2)
	var writers sync.WaitGroup
	var written [places]atomic.Int64
	for k := range int64(places) {
		writers.Go(func() {
			for i := range int64(writes) {
				p := stamp(room, uint64(i))
				p[0] = byte(i + 1)
				// The second node is never ahead of the first.
				if a.WriteAt(bg(), p, k*room) != nil || b.WriteAt(bg(), p, k*room) != nil {
					t.Error("write")
				}
				written[k].Store(i + 1)
			}
		})
	}
	for n := range byte(12) {
		var before [places]int64
		for k := range before {
			before[k] = written[k].Load()
		}
		dir := fmt.Sprint("/m/fork", n)
		must(t, l.Fork(bg(), dir, [16]byte{n, 0xf}))
		f, _ := mustOpen(t, forkOptions(o, dir, n), nodes)
		for k, least := range before {
			first, second := byteAt(t, f, 1, k*room), byteAt(t, f, 2, k*room)
			if d := first - second; d > 1 || int64(second) < least {
				t.Errorf("place %d: %d and %d, but %d were written before", k, first, second, least)
			}
		}
		must(t, momentOf(f, places, room))
		must(t, f.Close())
	}
	writers.Wait()
	must(t, l.Close())
}

func byteAt(t *testing.T, l *Log, node uint64, off int) byte {
	p := make([]byte, 1)
	must(t, mustDevice(t, l, node).ReadAt(bg(), p, int64(off)))
	return p[0]
}
