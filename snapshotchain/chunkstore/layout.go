package chunkstore

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"path"
	"strings"

	"livemount/internal/errs"
)

// FormatVersion is the version of the container format that this code writes; it reads no newer one.
const FormatVersion = 1

// Class separates containers by what they hold, so that the journal and the map can be read without
// touching the data.
type Class uint8

// The classes; the numbers are stored.
const (
	ClassData    Class = 1
	ClassMap     Class = 2
	ClassJournal Class = 3
)

func (c Class) String() string {
	switch c {
	case ClassData:
		return "data"
	case ClassMap:
		return "map"
	case ClassJournal:
		return "journal"
	default:
		return fmt.Sprintf("class %d", uint8(c))
	}
}

// HeaderBytes is how long a container is before its first record.
const HeaderBytes = headerBytes

const (
	headerMagic  = "LMCONT1\n"
	footerMagic  = "LMFOOT1\n"
	headerBytes  = 128
	trailerBytes = 80
	slotBytes    = 16
	maxSlots     = 1 << 20
)

// header is the first 128 bytes of a container.
type header struct {
	class    Class
	store    StoreID
	id       ContainerID
	gen      uint32
	keyID    uint32
	salt     [32]byte
	created  int64 // Unix nanoseconds
	draft    DraftID
	firstSeq uint64 // journal: number of its first record
}

func (h *header) encode() []byte {
	le := binary.LittleEndian
	b := append(make([]byte, 0, headerBytes), headerMagic...)
	b = le.AppendUint32(b, FormatVersion)
	b = append(b, byte(h.class), 0, 0, 0)
	b = append(b, h.store[:]...)
	b = le.AppendUint64(b, uint64(h.id))
	b = le.AppendUint32(b, h.gen)
	b = le.AppendUint32(b, h.keyID)
	b = append(b, h.salt[:]...)
	b = le.AppendUint64(b, uint64(h.created))
	b = le.AppendUint64(b, uint64(h.draft))
	b = le.AppendUint64(b, h.firstSeq)
	b = append(b, make([]byte, headerBytes-4-len(b))...)
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli()))
}

func parseContainerHeader(b []byte) (*header, error) {
	le := binary.LittleEndian
	if len(b) < headerBytes || string(b[:8]) != headerMagic {
		return nil, errs.New(errs.Corrupt, "no container header")
	}
	if crc32.Checksum(b[:headerBytes-4], castagnoli()) != le.Uint32(b[headerBytes-4:]) {
		return nil, errs.New(errs.Corrupt, "container header: checksum mismatch")
	}
	if v := le.Uint32(b[8:]); v > FormatVersion {
		return nil, errs.New(errs.Newer, "container of format %d; this version knows %d", v, FormatVersion)
	}
	return &header{
		class: Class(b[12]), store: StoreID(b[16:32]), id: ContainerID(le.Uint64(b[32:])),
		gen: le.Uint32(b[40:]), keyID: le.Uint32(b[44:]), salt: [32]byte(b[48:80]),
		created: int64(le.Uint64(b[80:])), draft: DraftID(le.Uint64(b[88:])), firstSeq: le.Uint64(b[96:]),
	}, nil
}

// slot says where a record lies in its container. len 0 marks a slot whose record was lost, or, with KindFreed,
// collected.
type slot struct {
	off, len uint32
	rawPages uint16
	kind     RecordKind
	codec    Codec
}

// encodeFooter returns the slot table, the ids and the trailer of a container whose records end at off.
func encodeFooter(h *header, off int64, slots []slot, ids [][32]byte) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, len(slots)*(slotBytes+32)+trailerBytes)
	for _, s := range slots {
		b = le.AppendUint32(b, s.off)
		b = le.AppendUint32(b, s.len)
		b = le.AppendUint16(b, s.rawPages)
		b = append(b, byte(s.kind), byte(s.codec), 0, 0, 0, 0)
	}
	tableCRC := crc32.Checksum(b, castagnoli())
	table := len(b)
	for i := range ids {
		b = append(b, ids[i][:]...)
	}
	idsCRC := crc32.Checksum(b[table:], castagnoli())
	t := len(b)
	b = append(b, footerMagic...)
	b = le.AppendUint64(b, uint64(off))
	b = le.AppendUint32(b, uint32(len(slots)))
	b = le.AppendUint32(b, tableCRC)
	b = le.AppendUint64(b, uint64(h.id))
	b = le.AppendUint32(b, h.gen)
	b = le.AppendUint32(b, h.keyID)
	b = append(b, h.salt[:]...)
	b = le.AppendUint32(b, idsCRC)
	return le.AppendUint32(b, crc32.Checksum(b[t:], castagnoli()))
}

// trailer is the last 80 bytes of a sealed container.
type trailer struct {
	off              int64 // end of the records, start of the slot table
	count            int
	tableCRC, idsCRC uint32
	id               ContainerID
	gen              uint32
	keyID            uint32
	salt             [32]byte
}

func parseTrailer(b []byte, fileSize int64) (*trailer, error) {
	le := binary.LittleEndian
	if len(b) != trailerBytes || string(b[:8]) != footerMagic {
		return nil, errs.New(errs.Corrupt, "no container footer")
	}
	if crc32.Checksum(b[:trailerBytes-4], castagnoli()) != le.Uint32(b[trailerBytes-4:]) {
		return nil, errs.New(errs.Corrupt, "container footer: checksum mismatch")
	}
	t := &trailer{
		off: int64(le.Uint64(b[8:])), count: int(le.Uint32(b[16:])), tableCRC: le.Uint32(b[20:]),
		id: ContainerID(le.Uint64(b[24:])), gen: le.Uint32(b[32:]), keyID: le.Uint32(b[36:]), salt: [32]byte(b[40:72]), idsCRC: le.Uint32(b[72:]),
	}
	if t.count > maxSlots || t.off < headerBytes || t.off+int64(t.count)*(slotBytes+32)+trailerBytes != fileSize {
		return nil, errs.New(errs.Corrupt, "container footer with impossible lengths")
	}
	return t, nil
}

func parseSlots(b []byte, t *trailer) ([]slot, error) {
	if crc32.Checksum(b, castagnoli()) != t.tableCRC {
		return nil, errs.New(errs.Corrupt, "slot table: checksum mismatch")
	}
	le := binary.LittleEndian
	slots := make([]slot, t.count)
	for i := range slots {
		e := b[i*slotBytes:]
		slots[i] = slot{le.Uint32(e), le.Uint32(e[4:]), le.Uint16(e[8:]), RecordKind(e[10]), Codec(e[11])}
		if int64(slots[i].off)+int64(slots[i].len) > t.off {
			return nil, errs.New(errs.Corrupt, "slot %d lies outside its container", i)
		}
	}
	return slots, nil
}

// fileName is the place of a container below the store's folder.
func fileName(class Class, id ContainerID, gen uint32) string {
	name := fmt.Sprintf("%016x.%08x.lmc", uint64(id), gen)
	if class == ClassData {
		return path.Join(class.String(), fmt.Sprintf("%06x", uint64(id)>>10), name)
	}
	return path.Join(class.String(), name)
}

func parseFileName(name string) (ContainerID, uint32, bool) {
	var id uint64
	var gen uint32
	base := strings.TrimSuffix(name, ".lmc")
	if len(base) != 25 || base == name {
		return 0, 0, false
	}
	if _, err := fmt.Sscanf(base, "%016x.%08x", &id, &gen); err != nil {
		return 0, 0, false
	}
	return ContainerID(id), gen, true
}
