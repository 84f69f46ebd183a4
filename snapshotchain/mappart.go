package snapshotchain

import (
	"encoding/binary"

	"livemount/internal/errs"
	"livemount/snapshotchain/chunkstore"
)

// PartKind says what a part of a map segment holds; the numbers are stored.
type PartKind uint8

// The kinds of parts.
const (
	PartLeaves PartKind = 1
	PartDirs   PartKind = 2
)

// Part is a record of a map segment: the versions of leaves, or of directory pages, that a point added,
// numbered First to Last, ascending.
type Part struct {
	Kind  PartKind       `json:"kind"`
	First uint32         `json:"first"`
	Last  uint32         `json:"last"`
	Ptr   chunkstore.Ptr `json:"ptr"`
}

const (
	partMagic = "LMP1"
	partHead  = 4 + 1 + 3 + 8 + 4
	partBytes = 1 << 20 // a part is written when it has grown to this
)

// partWriter collects entries of one kind.
type partWriter struct {
	part Part
	buf  []byte
}

func (w *partWriter) empty() bool { return len(w.buf) == 0 }

func (w *partWriter) add(l LineageID, s Seq, kind PartKind, n uint32, val []byte) {
	if w.empty() {
		w.part.First = n
		w.begin(l, s, kind)
	}
	w.part.Last = n
	w.buf = binary.AppendUvarint(w.buf, uint64(n))
	w.buf = binary.AppendUvarint(w.buf, uint64(len(val)))
	w.buf = append(w.buf, val...)
}

// begin starts a part without entries.
func (w *partWriter) begin(l LineageID, s Seq, kind PartKind) {
	w.part.Kind = kind
	w.buf = append(w.buf, partMagic...)
	w.buf = append(w.buf, byte(kind), 0, 0, 0)
	w.buf = binary.LittleEndian.AppendUint64(w.buf, uint64(l))
	w.buf = binary.LittleEndian.AppendUint32(w.buf, uint32(s))
}

// eachEntry calls fn with the entries of a decoded part, after checking that it belongs where it was found.
func eachEntry(b []byte, l LineageID, s Seq, kind PartKind, fn func(n uint32, val []byte) error) error {
	if len(b) < partHead || string(b[:4]) != partMagic || PartKind(b[4]) != kind ||
		binary.LittleEndian.Uint64(b[8:]) != uint64(l) || binary.LittleEndian.Uint32(b[16:]) != uint32(s) {
		return errs.New(errs.Corrupt, "map part does not belong to lineage %s, point %d", l, s)
	}
	d := &varints{b: b[partHead:]}
	for len(d.b) > 0 {
		n := d.uint(1<<32 - 1)
		size := d.uint(uint64(len(d.b)))
		if d.err != nil || size > uint64(len(d.b)) {
			return errs.New(errs.Corrupt, "map part of lineage %s, point %d is malformed", l, s)
		}
		val := d.b[:size]
		d.b = d.b[size:]
		if err := fn(uint32(n), val); err != nil {
			return err
		}
	}
	return nil
}
