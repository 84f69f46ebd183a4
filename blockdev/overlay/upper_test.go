package overlay

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// upper is a layer above the log that keeps all its payloads.
type upper struct{ state []byte }

func (u *upper) options(o Options) Options {
	o.Meta = func(p []byte) error { u.state = append(u.state, p...); return nil }
	o.Restore = func(p []byte) error { u.state = bytes.Clone(p); return nil }
	o.Snapshot = func() ([]byte, error) { return bytes.Clone(u.state), nil }
	return o
}

func (u *upper) append(l *Log, p []byte) error {
	return l.Append(bg(), p, func() { u.state = append(u.state, p...) })
}

func TestLayerAboveGetsItsRecordsBackInOrder(t *testing.T) {
	u := &upper{}
	o := u.options(testOptions(vfs.NewMem()))
	nodes := []Node{{ID: 1, Size: 50000}}
	l := mustCreate(t, o, nodes)
	var want []byte
	for i := range 40 {
		p := stamp(i*50, uint64(i))
		want = append(want, p...)
		must(t, u.append(l, p))
		must(t, mustDevice(t, l, 1).WriteAt(bg(), p, 0))
		if i%7 == 3 {
			must(t, l.Clean(bg()))
		}
		if i%5 == 1 {
			must(t, l.Close())
			u.state = nil
			l, _ = mustOpen(t, o, nodes)
		}
		if !bytes.Equal(u.state, want) {
			t.Fatalf("after %d records: %d bytes, want %d", i+1, len(u.state), len(want))
		}
	}
	must(t, l.Close())
	_, _, err := Open(bg(), testOptions(o.FS), nodes)
	wantKind(t, err, errs.Invalid)
}

func TestSizesAndForgottenNodesSurvive(t *testing.T) {
	o := testOptions(vfs.NewMem())
	base := pattern(10000, 5)
	nodes := []Node{{ID: 1, Base: base, Size: 10000}}
	l := mustCreate(t, o, nodes)
	must(t, l.Add(Node{ID: 7, Size: 3000}))
	must(t, mustDevice(t, l, 7).WriteAt(bg(), stamp(3000, 1), 0))
	must(t, l.SetSize(bg(), 7, 1000))
	must(t, l.SetSize(bg(), 7, 5000))
	must(t, l.SetSize(bg(), 1, 4000))
	must(t, l.SetSize(bg(), 1, 9000))
	must(t, l.Add(Node{ID: 8, Size: 100}))
	must(t, mustDevice(t, l, 8).WriteAt(bg(), stamp(100, 2), 0))
	must(t, l.Forget(bg(), 8))
	check := func() {
		t.Helper()
		want := make([]byte, 5000)
		copy(want, stamp(3000, 1)[:1000])
		if d := mustDevice(t, l, 7); !bytes.Equal(readAllOf(t, d), want) {
			t.Fatal("node 7 differs")
		}
		want = make([]byte, 9000)
		must(t, base.ReadAt(bg(), want[:4000], 0))
		if d := mustDevice(t, l, 1); !bytes.Equal(readAllOf(t, d), want) {
			t.Fatal("node 1 differs")
		}
		_, err := l.Device(8)
		wantKind(t, err, errs.NotFound)
	}
	check()
	for range 2 {
		must(t, l.Close())
		l, _ = mustOpen(t, o, nodes)
		must(t, l.Add(Node{ID: 7, Size: 1}))
		check()
		must(t, l.Clean(bg()))
		check()
	}
	must(t, l.Close())
}

// TestGrowingNodesAndSizesOfTheLayerAbove: a write behind the end, and a record of the layer above that sets a size, are
// there after a crash as a whole or not at all.
func TestGrowingNodesAndSizesOfTheLayerAbove(t *testing.T) {
	u, mem := &upper{}, vfs.NewMem()
	o := u.options(testOptions(mem))
	l := mustCreate(t, o, nil)
	must(t, l.Add(Node{ID: 7, Grows: true}))
	d := mustDevice(t, l, 7)
	must(t, d.WriteAt(bg(), stamp(1000, 1), 3000))
	if d.Size() != 4000 || l.DataBytes(7) != 1000 {
		t.Fatalf("size %d, %d bytes of data", d.Size(), l.DataBytes(7))
	}
	must(t, l.AppendSize(bg(), []byte("cut"), 7, 3500, func() { u.state = append(u.state, "cut"...) }))
	must(t, l.AppendFreeing(bg(), bytes.Repeat([]byte("long"), 1000), func() { u.state = append(u.state, bytes.Repeat([]byte("long"), 1000)...) }))
	must(t, d.WriteAt(bg(), stamp(10, 2), 5000))
	want := make([]byte, 5010)
	copy(want[3000:], stamp(1000, 1)[:500])
	copy(want[5000:], stamp(10, 2))
	state := bytes.Clone(u.state)
	for _, clean := range []bool{false, true} {
		if clean {
			must(t, l.Clean(bg()))
		}
		must(t, l.Close())
		u.state = nil
		l, _ = mustOpen(t, o, nil)
		must(t, l.Add(Node{ID: 7, Grows: true}))
		if d = mustDevice(t, l, 7); !bytes.Equal(readAllOf(t, d), want) || !bytes.Equal(u.state, state) {
			t.Fatalf("clean %v: %d bytes, state of %d", clean, d.Size(), len(u.state))
		}
	}
	must(t, l.Forget(bg(), 7))
	must(t, l.Close())
	l, _ = mustOpen(t, o, nil)
	if n := len(l.nodes); n != 0 {
		t.Errorf("%d nodes of what was forgotten", n)
	}
	must(t, l.Close())
}

// TestARottenByteInARecordOfTheLayerAboveIsHealed flips each byte of such a record in turn.
func TestARottenByteInARecordOfTheLayerAboveIsHealed(t *testing.T) {
	u, mem := &upper{}, vfs.NewMem()
	o := u.options(testOptions(mem))
	l := mustCreate(t, o, []Node{{ID: 1, Size: 50000}})
	must(t, u.append(l, []byte("first")))
	must(t, l.AppendSize(bg(), []byte("second"), 1, 40000, func() { u.state = append(u.state, "second"...) }))
	must(t, u.append(l, []byte("third")))
	must(t, l.Close())
	at, record := testForm.first(), essentials{kind: kindMirror, length: 2 * (5 + mirrorTrailer)}
	second := essentials{kind: kindMirror, length: 2 * (6 + mirrorTrailer)}
	at += testForm.bytes(record)
	for off := at; off < at+testForm.bytes(second); off++ {
		u.state = nil
		opts := o
		opts.FS = flipped(t, mem, off)
		l, _, err := Open(bg(), opts, []Node{{ID: 1, Size: 50000}})
		if err != nil {
			t.Fatalf("byte %d: %v", off-at, err)
		}
		if string(u.state) != "firstsecondthird" || mustDevice(t, l, 1).Size() != 40000 {
			t.Fatalf("byte %d: %q, size %d", off-at, u.state, mustDevice(t, l, 1).Size())
		}
		must(t, l.Close())
	}
}

// flipped is a copy of the file system with one byte of the first segment inverted.
func flipped(t *testing.T, mem *vfs.Mem, off int64) *vfs.Mem {
	t.Helper()
	clone := mem.CrashClone(rand.New(rand.NewPCG(1, 1)))
	f, err := clone.OpenRW(segmentName(testDir, 1))
	must(t, err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, off)
	must(t, err)
	b[0] ^= 0xff
	_, err = f.WriteAt(b, off)
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
	return clone
}
