package overlay

import (
	"bytes"
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
