package overlay

import (
	"encoding/binary"
	"fmt"
	"path"

	"livemount/internal/errs"
)

const (
	checkpointMagic   = 0x31504b434f4d4c4c // "LLMOCKP1" on disk
	checkpointHeader  = 160
	checkpointHeader1 = 128 // in version 1
	nodeEntryBytes    = 32
	extentEntryBytes  = 40 // in version 1
	leafPrefixBytes   = 2
	snapshotBytesMax  = 256 << 20
	originEntryBytes  = 24
	diskSegBad        = 1<<64 - 1
	flagSizeKnown     = 1
	flagMeta          = 1
	checkpointVersion = 2 // what is written; 1 is read too
	checkpointPrefix  = "checkpoint-"
	checkpointTempEnd = ".tmp"
)

func checkpointName(dir string, number uint64) string {
	return path.Join(dir, fmt.Sprintf("%s%016x", checkpointPrefix, number))
}

// checkpointHead is the first part of a checkpoint: the state of the log at its position.
type checkpointHead struct {
	version  uint32
	epoch    uint32
	mount    [16]byte
	number   uint64
	at       Position // where replay goes on
	nextSeq  uint64
	last     essentials
	nodes    uint64
	extents  uint64
	snapshot uint64 // bytes
	meta     bool   // there is a snapshot, perhaps an empty one
	origins  uint32 // entries of the table of segments that were taken over
	leaves   uint64 // bytes of all leaves, with their lengths
}

func (h checkpointHead) streamBytes() int64 {
	rest := int64(h.nodes)*nodeEntryBytes + int64(h.snapshot)
	if h.version == 1 {
		return checkpointHeader1 + int64(h.extents)*extentEntryBytes + rest
	}
	return checkpointHeader + int64(h.origins)*originEntryBytes + int64(h.leaves) + rest
}

// imageBytes is the size of one of the two copies.
func (h checkpointHead) imageBytes(f form) int64 {
	n := int64(f.blockPayload())
	return (h.streamBytes() + n - 1) / n * blockBytes
}

func (h checkpointHead) encode() []byte {
	le, b := binary.LittleEndian, make([]byte, checkpointHeader)
	le.PutUint64(b[0:], checkpointMagic)
	le.PutUint32(b[8:], h.version)
	le.PutUint32(b[12:], h.epoch)
	copy(b[16:], h.mount[:])
	le.PutUint64(b[32:], h.number)
	le.PutUint64(b[40:], h.at.Segment)
	le.PutUint64(b[48:], uint64(h.at.Offset))
	le.PutUint64(b[56:], h.nextSeq)
	putEssentials(b[64:], h.last)
	le.PutUint64(b[96:], h.nodes)
	le.PutUint64(b[104:], h.extents)
	le.PutUint64(b[112:], h.snapshot)
	if h.meta {
		le.PutUint32(b[120:], flagMeta)
	}
	if h.version == 1 {
		return b[:checkpointHeader1]
	}
	le.PutUint32(b[124:], h.origins)
	le.PutUint64(b[128:], h.leaves)
	return b
}

func decodeCheckpointHead(b []byte) (checkpointHead, error) {
	le := binary.LittleEndian
	if len(b) < checkpointHeader1 || le.Uint64(b) != checkpointMagic {
		return checkpointHead{}, errs.New(errs.Corrupt, "not a checkpoint")
	}
	h := checkpointHead{
		version: le.Uint32(b[8:]), epoch: le.Uint32(b[12:]), mount: [16]byte(b[16:32]), number: le.Uint64(b[32:]),
		at: Position{le.Uint64(b[40:]), int64(le.Uint64(b[48:]))}, nextSeq: le.Uint64(b[56:]), last: getEssentials(b[64:]),
		nodes: le.Uint64(b[96:]), extents: le.Uint64(b[104:]), snapshot: le.Uint64(b[112:]), meta: le.Uint32(b[120:])&flagMeta != 0,
	}
	switch {
	case h.version > checkpointVersion:
		return h, errs.New(errs.Newer, "checkpoint: format version %d", h.version)
	case h.version > 1 && len(b) < checkpointHeader:
		return h, errs.New(errs.Corrupt, "checkpoint: no whole head")
	case h.version > 1:
		h.origins, h.leaves = le.Uint32(b[124:]), le.Uint64(b[128:])
	}
	const countMax = 1 << 40
	if h.nodes > countMax || h.extents > countMax || h.snapshot > snapshotBytesMax || h.nextSeq == 0 || !h.at.plausible() || h.leaves > countMax {
		return h, errs.New(errs.Corrupt, "checkpoint: impossible counts")
	}
	return h, nil
}

// origin says of a segment whose it is, when it is another mount's.
type origin struct {
	number uint64
	mount  [16]byte
}

func (o origin) encode() []byte {
	return append(binary.LittleEndian.AppendUint64(nil, o.number), o.mount[:]...)
}

