package overlay

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"livemount/blockdev"
	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// view is a frozen view with what it must show.
type view struct {
	f     *Frozen
	model [][]byte
}

func (v view) check(t rapid.TB, nodes []Node) {
	for i, n := range nodes {
		r, err := v.f.Reader(n.ID)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, r.Size())
		if err := r.ReadAt(bg(), p, 0); err != nil || !bytes.Equal(p, v.model[i]) {
			t.Fatalf("node %d at %v differs: %v", n.ID, v.f.At(), err)
		}
		checkExtents(t, r, p)
	}
}

func checkExtents(t rapid.TB, r blockdev.Reader, want []byte) {
	at := int64(0)
	for e, err := range r.Extents(bg(), 0, r.Size()) {
		if err != nil || e.Off != at || e.Len <= 0 {
			t.Fatalf("extent %+v at %d: %v", e, at, err)
		}
		if at = e.End(); e.Kind != blockdev.Data && !blockdev.IsZero(want[e.Off:e.End()]) {
			t.Fatalf("extent %+v is not zero", e)
		}
	}
	if at != r.Size() {
		t.Fatalf("extents end at %d, not %d", at, r.Size())
	}
}

// changedSince checks that every byte that differs from before is told.
func (v view) changedSince(t rapid.TB, nodes []Node, since Position, before [][]byte) {
	for i, n := range nodes {
		at := int64(0)
		same := func(end int64) {
			end = min(end, int64(len(before[i])))
			if at < end && !bytes.Equal(before[i][at:end], v.model[i][at:end]) {
				t.Fatalf("node %d: a change in %d to %d between %v and %v is left out", n.ID, at, end, since, v.f.At())
			}
		}
		list, err := v.f.Changed(n.ID, since)
		if err != nil {
			t.Fatal(err)
		}
		for e := range list {
			if e.Off < at || e.Len <= 0 || e.End() > int64(len(v.model[i])) {
				t.Fatalf("range %+v behind %d", e, at)
			}
			same(e.Off)
			at = e.End()
		}
		same(int64(len(v.model[i])))
	}
}

func (m *machine) Freeze(t *rapid.T) {
	f, err := m.log.Freeze(bg())
	if err != nil {
		t.Fatal(err)
	}
	v := view{f, cloneModel(m.model)}
	v.check(t, m.nodes)
	v.changedSince(t, m.nodes, Position{}, m.fresh)
	for _, old := range m.past {
		v.changedSince(t, m.nodes, old.at, old.model)
	}
	m.views = append(m.views, v)
	m.past = append(m.past, moment{f.At(), v.model})
}

func (m *machine) Thaw(t *rapid.T) {
	if len(m.views) == 0 {
		t.Skip("none is open")
	}
	i := rapid.IntRange(0, len(m.views)-1).Draw(t, "view")
	m.views[i].check(t, m.nodes)
	if err := m.views[i].f.Close(); err != nil {
		t.Fatal(err)
	}
	m.views = slices.Delete(m.views, i, i+1)
}

func cloneModel(m [][]byte) [][]byte {
	c := make([][]byte, len(m))
	for i := range m {
		c[i] = bytes.Clone(m[i])
	}
	return c
}

func TestChangedTellsOnlyDataWrittenSince(t *testing.T) {
	o := testOptions(vfs.NewMem())
	nodes := []Node{{ID: 1, Base: pattern(50000, 1), Size: 60000}}
	l := mustCreate(t, o, nodes)
	d := mustDevice(t, l, 1)
	must(t, d.WriteAt(bg(), stamp(9000, 1), 1000))
	must(t, d.Zero(bg(), 20000, 500))
	first, err := l.Freeze(bg())
	must(t, err)
	must(t, d.WriteAt(bg(), stamp(100, 2), 3000))
	must(t, l.Close())
	must(t, first.Close())
	l, _ = mustOpen(t, o, nodes)
	d = mustDevice(t, l, 1)
	must(t, d.WriteAt(bg(), stamp(200, 3), 55000))
	second, err := l.Freeze(bg())
	must(t, err)
	list, err := second.Changed(1, first.At())
	must(t, err)
	want := []blockdev.Extent{{Off: 3000, Len: 100}, {Off: 20000, Len: 500, Kind: blockdev.Zero}, {Off: 55000, Len: 200}}
	if got := slices.Collect(list); !slices.Equal(got, want) {
		t.Fatalf("%+v", got)
	}
	must(t, second.Close())
	must(t, l.Close())
}

func TestForgottenAndAddedNodeIsToldAsChanged(t *testing.T) {
	l := mustCreate(t, testOptions(vfs.NewMem()), nil)
	must(t, l.Add(Node{ID: 5, Size: 9000}))
	must(t, mustDevice(t, l, 5).WriteAt(bg(), stamp(9000, 1), 0))
	first, err := l.Freeze(bg())
	must(t, err)
	must(t, l.Forget(bg(), 5))
	must(t, l.Add(Node{ID: 5, Size: 9000}))
	must(t, mustDevice(t, l, 5).WriteAt(bg(), stamp(10, 2), 100))
	second, err := l.Freeze(bg())
	must(t, err)
	now := view{second, [][]byte{readAllOf(t, mustDevice(t, l, 5))}}
	now.check(t, []Node{{ID: 5}})
	now.changedSince(t, []Node{{ID: 5}}, first.At(), [][]byte{stamp(9000, 1)})
	view{first, [][]byte{stamp(9000, 1)}}.check(t, []Node{{ID: 5}})
	must(t, l.Close())
}

