package overlay

import (
	"math"
	"sync/atomic"

	"github.com/tidwall/btree"

	"livemount/blockdev"
)

// Values of extent.seg that are not segments.
const (
	segZero = 0
	segBad  = math.MaxUint32
)

// extent is a range of a node and where its bytes are. It is small because there is one in memory for
// each range of the log that is live.
type extent struct {
	off, len int64
	seg      uint32 // number of the segment, segZero or segBad
	rec      uint32 // offset of the record in the segment
	size     uint32 // payload bytes of the record
	skip     uint32 // payload bytes of the record before this range
}

func (e extent) end() int64 { return e.off + e.len }

func (e extent) isData() bool { return e.seg != segZero && e.seg != segBad }

// shown is what readers are told. What is bad is data: whoever reads it learns so.
func (e extent) shown() blockdev.Extent {
	k := blockdev.Data
	if e.seg == segZero {
		k = blockdev.Zero
	}
	return blockdev.Extent{Off: e.off, Len: e.len, Kind: k}
}

// cut returns the part of e in [lo, hi), which must not be empty.
func (e extent) cut(lo, hi int64) extent {
	lo, hi = max(lo, e.off), min(hi, e.end())
	if e.isData() {
		e.skip += uint32(lo - e.off)
	}
	e.off, e.len = lo, hi-lo
	return e
}

// sameBytes says that both ranges show the same bytes of the same record at the same offset.
func (e extent) sameBytes(o extent) bool {
	return e.seg == o.seg && e.rec == o.rec && e.off-int64(e.skip) == o.off-int64(o.skip)
}

// node is one disk or scratch file. Its extents do not overlap; where there is none, base shows.
type node struct {
	id        uint64
	base      blockdev.Reader // nil is all zeroes
	attached  bool            // given by the caller, not only found in the log
	size      atomic.Int64    // bytes
	given     int64           // the size that the caller gave
	sizeKnown bool            // a record set the size; it wins over the caller's
	extents   btree.Map[int64, extent]
}

// copy is the node as it is now. The copies of the tree share their parts until one of them is written.
// The caller holds index, for writing: copying a tree writes to it.
func (n *node) copy() *node {
	c := &node{
		id: n.id, base: n.base, attached: n.attached, given: n.given, sizeKnown: n.sizeKnown, extents: *n.extents.Copy(),
	}
	c.size.Store(n.size.Load())
	return c
}

// baseSize is the end of what base can show.
func (n *node) baseSize() int64 {
	if n.base == nil {
		return 0
	}
	return min(n.base.Size(), n.size.Load())
}

// before returns the last extent that starts before off.
func (n *node) before(off int64) (found extent, ok bool) {
	n.extents.Descend(off-1, func(_ int64, e extent) bool {
		found, ok = e, true
		return false
	})
	return found, ok
}

// lookup appends the extents of [off, end), cut to it, in order and with gaps where base shows.
func (n *node) lookup(list []extent, off, end int64) []extent {
	if e, ok := n.extents.Get(off); ok && e.end() >= end {
		return append(list, e.cut(off, end))
	}
	if e, ok := n.before(off); ok && e.end() > off {
		list = append(list, e.cut(off, end))
	}
	n.extents.Ascend(off, func(_ int64, e extent) bool {
		if e.off >= end {
			return false
		}
		list = append(list, e.cut(off, end))
		return true
	})
	return list
}

// put makes the range of e show e; drop is called for each piece that it hides, keep for each piece
// that is split off and stays.
func (n *node) put(e extent, live *liveCount) {
	if old, ok := n.extents.Get(e.off); ok && old.len == e.len && e.isData() {
		live.sub(old)
	} else {
		n.clear(e.off, e.end(), live)
	}
	if !e.isData() {
		e = n.merge(e)
	}
	n.extents.Set(e.off, e)
	live.add(e)
}

// clear removes [off, end) from the index.
func (n *node) clear(off, end int64, live *liveCount) {
	var buf [16]extent
	list := buf[:0]
	if e, ok := n.before(off); ok && e.end() > off {
		list = append(list, e)
	}
	n.extents.Ascend(off, func(_ int64, e extent) bool {
		if e.off < end {
			list = append(list, e)
		}
		return e.off < end
	})
	for _, e := range list {
		n.clearOne(e, off, end, live)
	}
}

func (n *node) clearOne(e extent, off, end int64, live *liveCount) {
	n.extents.Delete(e.off)
	live.sub(e)
	if e.off < off {
		left := e.cut(e.off, off)
		n.extents.Set(left.off, left)
		live.add(left)
	}
	if e.end() > end {
		right := e.cut(end, e.end())
		n.extents.Set(right.off, right)
		live.add(right)
	}
}

// merge joins a zero or bad range with its neighbours of the same kind.
func (n *node) merge(e extent) extent {
	if l, ok := n.before(e.off); ok && l.end() == e.off && l.seg == e.seg {
		n.extents.Delete(l.off)
		e.off, e.len = l.off, l.len+e.len
	}
	if r, ok := n.extents.Get(e.end()); ok && r.seg == e.seg {
		n.extents.Delete(r.off)
		e.len += r.len
	}
	return e
}

// isZero says that the overlay shows zeroes in all of [off, end).
func (n *node) isZero(off, end int64) bool {
	e, ok := n.extents.Get(off)
	if !ok {
		e, ok = n.before(off)
	}
	return ok && e.seg == segZero && e.end() >= end
}

// liveCount keeps, for each segment, the bytes that its live payload would take in new records, and
// the sums over all.
type liveCount struct {
	segments map[uint32]*segment
	bytes    int64
}

func (c *liveCount) add(e extent) { c.count(e, 1) }
func (c *liveCount) sub(e extent) { c.count(e, -1) }

func (c *liveCount) count(e extent, sign int64) {
	if !e.isData() {
		return
	}
	n := sign * recordBytes(e.len)
	c.bytes += n
	c.segments[e.seg].live += n
}
