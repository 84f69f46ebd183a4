package chunkstore

import (
	"io"

	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// scanResult is what a container's records say when its footer is missing or bad.
type scanResult struct {
	slots []slot // len 0 where a slot was lost
	ids   [][32]byte
	end   int64 // end of the last good record
	raw   int64
	bad   int64 // bytes before end that belong to no record
}

// scan reads the records in b, the content of a container from its start. A spoiled header does not end
// it: the next record is found by its magic and checksum, and its slot number tells what is missing.
func scan(s seed, b []byte) *scanResult {
	res := &scanResult{end: min(headerBytes, int64(len(b)))}
	for pos := headerBytes; pos+recordHeader <= len(b); {
		r, z, err := parseHeader(s, b[pos:])
		if err != nil || !res.plausible(r, pos) || pos+z.total() > len(b) {
			pos += recordAlign
			continue
		}
		res.add(r, pos, z.total())
		pos += z.total()
	}
	return res
}

// plausible rejects slot numbers that cannot be: numbers only grow, by one for each record, and every
// lost record took up at least a header.
func (res *scanResult) plausible(r *record, pos int) bool {
	lost := int64(r.slot) - int64(len(res.slots))
	if r.kind == KindFreed && int64(r.slot)+int64(r.rawLen) > maxSlots {
		return false
	}
	return lost >= 0 && lost <= (int64(pos)-res.end)/recordHeader && r.slot < maxSlots
}

func (res *scanResult) add(r *record, pos, total int) {
	for len(res.slots) < int(r.slot) {
		res.slots = append(res.slots, slot{})
		res.ids = append(res.ids, [32]byte{})
	}
	res.bad += int64(pos) - res.end
	res.end = int64(pos + total)
	if r.kind == KindFreed {
		res.slots, res.ids = addFreed(res.slots, res.ids, r.rawLen)
		return
	}
	res.slots = append(res.slots, slot{
		off: uint32(pos), len: uint32(total), rawPages: uint16(len(r.aux) / hashBytes), kind: r.kind, codec: r.codec,
	})
	res.ids = append(res.ids, r.id)
	res.raw += int64(r.rawLen)
}

// addFreed adds n slots that hold nothing any more.
func addFreed(slots []slot, ids [][32]byte, n int) ([]slot, [][32]byte) {
	for range n {
		slots, ids = append(slots, slot{kind: KindFreed}), append(ids, [32]byte{})
	}
	return slots, ids
}

// scanLimit bounds the memory that a scan takes: the largest container and one record more.
const scanLimit = 128 << 20

// readAll returns the first limit bytes of a file, or fewer when it is shorter.
func readAll(f vfs.File, limit int64) ([]byte, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	b := make([]byte, min(size, limit))
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	return b[:n], nil
}

// readFooter loads the slot table, and the ids when asked for.
func readFooter(f vfs.File, id ContainerID, withIDs bool) ([]slot, [][32]byte, error) {
	size, err := f.Size()
	if err != nil {
		return nil, nil, err
	}
	t, err := readTrailer(f, size)
	if err != nil {
		return nil, nil, err
	}
	if t.id != id {
		return nil, nil, errs.New(errs.Corrupt, "footer of container %s in the place of %s", t.id, id)
	}
	b := make([]byte, t.count*slotBytes)
	if err := readFull(f, b, t.off); err != nil {
		return nil, nil, err
	}
	slots, err := parseSlots(b, t)
	if err != nil || !withIDs {
		return slots, nil, err
	}
	ids, err := readIDs(f, t)
	return slots, ids, err
}

func readTrailer(f vfs.File, size int64) (*trailer, error) {
	if size < headerBytes+trailerBytes {
		return nil, errs.New(errs.Corrupt, "no container footer")
	}
	b := make([]byte, trailerBytes)
	if err := readFull(f, b, size-trailerBytes); err != nil {
		return nil, err
	}
	return parseTrailer(b, size)
}

func readIDs(f vfs.File, t *trailer) ([][32]byte, error) {
	b := make([]byte, t.count*32)
	if err := readFull(f, b, t.off+int64(t.count)*slotBytes); err != nil {
		return nil, err
	}
	if crc(b) != t.idsCRC {
		return nil, errs.New(errs.Corrupt, "id table: checksum mismatch")
	}
	ids := make([][32]byte, t.count)
	for i := range ids {
		ids[i] = [32]byte(b[i*32:])
	}
	return ids, nil
}

// readFull reads all of p; a file that ends before is corrupt.
func readFull(f io.ReaderAt, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == io.EOF {
		return errs.New(errs.Corrupt, "file ends at %d, before %d", off+int64(n), off+int64(len(p)))
	}
	return err
}