func decodeOrigin(b []byte) origin {
	return origin{binary.LittleEndian.Uint64(b), [16]byte(b[8:originEntryBytes])}
}

func encodeNode(b []byte, id uint64, size int64, known bool, extents int) {
	le := binary.LittleEndian
	le.PutUint64(b[0:], id)
	le.PutUint64(b[8:], uint64(size))
	le.PutUint64(b[16:], 0)
	if known {
		le.PutUint64(b[16:], flagSizeKnown)
	}
	le.PutUint64(b[24:], uint64(extents))
}

// decodeExtent reads an extent of version 1. It reports false for what cannot be one.
func decodeExtent(b []byte) (extent, bool) {
	le := binary.LittleEndian
	e := extent{
		off: int64(le.Uint64(b)), len: int64(le.Uint64(b[8:])),
		rec: le.Uint32(b[24:]), size: le.Uint32(b[28:]), skip: le.Uint32(b[32:]),
	}
	seg := le.Uint64(b[16:])
	if seg == diskSegBad {
		seg = segBad
	} else if seg > segmentNumberMax {
		return e, false
	}
	e.seg = uint32(seg)
	if e.off < 0 || e.len <= 0 || e.len > sizeEnd || e.off > sizeEnd-e.len {
		return e, false
	}
	fits := e.size <= payloadMax && int64(e.skip)+e.len <= int64(e.size) && int64(e.rec) <= segmentMax
	return e, !e.isData() || fits
}

// snapshotState is the log at one moment: what a checkpoint holds.
type snapshotState struct {
	head    checkpointHead
	origins []origin
	nodes   []*node // copies
	upper   []byte
	dead    []*segment // none of their payload is live, and replay does not need them
	live    []*segment // the others, but for those that replay alone needs
}

// snapshot copies the state for a checkpoint of this log.
func (l *Log) snapshot(number uint64) (snapshotState, error) {
	l.appending.Lock()
	defer l.appending.Unlock()
	if err := l.writable(); err != nil {
		return snapshotState{}, err
	}
	at := l.end
	if l.headEnd == l.form.first() {
		at = Position{l.head.number, l.headEnd} // so that older segments can go
	}
	s, err := l.state(l.opts.Mount, number, at)
	for _, list := range [][]*segment{s.live, s.dead} {
		s.takeOver(list) // also dead ones: a crash may leave their files
	}
	return s, err
}

// state copies what a checkpoint holds. The caller holds appending.
func (l *Log) state(mount [16]byte, number uint64, at Position) (snapshotState, error) {
	s := snapshotState{head: checkpointHead{
		version: checkpointVersion, epoch: l.epoch, mount: mount, number: number,
		at: at, nextSeq: l.seq.Load() + 1, last: l.last,
	}}
	if err := l.snapshotUpper(&s); err != nil {
		return s, err
	}
	l.index.Lock()
	defer l.index.Unlock()
	for _, n := range l.nodes {
		s.addNode(n)
	}
	for _, seg := range l.live.segments {
		if seg.live > 0 {
			s.live = append(s.live, seg)
		} else if seg.number < s.head.at.Segment {
			s.dead = append(s.dead, seg)
		}
	}
	return s, nil
}

// takeOver notes those of the segments that are another mount's.
func (s *snapshotState) takeOver(list []*segment) {
	for _, seg := range list {
		if seg.mount != s.head.mount {
			s.origins = append(s.origins, origin{seg.number, seg.mount})
		}
	}
	s.head.origins = uint32(len(s.origins))
}

func (l *Log) snapshotUpper(s *snapshotState) (err error) {
	if !l.logMeta {
		return nil
	}
	if l.opts.Snapshot == nil {
		return errs.New(errs.Invalid, "overlay log %s: a checkpoint needs the layer above", l.opts.Dir)
	}
	if s.upper, err = l.opts.Snapshot(); err != nil {
		return err
	}
	if len(s.upper) > snapshotBytesMax {
		return errs.New(errs.Invalid, "snapshot of %d bytes, more than the %d allowed", len(s.upper), snapshotBytesMax)
	}
	s.head.meta, s.head.snapshot = true, uint64(len(s.upper))
	return nil
}

func (s *snapshotState) addNode(n *node) {
	c := n.copy()
	s.nodes = append(s.nodes, c)
	s.head.nodes++
	s.head.extents += uint64(c.extents.Len())
	s.head.leaves += uint64(c.extents.bytes) + uint64(c.extents.leaves.Len())*leafPrefixBytes
}

func decodeNodeEntry(b []byte) (id uint64, size int64, known bool, count uint64) {
	le := binary.LittleEndian
	return le.Uint64(b), int64(le.Uint64(b[8:])), le.Uint64(b[16:])&flagSizeKnown != 0, le.Uint64(b[24:])
}