func TestFrozenOutlivesItsFilesAndItsLog(t *testing.T) {
	o := testOptions(vfs.NewMem())
	nodes := []Node{{ID: 1, Base: pattern(1000, 1), Size: 200000}}
	l := mustCreate(t, o, nodes)
	d := mustDevice(t, l, 1)
	must(t, d.WriteAt(bg(), stamp(200000, 1), 0))
	f, err := l.Freeze(bg())
	must(t, err)
	v := view{f, [][]byte{stamp(200000, 1)}}
	must(t, l.Add(Node{ID: 2, Size: 10}))
	_, err = f.Reader(2)
	wantKind(t, err, errs.NotFound)
	_, err = f.Changed(2, Position{})
	wantKind(t, err, errs.NotFound)
	must(t, d.Zero(bg(), 0, 200000))
	must(t, l.Clean(bg()))
	if s := l.Stats(); s.Segments > 1 {
		t.Fatalf("the view keeps files: %+v", s)
	}
	v.check(t, nodes)
	must(t, l.Close())
	v.check(t, nodes)
	_, err = l.Freeze(bg())
	wantKind(t, err, errs.Invalid)
	must(t, f.Close())
	r, err := f.Reader(1)
	must(t, err)
	wantKind(t, r.ReadAt(bg(), make([]byte, 1), 0), errs.Invalid)
}

func TestFrozenBadRangeIsToldAndReadsAsCorrupt(t *testing.T) {
	o := testOptions(vfs.NewMem())
	nodes := []Node{{ID: 1, Base: pattern(20000, 1), Size: 20000}}
	l := mustCreate(t, o, nodes)
	d := mustDevice(t, l, 1)
	must(t, d.WriteAt(bg(), stamp(4096, 1), 0))
	must(t, d.WriteAt(bg(), stamp(4096, 2), 8192))
	must(t, d.WriteAt(bg(), stamp(512, 3), 16384))
	must(t, l.Close())
	file, err := o.FS.OpenRW(segmentName(testDir, 1))
	must(t, err)
	second := testForm.first() + testForm.dataBytes(4096)
	_, err = file.WriteAt(make([]byte, headerBytes+8), second) // header and table: nothing tells its place
	must(t, err)
	l, rep := mustOpen(t, o, nodes)
	if len(rep.Damage) != 1 {
		t.Fatalf("%+v", rep)
	}
	f, err := l.Freeze(bg())
	must(t, err)
	list, err := f.Changed(1, f.At())
	must(t, err)
	if got := slices.Collect(list); !slices.Equal(got, []blockdev.Extent{{Off: 8192, Len: 4096}}) {
		t.Fatalf("%+v", got)
	}
	r, err := f.Reader(1)
	must(t, err)
	wantKind(t, r.ReadAt(bg(), make([]byte, 10), 9000), errs.Corrupt)
	must(t, r.ReadAt(bg(), make([]byte, 8192), 0))
	must(t, f.Close())
	must(t, l.Close())
}

func TestViewsAmongWritersAndCleanUpShowOneMoment(t *testing.T) {
	o := testOptions(vfs.NewMem())
	const places, room = 8, 3000
	l := mustCreate(t, o, []Node{{ID: 1, Size: places * room}, {ID: 2, Size: places * room}})
	a, b := mustDevice(t, l, 1), mustDevice(t, l, 2)
	var busy, writers sync.WaitGroup
	stop := make(chan struct{})
	loop := func(f func() error) {
		busy.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := f(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	loop(func() error { return l.Clean(bg()) })
	for range 2 {
		loop(func() error { return momentOf(l, places, room) })
	}
	for k := range int64(places) {
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(k), 8))
			for i := range uint64(300 / thin) {
				p := stamp(1+rng.IntN(room-1), i)
				p[0] = byte(i)
				// The second node is never ahead of the first.
				if a.WriteAt(bg(), p, k*room) != nil || b.WriteAt(bg(), p, k*room) != nil {
					t.Error("write")
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	busy.Wait()
	must(t, l.Close())
}

// momentOf checks in a view that of each place the first node is as new as the second, or one ahead.
func momentOf(l *Log, places, room int64) error {
	f, err := l.Freeze(bg())
	if err != nil {
		return err
	}
	defer f.Close()
	var p [2][]byte
	for range 2 {
		for i := range p {
			r, err := f.Reader(uint64(i + 1))
			if err != nil {
				return err
			}
			now := make([]byte, r.Size())
			if err := r.ReadAt(bg(), now, 0); err != nil {
				return err
			}
			if p[i] != nil && !bytes.Equal(p[i], now) {
				return errs.New(errs.Other, "a view changed")
			}
			p[i] = now
		}
	}
	for k := range places {
		if d := p[0][k*room] - p[1][k*room]; d > 1 {
			return errs.New(errs.Other, "place %d: the nodes are %d writes apart", k, d)
		}
	}
	return nil
}
