package chunkstore

import (
	"encoding/binary"
	"hash/crc32"

	"livemount/internal/errs"
)

// RecordKind says what a record holds.
type RecordKind uint8

// The kinds of records; the numbers are stored.
const (
	KindChunk   RecordKind = 1 // pages of disks
	KindJournal RecordKind = 2 // one change of the catalogue, JSON
	KindMap     RecordKind = 3 // part of a map segment
	KindBlob    RecordKind = 4 // a captured configuration
	KindFreed   RecordKind = 5 // stands for slots that nobody points to any more
)

// Codec says how a payload is compressed; the numbers are stored.
type Codec uint8

// The codecs.
const (
	CodecRaw  Codec = 0
	CodecZstd Codec = 1
	CodecS2   Codec = 2
)

const (
	recordMagic   = "LMR1"
	recordHeader  = 64
	recordAlign   = 8
	hashBytes     = 16
	maxAux        = MaxChunkPages * hashBytes
	maxStored     = 16 << 20  // bytes of a payload as stored
	maxRaw        = 16 << 20  // bytes of a payload decoded
	maxJournalRaw = 256 << 20 // the same of a journal record: a seal names every container that its draft filled
	flagEncrypted = 1         // reserved: the payload is sealed with AES-256-GCM
)

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) } // cached by the library

// seed ties checksums to the place where a record belongs, so that a record that was copied elsewhere
// does not pass.
type seed uint32

func newSeed(store StoreID, id ContainerID) seed {
	crc := crc32.Update(0, castagnoli(), store[:])
	return seed(crc32.Update(crc, castagnoli(), binary.LittleEndian.AppendUint64(nil, uint64(id))))
}

// record is a record of a container, decoded but for its payload's compression.
type record struct {
	kind    RecordKind
	codec   Codec
	flags   uint16
	slot    uint32
	rawLen  int
	id      [32]byte // chunk: ChunkID; journal: number and the number known to be durable, 8 bytes each
	aux     []byte   // chunk: page hashes
	payload []byte   // as stored
	fast    bool     // not stored: compressed by LevelFast
}

// storedLen is the length of the record in its container, padding included.
func storedLen(aux, payload int) int {
	return (recordHeader + aux + payload + recordAlign - 1) &^ (recordAlign - 1)
}

// appendRecord encodes r behind dst.
func appendRecord(dst []byte, s seed, r *record) []byte {
	start := len(dst)
	dst = append(dst, recordMagic...)
	dst = append(dst, byte(r.kind), byte(r.codec))
	le := binary.LittleEndian
	dst = le.AppendUint16(dst, r.flags)
	dst = le.AppendUint32(dst, r.slot)
	dst = le.AppendUint32(dst, uint32(len(r.payload)))
	dst = le.AppendUint32(dst, uint32(r.rawLen))
	dst = le.AppendUint32(dst, uint32(len(r.aux)))
	dst = append(dst, r.id[:]...)
	dst = le.AppendUint32(dst, crc32.Checksum(r.payload, castagnoli()))
	dst = le.AppendUint32(dst, headerCRC(s, dst[start:], r.aux))
	dst = append(dst, r.aux...)
	dst = append(dst, r.payload...)
	return append(dst, make([]byte, storedLen(len(r.aux), len(r.payload))-(len(dst)-start))...)
}

func headerCRC(s seed, header60, aux []byte) uint32 {
	return crc32.Update(crc32.Update(uint32(s), castagnoli(), header60[:recordHeader-4]), castagnoli(), aux)
}

// recordSizes are the lengths that a header claims, checked against the limits of the format.
type recordSizes struct {
	aux, payload int
}

func (z recordSizes) total() int { return storedLen(z.aux, z.payload) }

func parseSizes(h []byte) (recordSizes, error) {
	if len(h) < recordHeader || string(h[:4]) != recordMagic {
		return recordSizes{}, errs.New(errs.Corrupt, "no record header")
	}
	le := binary.LittleEndian
	payload, raw, aux := le.Uint32(h[12:]), le.Uint32(h[16:]), le.Uint32(h[20:])
	limit := uint32(maxRaw)
	if RecordKind(h[4]) == KindJournal {
		limit = maxJournalRaw
	}
	if payload > maxStored || raw > limit || aux > maxAux || aux%hashBytes != 0 {
		return recordSizes{}, errs.New(errs.Corrupt, "record header with impossible lengths")
	}
	return recordSizes{int(aux), int(payload)}, nil
}

// parseHeader decodes a header and its aux from b, which may end behind them. The payload is not looked at.
func parseHeader(s seed, b []byte) (*record, recordSizes, error) {
	z, err := parseSizes(b)
	if err != nil {
		return nil, z, err
	}
	if len(b) < recordHeader+z.aux {
		return nil, z, errs.New(errs.Corrupt, "record header is cut off")
	}
	le := binary.LittleEndian
	aux := b[recordHeader : recordHeader+z.aux]
	if headerCRC(s, b, aux) != le.Uint32(b[60:]) {
		return nil, z, errs.New(errs.Corrupt, "record header: checksum mismatch")
	}
	r := &record{
		kind: RecordKind(b[4]), codec: Codec(b[5]), flags: le.Uint16(b[6:]),
		slot: le.Uint32(b[8:]), rawLen: int(le.Uint32(b[16:])), id: [32]byte(b[24:56]), aux: aux,
	}
	return r, z, nil
}

// parseRecord decodes and checks a whole record. Its slices point into b.
func parseRecord(s seed, b []byte) (*record, error) {
	r, z, err := parseHeader(s, b)
	if err != nil {
		return nil, err
	}
	if len(b) < recordHeader+z.aux+z.payload {
		return nil, errs.New(errs.Corrupt, "record is cut off")
	}
	r.payload = b[recordHeader+z.aux:][:z.payload]
	if crc32.Checksum(r.payload, castagnoli()) != binary.LittleEndian.Uint32(b[56:]) {
		return nil, errs.New(errs.Corrupt, "record payload: checksum mismatch")
	}
	return r, nil
}

// hashes returns the page hashes of a chunk record.
func (r *record) hashes() []PageHash {
	out := make([]PageHash, len(r.aux)/hashBytes)
	for i := range out {
		out[i] = PageHash(r.aux[i*hashBytes:])
	}
	return out
}

func crc(b []byte) uint32 { return crc32.Checksum(b, castagnoli()) }
