package overlay

import (
	"encoding/binary"
	"fmt"
	"io"

	"livemount/internal/errs"
)

// extentReader reads the extents of one node from a checkpoint.
type extentReader struct {
	l    *Log
	r    *imageReader
	rep  *Report
	n    *node
	left uint64 // extents
	end  int64  // of the last one
	fill filler
}

func (x *extentReader) impossible() error {
	return errs.New(errs.Corrupt, "node %d: impossible extents behind %d", x.n.id, x.end)
}

// entries reads the extents of version 1.
func (x *extentReader) entries() error {
	b := make([]byte, extentEntryBytes)
	for ; x.left > 0; x.left-- {
		if _, err := io.ReadFull(x.r, b); err != nil {
			return torn(err)
		}
		e, ok := decodeExtent(b)
		if !ok || e.off < x.end {
			return x.impossible()
		}
		x.end = e.end()
		x.restore(e)
	}
	x.fill.flush()
	return nil
}

// leaves reads packed ones.
func (x *extentReader) leaves() error {
	b := make([]byte, leafBytesMost)
	for x.left > 0 {
		if _, err := io.ReadFull(x.r, b[:leafPrefixBytes]); err != nil {
			return torn(err)
		}
		size := int(binary.LittleEndian.Uint16(b))
		if size > leafBytesMost {
			return x.impossible()
		}
		if _, err := io.ReadFull(x.r, b[:size]); err != nil {
			return torn(err)
		}
		if err := x.leaf(string(b[:size])); err != nil {
			return err
		}
	}
	x.fill.flush()
	return nil
}

// leaf takes a leaf as it is, unless it names a segment that is missing.
func (x *extentReader) leaf(leaf string) error {
	var list [leafMost]extent
	var from [leafMost]*segment
	u, n, missing := x.l.form.unpack(leaf), 0, false
	for e, ok := u.next(); ok; e, ok = u.next() {
		if n == leafMost || e.off < x.end {
			return x.impossible()
		}
		list[n] = e
		if e.isData() {
			from[n] = x.l.live.segments[e.seg]
			missing = missing || from[n] == nil
		}
		n, x.end = n+1, e.end()
	}
	if u.broken || n == 0 || uint64(n) > x.left {
		return x.impossible()
	}
	x.left -= uint64(n)
	if missing {
		for _, e := range list[:n] {
			x.restore(e)
		}
		return nil
	}
	x.fill.flush()
	x.n.extents.add(leaf, list[:n])
	for i, e := range list[:n] {
		if from[i] != nil {
			x.l.live.countIn(from[i], e, 1)
		}
	}
	return nil
}

// restore adds an extent; one whose segment is missing becomes a bad range.
func (x *extentReader) restore(e extent) {
	if e.isData() && x.l.live.segments[e.seg] == nil {
		x.rep.damage(x.n.id, e.off, e.len, fmt.Sprintf("segment %016x is missing", e.seg))
		e = extent{off: e.off, len: e.len, seg: segBad}
	}
	x.fill.push(e)
	x.l.live.add(e)
}
