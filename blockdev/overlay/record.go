package overlay

import (
	"encoding/binary"
	"hash/crc32"
)

const (
	recordMagic = 0x314f4d4c // "LMO1" on disk
	headerBytes = 96
	blockBytes  = 4096    // payload bytes under one checksum, before they are sealed
	payloadMax  = 1 << 20 // payload bytes of one record
	tableMax    = payloadMax / blockBytes * 4
)

type kind uint8

const (
	kindData   kind = 1 + iota // payload bytes at an offset of a node
	kindZero                   // a range of a node reads as zeroes
	kindSize                   // offset is the new size of the node
	kindMeta                   // payload of the layer above
	kindForget                 // the node is gone
	kindMirror                 // kindMeta whose payload is there twice (mirror.go)
	kindEnd
)

// flagSealed is in every record of a sealed log.
const flagSealed = 1

// essentials is what a record does, without its payload. Its successor repeats it.
type essentials struct {
	kind        kind
	node        uint64
	off, length int64
}

func (e essentials) hasPayload() bool { return e.kind == kindData || e.isMeta() }

func (e essentials) isMeta() bool { return e.kind == kindMeta || e.kind == kindMirror }

func (e essentials) payload() int64 {
	if e.hasPayload() {
		return e.length
	}
	return 0
}

func (e essentials) payloadOffset() int64 { return headerBytes + tableBytes(e.payload()) }

func (e essentials) plausible() bool {
	if e.off < 0 || e.length < 0 || e.length > sizeEnd || e.off > sizeEnd-e.length || e.payload() > payloadMax {
		return false
	}
	switch e.kind {
	case kindData, kindZero:
		return e.length > 0
	case kindSize:
		return e.off < sizeEnd
	case kindMirror:
		return e.length <= blockBytes && e.length%2 == 0
	}
	return true
}

func align8(n int64) int64 { return (n + 7) &^ 7 }

func blocks(payload int64) int64 { return (payload + blockBytes - 1) / blockBytes }

func tableBytes(payload int64) int64 { return align8(4 * blocks(payload)) }

// header is the fixed part of a record.
type header struct {
	essentials
	flags  uint8
	keyID  uint32
	epoch  uint32
	seq    uint64
	synced Position
	prev   essentials
}

// unsupported says that a valid record was written by a newer version, or is not of this form.
func (h header) unsupported(f form) bool {
	return h.flags != f.flags() || h.keyID != 0 || h.kind == 0 || h.kind >= kindEnd
}

func (f form) flags() uint8 {
	if f == plain {
		return 0
	}
	return flagSealed
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

func checksum(seed uint32, p []byte) uint32 { return crc32.Update(seed, castagnoli(), p) }

// segmentSeed starts all checksums of a segment, so that bytes of another mount or segment never pass.
func segmentSeed(mount [16]byte, segment uint64) uint32 {
	return checksum(checksum(0, mount[:]), binary.LittleEndian.AppendUint64(nil, segment))
}

// recordTag binds a record to its place. It seeds the header's checksum and masks those of the payload.
// It is checksum over the 8 bytes of off, without a buffer that would be on the heap.
func recordTag(seed uint32, off int64) uint32 {
	table, sum := castagnoli(), ^seed
	for range 8 {
		sum = table[byte(sum)^byte(off)] ^ sum>>8
		off >>= 8
	}
	return ^sum
}

// fillTable writes the unmasked checksums of what is stored.
func fillTable(table, stored []byte, pitch int64) {
	for len(stored) > 0 {
		n := min(pitch, int64(len(stored)))
		binary.LittleEndian.PutUint32(table, checksum(0, stored[:n]))
		table, stored = table[4:], stored[n:]
	}
}

// maskTable binds the table to its place.
func maskTable(table []byte, n int64, tag uint32) {
	for i := int64(0); i < n; i++ {
		b := table[i*4:]
		binary.LittleEndian.PutUint32(b, binary.LittleEndian.Uint32(b)^tag)
	}
}

// blockGood checks one stored block against its entry in the table.
func blockGood(entry, block []byte, tag uint32) bool {
	return binary.LittleEndian.Uint32(entry)^tag == checksum(0, block)
}

// encode writes the header in front of its masked table; b holds both.
func (h header) encode(b []byte, tag uint32) {
	le := binary.LittleEndian
	clear(b[:headerBytes])
	le.PutUint32(b[0:], recordMagic)
	b[4], b[5], b[6] = byte(h.kind), h.flags, byte(h.prev.kind)
	le.PutUint32(b[8:], h.keyID)
	le.PutUint32(b[12:], h.epoch)
	le.PutUint64(b[16:], h.seq)
	le.PutUint64(b[24:], h.node)
	le.PutUint64(b[32:], uint64(h.off))
	le.PutUint64(b[40:], uint64(h.length))
	le.PutUint64(b[48:], h.synced.Segment)
	le.PutUint64(b[56:], uint64(h.synced.Offset))
	le.PutUint64(b[64:], h.prev.node)
	le.PutUint64(b[72:], uint64(h.prev.off))
	le.PutUint64(b[80:], uint64(h.prev.length))
	le.PutUint32(b[92:], headerSum(b, h.payload(), tag))
}

func headerSum(b []byte, payload int64, tag uint32) uint32 {
	sum := checksum(tag, b[:headerBytes-4])
	return checksum(sum, b[headerBytes:headerBytes+tableBytes(payload)])
}

// decodeHeader reads a header and checks it together with its table, which follows it in b. It reports
// false for anything that is not a whole valid record header of this place.
func decodeHeader(b []byte, tag uint32) (header, bool) {
	le := binary.LittleEndian
	if len(b) < headerBytes || le.Uint32(b) != recordMagic {
		return header{}, false
	}
	h := header{
		essentials: essentials{kind(b[4]), le.Uint64(b[24:]), int64(le.Uint64(b[32:])), int64(le.Uint64(b[40:]))},
		flags:      b[5], keyID: le.Uint32(b[8:]), epoch: le.Uint32(b[12:]), seq: le.Uint64(b[16:]),
		synced: Position{le.Uint64(b[48:]), int64(le.Uint64(b[56:]))},
		prev:   essentials{kind(b[6]), le.Uint64(b[64:]), int64(le.Uint64(b[72:])), int64(le.Uint64(b[80:]))},
	}
	if !h.plausible() || !h.synced.plausible() || int64(len(b)) < h.payloadOffset() {
		return header{}, false
	}
	return h, le.Uint32(b[92:]) == headerSum(b, h.payload(), tag)
}
