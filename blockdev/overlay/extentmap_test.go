package overlay

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// byteModel is what each unit of a small disk shows; the zero extent is the base.
type byteModel []extent

func (m byteModel) put(e extent) {
	for i := e.off; i < e.end(); i++ {
		m[i] = e.cut(i, i+1)
	}
}

func (m byteModel) check(t *testing.T, n *node, seed uint64) {
	t.Helper()
	shown, last, count := make(byteModel, len(m)), extent{seg: 7}, 0
	n.extents.from(0, func(e extent) bool {
		if e.off < last.end() || e.len <= 0 || e.off == last.end() && e.joins(last) {
			t.Fatalf("seed %d: %+v behind %+v", seed, e, last)
		}
		last = e
		count++
		shown.put(e)
		return true
	})
	if !slices.Equal(shown, m) || count != n.extents.Len() {
		t.Fatalf("seed %d: %d extents, %d counted; other places", seed, count, n.extents.Len())
	}
	packed, leaves := int64(0), 0
	n.extents.leaves.Scan(func(key int64, leaf string) bool {
		u := plain.unpack(leaf)
		first, ok := u.next()
		if !ok || first.off != key {
			t.Fatalf("seed %d: leaf %d begins at %d", seed, key, first.off)
		}
		packed += int64(len(leaf))
		leaves++
		return true
	})
	if packed != n.extents.bytes || leaves > 2+count/(leafMost/8) {
		t.Fatalf("seed %d: %d bytes, counted %d; %d leaves for %d extents", seed, packed, n.extents.bytes, leaves, count)
	}
}

func (m byteModel) checkLive(t *testing.T, n *node, live *liveCount) {
	bytes := int64(0)
	n.extents.from(0, func(e extent) bool {
		if e.isData() {
			bytes += plain.dataBytes(e.len)
		}
		return true
	})
	if bytes != live.bytes {
		t.Fatalf("%d bytes live, counted %d", bytes, live.bytes)
	}
}

func TestExtentMapBehavesLikeAnArray(t *testing.T) {
	for seed := range uint64(150 / thin) {
		rng := rand.New(rand.NewPCG(seed, 11))
		size := []int64{60, 1000, 6000}[rng.IntN(3)]
		most := []int64{3, 20, size}[rng.IntN(3)]
		live := liveCount{segments: map[uint32]*segment{1: {}, 2: {}, 900: {}}}
		n, m := &node{}, make(byteModel, size)
		var copies []*node
		var models []byteModel
		for i := range 600 {
			e := randomExtent(rng, size, most)
			n.put(e, &live)
			m.put(e)
			if i%100 == 50 {
				copies, models = append(copies, n.copy()), append(models, slices.Clone(m))
			}
			if lo := rng.Int64N(size); i%10 == 0 {
				checkLookup(t, n, m, lo, lo+rng.Int64N(size-lo))
			}
		}
		m.check(t, n, seed)
		m.checkLive(t, n, &live)
		for i, c := range copies {
			models[i].check(t, c, seed)
		}
		n.extents.splice(0, sizeEnd, nil, &live)
		if n.extents.Len() != 0 || n.extents.bytes != 0 || live.bytes != 0 || n.extents.leaves.Len() != 0 {
			t.Fatalf("seed %d: not empty: %+v", seed, live)
		}
	}
}

func randomExtent(rng *rand.Rand, size, most int64) extent {
	off := rng.Int64N(size)
	e := extent{off: off, len: 1 + rng.Int64N(min(most, size-off))}
	switch rng.IntN(8) {
	case 0:
		e.seg = segBad
	case 1, 2:
		e.seg = segZero
	default:
		e.seg = []uint32{1, 2, 900}[rng.IntN(3)]
		e.rec = uint32(rng.IntN(100)) * 4200
		e.skip = uint32(rng.IntN(3))
		e.size = uint32(e.len) + e.skip + uint32(rng.IntN(2))
	}
	return e
}

func checkLookup(t *testing.T, n *node, m byteModel, off, end int64) {
	t.Helper()
	shown := make(byteModel, len(m))
	for _, e := range n.lookup(nil, off, end) {
		shown.put(e)
	}
	if !slices.Equal(shown[off:end], m[off:end]) || !slices.Equal(shown[:off], make(byteModel, off)) {
		t.Fatalf("%d to %d: other extents", off, end)
	}
}

func TestDiscardsOfALargeDiskCostLittle(t *testing.T) {
	const blocks = 1 << 19 / thin
	n, live := &node{}, liveCount{segments: map[uint32]*segment{1: {}}}
	most, rng := int64(0), rand.New(rand.NewPCG(1, 1))
	for _, i := range rng.Perm(blocks) {
		n.put(extent{off: int64(i) * 4096, len: 4096, seg: segZero}, &live)
		most = max(most, n.extents.bytes)
	}
	if n.extents.Len() != 1 || n.extents.leaves.Len() != 1 || most > 2*blocks {
		t.Fatalf("%d extents in %d leaves, %d bytes at most", n.extents.Len(), n.extents.leaves.Len(), most)
	}
	t.Logf("%d bytes at most for %d discards of 4 KiB", most, blocks)
}

func TestPackedExtentsOfRandomWritesAreSmall(t *testing.T) {
	n, live := &node{extents: extentMap{form: testForm}}, liveCount{segments: map[uint32]*segment{}, form: testForm}
	const count, per = (1 << 17) / thin, 15000
	for i := range int64(count/per + 1) {
		live.segments[uint32(i+1)] = &segment{}
	}
	for at, i := range rand.New(rand.NewPCG(1, 1)).Perm(count) {
		rec := testForm.first() + int64(at%per)*testForm.dataBytes(4096)
		n.put(extent{int64(i) * 4096, 4096, uint32(at/per + 1), uint32(rec), 4096, 0}, &live)
	}
	if each := float64(n.extents.bytes) / count; each > 9 || n.extents.leaves.Len() > 2*count/leafMost {
		t.Fatalf("%.1f bytes an extent, %d leaves", each, n.extents.leaves.Len())
	}
}

func FuzzLeaf(f *testing.F) {
	f.Add(plain.packLeaf([]extent{{0, 4096, 1, 4096, 4096, 0}, {4096, 4096, 1, 8296, 4096, 0}, {9000, 10, 5, 4096, 100, 3}, {9010, 5, segBad, 0, 0, 0}}))
	f.Fuzz(func(t *testing.T, leaf string) {
		var list []extent
		u := plain.unpack(leaf)
		for e, ok := u.next(); ok; e, ok = u.next() {
			list = append(list, e)
		}
		if u.broken || len(list) > leafMost {
			return
		}
		again := plain.unpack(plain.packLeaf(list))
		for _, want := range list {
			if e, ok := again.next(); !ok || e != want {
				t.Fatalf("%+v became %+v", want, e)
			}
		}
		if _, ok := again.next(); ok || again.broken {
			t.Fatal("more")
		}
	})
}
