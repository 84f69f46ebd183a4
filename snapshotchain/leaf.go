package snapshotchain

import (
	"encoding/binary"

	"livemount/blockdev"
	"livemount/internal/errs"
	"livemount/snapshotchain/chunkstore"
)

// LeafPages is how many pages a leaf maps; LeafBytes is the same in bytes (8 MiB).
const (
	LeafPages = 2048
	LeafBytes = LeafPages * blockdev.PageSize
)

// maxDepth is how many deltas follow a full version. The i-th of them says what changed in the last 2^k
// versions, 2^k being the largest power of two that divides i (the tree of Fenwick, "A new data structure for
// cumulative frequency tables", 1994), so a lookup walks at most 7 versions.
const maxDepth = 63

// spanOf is how many versions the delta of this depth covers.
func spanOf(depth int) int { return depth & -depth }

// Run maps adjoining pages of a leaf to adjoining pages of a chunk, or, when Ptr.Container is 0, to zeroes.
type Run struct {
	Page  uint16 // first page, within the leaf
	Len   uint16 // pages, at least 1
	First uint16 // first page, within the chunk
	Ptr   chunkstore.Ptr
}

// IsZero reports whether the run reads as zeroes.
func (r Run) IsZero() bool { return r.Ptr.Container == 0 }

func (r Run) end() int { return int(r.Page) + int(r.Len) }

// leaf is one version of a leaf. A full version says all (what it does not name is zeroes); a delta only
// what changed since the version prev of the same lineage.
type leaf struct {
	full  bool
	depth uint8 // versions since the full one
	prev  Seq
	runs  []Run // by page, not overlapping
}

const leafFull = 1

// encode returns the stored form.
func (l *leaf) encode() []byte {
	b := make([]byte, 0, 8+6*len(l.runs))
	flags := byte(0)
	if l.full {
		flags = leafFull
	}
	b = append(b, flags, l.depth)
	b = binary.AppendUvarint(b, uint64(l.prev))
	b = binary.AppendUvarint(b, uint64(len(l.runs)))
	page, last := 0, chunkstore.Ptr{}
	for _, r := range l.runs {
		b = binary.AppendUvarint(b, uint64(int(r.Page)-page))
		page = r.end()
		if r.IsZero() {
			b = binary.AppendUvarint(b, uint64(r.Len)<<1|1)
			continue
		}
		b = binary.AppendUvarint(b, uint64(r.Len)<<1)
		b = binary.AppendVarint(b, int64(r.Ptr.Container-last.Container))
		b = binary.AppendVarint(b, int64(r.Ptr.Slot)-int64(last.Slot))
		b = binary.AppendUvarint(b, uint64(r.First))
		last = r.Ptr
	}
	return b
}

// decodeLeaf checks everything that a reader relies on: runs ascend, do not overlap, stay inside the leaf
// and inside the largest chunk.
func decodeLeaf(b []byte) (*leaf, error) {
	if len(b) < 4 || b[0] > leafFull || b[1] > maxDepth {
		return nil, errs.New(errs.Corrupt, "leaf of %d bytes without a header", len(b))
	}
	l := &leaf{full: b[0]&leafFull != 0, depth: b[1]}
	d := &varints{b: b[2:]}
	l.prev = Seq(d.uint(1<<32 - 1))
	n := d.uint(LeafPages)
	if l.full != (l.depth == 0) || (!l.full && l.prev == 0) {
		return nil, errs.New(errs.Corrupt, "leaf of depth %d contradicts itself", l.depth)
	}
	l.runs = make([]Run, 0, min(n, uint64(len(b))))
	page, last := 0, chunkstore.Ptr{}
	for range n {
		r := d.run(page, last)
		if d.err != nil {
			break
		}
		page = r.end()
		if !r.IsZero() {
			last = r.Ptr
		}
		l.runs = append(l.runs, r)
	}
	if d.err != nil || len(d.b) != 0 {
		return nil, errs.New(errs.Corrupt, "leaf is malformed behind %d runs", len(l.runs))
	}
	return l, nil
}

func (d *varints) run(page int, last chunkstore.Ptr) Run {
	r := Run{Page: uint16(page + int(d.uint(uint64(LeafPages-page))))}
	head := d.uint(LeafPages<<1 | 1)
	r.Len = uint16(head >> 1)
	if r.Len == 0 || r.end() > LeafPages {
		d.fail()
		return r
	}
	if head&1 != 0 {
		return r
	}
	r.Ptr.Container = last.Container + chunkstore.ContainerID(d.int())
	slot := int64(last.Slot) + d.int()
	r.First = uint16(d.uint(chunkstore.MaxChunkPages))
	if slot < 0 || slot > 1<<32-1 || r.IsZero() || int(r.First)+int(r.Len) > chunkstore.MaxChunkPages {
		d.fail()
	}
	r.Ptr.Slot = uint32(slot)
	return r
}

// varints decodes numbers; after the first that is malformed or too large err is set and all are 0.
type varints struct {
	b   []byte
	err error
}

func (d *varints) fail() {
	if d.err == nil {
		d.err = errs.New(errs.Corrupt, "malformed number")
	}
	d.b = nil
}

func (d *varints) uint(limit uint64) uint64 {
	if len(d.b) > 0 && d.b[0] < 0x80 && uint64(d.b[0]) <= limit { // most are
		v := uint64(d.b[0])
		d.b = d.b[1:]
		return v
	}
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > limit {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *varints) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// flatten resolves versions, newest first, to the runs of data that a reader sees, by page.
func flatten(versions []*leaf) []Run {
	runs := merge(versions)
	out := runs[:0]
	for _, r := range runs {
		if !r.IsZero() {
			out = append(out, r)
		}
	}
	return out
}

// merge resolves deltas, newest first, to one, which says also what became zeroes.
func merge(versions []*leaf) []Run {
	var runs []Run
	for _, v := range versions {
		runs = over(runs, v.runs)
	}
	return runs
}

// over lays newer runs over older ones; both are by page and do not overlap.
func over(newer, older []Run) []Run {
	out := make([]Run, 0, len(older)+2*len(newer))
	i := 0
	for _, r := range older {
		for ; i < len(newer) && newer[i].end() <= int(r.Page); i++ {
			out = append(out, newer[i])
		}
		for ; i < len(newer) && int(newer[i].Page) < r.end(); i++ {
			n := newer[i]
			if n.Page > r.Page {
				out = append(out, r.cut(r.Page, n.Page))
			}
			if n.end() >= r.end() {
				r.Len = 0
				break // n may hide some of the next as well
			}
			out = append(out, n)
			r = r.cut(uint16(n.end()), uint16(r.end()))
		}
		if r.Len > 0 {
			out = append(out, r)
		}
	}
	return append(out, newer[i:]...)
}

// cut returns the part of the run in pages [from, to).
func (r Run) cut(from, to uint16) Run {
	c := Run{Page: from, Len: to - from, Ptr: r.Ptr}
	if !r.IsZero() {
		c.First = r.First + from - r.Page
	}
	return c
}
