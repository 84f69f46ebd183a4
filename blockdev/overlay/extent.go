package overlay

import (
	"math"
	"sync/atomic"

	"livemount/blockdev"
)

// Values of extent.seg that are not segments.
const (
	segZero = 0
	segBad  = math.MaxUint32
)

// extent is a range of a node and where its bytes are.
type extent struct {
	off, len int64
	seg      uint32 // number of the segment, segZero or segBad
	rec      uint32 // offset of the record in the segment
	size     uint32 // payload bytes of the record
	skip     uint32 // payload bytes of the record before this range
}

func (e extent) end() int64 { return e.off + e.len }

func (e extent) isData() bool { return e.seg != segZero && e.seg != segBad }

// dataBytes is the length of data, and nothing of all else.
func (e *extent) dataBytes() int64 {
	if e.isData() {
		return e.len
	}
	return 0
}

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
	grows     bool            // a write behind the end makes it longer
	attached  bool            // given by the caller, not only found in the log
	size      atomic.Int64    // bytes
	given     int64           // the size that the caller gave
	sizeKnown bool            // a record set the size; it wins over the caller's
	extents   extentMap
}

// copy is the node as it is now. The copies of the tree share their parts until one of them is written.
// The caller holds index, for writing: copying a tree writes to it.
func (n *node) copy() *node {
	c := &node{
		id: n.id, base: n.base, grows: n.grows, attached: n.attached, given: n.given, sizeKnown: n.sizeKnown, extents: n.extents.copy(),
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

// lookup appends the extents of [off, end), cut to it, in order and with gaps where base shows.
func (n *node) lookup(list []extent, off, end int64) []extent {
	n.extents.from(off, func(e extent) bool {
		if e.off < end {
			list = append(list, e.cut(off, end))
		}
		return e.end() < end
	})
	return list
}

// put makes the range of e show e. What sticks out of it on either side stays; a zero or bad range is
// joined with its neighbours of the same kind.
func (n *node) put(e extent, live *liveCount) {
	lo, hi := e.off, e.end()
	from, to := lo, hi // where what starts is replaced
	left, right := n.extents.around(lo, hi)
	var buf [3]extent
	out := buf[:0]
	if left.len > 0 && (left.end() > lo || left.end() == lo && e.joins(left)) {
		from = left.off
		if left = left.cut(left.off, lo); e.joins(left) {
			e.off, e.len = left.off, left.len+e.len
		} else {
			out = append(out, left)
		}
	}
	isRight := right.end() > hi
	if isRight {
		right = right.cut(hi, right.end())
	} else if !e.isData() {
		right, isRight = n.extents.at(hi)
		if isRight = isRight && right.off == hi && e.joins(right); isRight {
			to = hi + 1
		}
	}
	if isRight && e.joins(right) {
		e.len += right.len
		isRight = false
	}
	if out = append(out, e); isRight {
		out = append(out, right)
	}
	for _, part := range out {
		live.add(part)
	}
	n.extents.splice(from, to, out, live)
}

// joins says that the two, which adjoin, can be one.
func (e extent) joins(o extent) bool { return !e.isData() && e.seg == o.seg }

// isZero says that the overlay shows zeroes in all of [off, end).
func (n *node) isZero(off, end int64) bool {
	e, ok := n.extents.at(off)
	return ok && e.off <= off && e.seg == segZero && e.end() >= end
}

// liveCount keeps, for each segment, the bytes that its live payload would take in new records, and
// the sums over all.
type liveCount struct {
	segments map[uint32]*segment
	bytes    int64
	form     form
}

func (c *liveCount) add(e extent) { c.count(e, 1) }
func (c *liveCount) sub(e extent) { c.count(e, -1) }

func (c *liveCount) count(e extent, sign int64) {
	if !e.isData() {
		return
	}
	c.countIn(c.segments[e.seg], e, sign)
}

// countIn is count of data whose segment is at hand.
func (c *liveCount) countIn(s *segment, e extent, sign int64) {
	n := sign * c.form.dataBytes(e.len)
	c.bytes += n
	s.live += n
}
