package overlay

import (
	"encoding/binary"
	"errors"
	"io"
	"path"

	"livemount/internal/errs"
	"livemount/internal/vfs"
)

const (
	markMagic     = 0x314b524d4f4d4c4c // "LLMOMRK1" on disk
	markBytes     = 128
	markSlotBytes = 4096
	markFileBytes = 2 * markSlotBytes
)

// mark is the evidence, renewed after each group commit, of what was synced.
type mark struct {
	version uint32
	epoch   uint32
	mount   [16]byte
	counter uint64 // the higher one of the two slots is newer
	synced  Position
	seq     uint64 // of the last synced record
	last    essentials
}

func markName(dir string) string { return path.Join(dir, "mark") }

func (m mark) encode() []byte {
	le, b := binary.LittleEndian, make([]byte, markBytes)
	le.PutUint64(b[0:], markMagic)
	le.PutUint32(b[8:], m.version)
	le.PutUint32(b[12:], m.epoch)
	copy(b[16:], m.mount[:])
	le.PutUint64(b[32:], m.counter)
	le.PutUint64(b[40:], m.synced.Segment)
	le.PutUint64(b[48:], uint64(m.synced.Offset))
	le.PutUint64(b[56:], m.seq)
	putEssentials(b[64:], m.last)
	le.PutUint32(b[markBytes-4:], checksum(0, b[:markBytes-4]))
	return b
}

func decodeMark(b []byte) (mark, bool) {
	le := binary.LittleEndian
	if len(b) < markBytes || le.Uint64(b) != markMagic {
		return mark{}, false
	}
	m := mark{
		version: le.Uint32(b[8:]), epoch: le.Uint32(b[12:]), mount: [16]byte(b[16:32]), counter: le.Uint64(b[32:]),
		synced: Position{le.Uint64(b[40:]), int64(le.Uint64(b[48:]))}, seq: le.Uint64(b[56:]), last: getEssentials(b[64:]),
	}
	return m, m.synced.plausible() && le.Uint32(b[markBytes-4:]) == checksum(0, b[:markBytes-4])
}

// putEssentials writes 32 bytes.
func putEssentials(b []byte, e essentials) {
	le := binary.LittleEndian
	le.PutUint64(b[0:], uint64(e.kind))
	le.PutUint64(b[8:], e.node)
	le.PutUint64(b[16:], uint64(e.off))
	le.PutUint64(b[24:], uint64(e.length))
}

func getEssentials(b []byte) essentials {
	le := binary.LittleEndian
	return essentials{kind(le.Uint64(b)), le.Uint64(b[8:]), int64(le.Uint64(b[16:])), int64(le.Uint64(b[24:]))}
}

// markFile is the open mark. It is written by one goroutine at a time: the one that commits.
type markFile struct {
	file vfs.File
	next mark
}

func (m *markFile) write(epoch uint32, synced Position, seq uint64, last essentials) error {
	m.next.epoch, m.next.synced, m.next.seq, m.next.last = epoch, synced, seq, last
	m.next.counter++
	_, err := m.file.WriteAt(m.next.encode(), int64(m.next.counter%2)*markSlotBytes)
	return err
}

// openMark returns the newest valid slot, and how many slots are rotten. Without a file it returns nil.
func openMark(fsys vfs.FS, dir string, mount [16]byte) (*markFile, mark, int, error) {
	f, err := fsys.OpenRW(markName(dir))
	if errs.Is(err, errs.NotFound) {
		return nil, mark{}, 2, nil
	}
	if err != nil {
		return nil, mark{}, 0, err
	}
	best, bad, err := readMark(f, mount)
	if err != nil {
		return nil, mark{}, 0, errors.Join(err, f.Close())
	}
	return &markFile{f, mark{version: formatVersion, mount: mount, counter: best.counter}}, best, bad, nil
}

func readMark(f vfs.File, mount [16]byte) (best mark, bad int, err error) {
	b := make([]byte, markFileBytes)
	if _, err := f.ReadAt(b, 0); err != nil && err != io.EOF {
		return mark{}, 0, err
	}
	for slot := 0; slot < 2; slot++ {
		m, ok := decodeMark(b[slot*markSlotBytes:])
		switch {
		case !ok:
			bad++
		case m.version > formatVersion:
			return mark{}, 0, errs.New(errs.Newer, "mark: format version %d", m.version)
		case m.mount != mount:
			return mark{}, 0, errs.New(errs.Invalid, "mark: belongs to mount %x, not %x", m.mount, mount)
		case m.counter > best.counter:
			best = m
		}
	}
	return best, bad, nil
}

// createMark writes m to both slots, so that later writes of the file never allocate.
func createMark(fsys vfs.FS, dir string, known mark) (*markFile, error) {
	f, err := fsys.Create(markName(dir))
	if err != nil {
		return nil, err
	}
	known.version = formatVersion
	m := &markFile{f, known}
	_, err = f.WriteAt(make([]byte, markFileBytes), 0)
	for i := 0; i < 2 && err == nil; i++ {
		err = m.write(known.epoch, known.synced, known.seq, known.last)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return m, nil
}
