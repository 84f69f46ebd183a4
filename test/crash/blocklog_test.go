package crash

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"livemount/test/harness"
)

// The log of a disk's writes and flushes, in the order in which the disk was done with them, as QEMU's
// driver blklogwrites and Linux's dm-log-writes write it
// (https://docs.kernel.org/admin-guide/device-mapper/log-writes.html). Numbers are little-endian. The first
// sector is the superblock: magic, version, number of entries (u64 each), size of a sector (u32). Each entry
// is a sector with the first sector written, the number of sectors, flags and the length of a mark (u64
// each), and behind it the data, but for a discard.
const (
	blockMagic = 0x6a736677736872

	entryFlush   = 1 // what was written before is kept from here on
	entryFUA     = 2 // this write is kept, whatever happens
	entryDiscard = 4
	entryMark    = 8 // changes nothing

	blockSuperBytes = 28
	blockEntryBytes = 32
)

// blockEntry is one of the log. Offsets and lengths are bytes.
type blockEntry struct {
	off, n int64 // on the disk
	flags  uint64
	data   int64 // where the data begins in the log; none for a discard
}

func (e *blockEntry) has(flag uint64) bool { return e.flags&flag != 0 }

type blockLog struct {
	entries    []blockEntry
	sectorSize int64
}

// readBlockSuper returns how many entries there are and how long a sector is.
func readBlockSuper(r io.ReaderAt) (entries, sectorSize int64, err error) {
	var b [blockSuperBytes]byte
	if _, err := r.ReadAt(b[:], 0); err != nil {
		return 0, 0, fmt.Errorf("read superblock: %w", err)
	}
	if m := binary.LittleEndian.Uint64(b[0:]); m != blockMagic {
		return 0, 0, fmt.Errorf("magic %#x", m)
	}
	if v := binary.LittleEndian.Uint64(b[8:]); v != 1 {
		return 0, 0, fmt.Errorf("version %d", v)
	}
	n, size := binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint32(b[24:])
	if size < 512 || size > 1<<20 || size&(size-1) != 0 {
		return 0, 0, fmt.Errorf("sector of %d bytes", size)
	}
	if n > math.MaxInt64/uint64(size) {
		return 0, 0, fmt.Errorf("%d entries", n)
	}
	return int64(n), int64(size), nil
}

// readBlockLog reads the entries of a log of logBytes, of a disk of diskBytes.
func readBlockLog(r io.ReaderAt, logBytes, diskBytes int64) (*blockLog, error) {
	count, size, err := readBlockSuper(r)
	if err != nil {
		return nil, err
	}
	l := &blockLog{sectorSize: size}
	if count > logBytes/size {
		return nil, fmt.Errorf("%d entries in %d bytes", count, logBytes)
	}
	at := size
	for i := range count {
		e, next, err := readBlockEntry(r, at, size, diskBytes)
		if err == nil && next > logBytes {
			err = fmt.Errorf("ends at %d, behind the log's %d bytes", next, logBytes)
		}
		if err != nil {
			return nil, fmt.Errorf("entry %d at %d: %w", i, at, err)
		}
		l.entries = append(l.entries, e)
		at = next
	}
	return l, nil
}

func readBlockEntry(r io.ReaderAt, at, size, diskBytes int64) (e blockEntry, next int64, err error) {
	var b [blockEntryBytes]byte
	if _, err := r.ReadAt(b[:], at); err != nil {
		return e, 0, err
	}
	sector, sectors := binary.LittleEndian.Uint64(b[0:]), binary.LittleEndian.Uint64(b[8:])
	flags, mark := binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
	if flags&^(entryFlush|entryFUA|entryDiscard|entryMark) != 0 {
		return e, 0, fmt.Errorf("flags %#x", flags)
	}
	most := uint64(diskBytes / size)
	if sectors > most || sector > most-sectors {
		return e, 0, fmt.Errorf("%d sectors from %d on, of %d", sectors, sector, most)
	}
	if mark > uint64(size) {
		return e, 0, fmt.Errorf("a mark of %d bytes", mark)
	}
	e = blockEntry{off: int64(sector) * size, n: int64(sectors) * size, flags: flags, data: at + size}
	next = at + size
	switch {
	case e.has(entryMark):
		e.n = 0
		if mark > 0 {
			next += size
		}
	case !e.has(entryDiscard):
		next += e.n
	}
	return e, next, nil
}

// blockLogBytes makes a log.
func blockLogBytes(entries uint64, sectorSize uint32, list ...[4]uint64) []byte {
	b := binary.LittleEndian.AppendUint64(nil, blockMagic)
	b = binary.LittleEndian.AppendUint64(b, 1)
	b = binary.LittleEndian.AppendUint64(b, entries)
	b = binary.LittleEndian.AppendUint32(b, sectorSize)
	b = append(b, make([]byte, 512-len(b))...)
	for _, e := range list {
		start := len(b)
		for _, v := range e {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
		b = append(b, make([]byte, 512-(len(b)-start))...)
		switch {
		case e[2]&entryMark != 0:
			b = append(b, make([]byte, 512)...)
		case e[2]&entryDiscard == 0:
			b = append(b, bytes.Repeat([]byte{byte(e[0])}, int(e[1])*512)...)
		}
	}
	return b
}

func TestBlockLogIsRead(t *testing.T) {
	b := blockLogBytes(5, 512, [4]uint64{7, 2, 0, 0}, [4]uint64{0, 0, entryFlush, 0}, [4]uint64{1, 4, entryDiscard, 0},
		[4]uint64{0, 0, entryMark, 5}, [4]uint64{9, 1, entryFUA, 0})
	l, err := readBlockLog(bytes.NewReader(b), int64(len(b)), 10*512)
	if err != nil {
		t.Fatal(err)
	}
	want := []blockEntry{
		{off: 7 * 512, n: 1024, data: 1024}, {flags: entryFlush, data: 5 * 512}, {off: 512, n: 2048, flags: entryDiscard, data: 6 * 512},
		{flags: entryMark, data: 7 * 512}, {off: 9 * 512, n: 512, flags: entryFUA, data: 9 * 512},
	}
	if fmt.Sprint(l.entries) != fmt.Sprint(want) || b[want[4].data] != 9 {
		t.Errorf("%v, not %v", l.entries, want)
	}
}

func TestBlockLogThatIsBadIsRefused(t *testing.T) {
	good := blockLogBytes(1, 512, [4]uint64{7, 2, 0, 0})
	spoilt := func(at int, v byte) []byte {
		b := bytes.Clone(good)
		b[at] = v
		return b
	}
	for _, c := range []struct {
		why string
		b   []byte
	}{
		{"superblock", good[:20]},
		{"magic", spoilt(3, 0)},
		{"version 2", spoilt(8, 2)},
		{"sector of", spoilt(24, 1)},
		{"entries", spoilt(22, 1)},
		{"2 entries in", blockLogBytes(2, 512)},
		{"behind the log", good[:len(good)-1]},
		{"flags", spoilt(512+16, 16)},
		{"9 sectors from 7", spoilt(512+8, 9)},
		{"sectors from", spoilt(512+15, 255)},
		{"sectors from", spoilt(512+7, 255)},
		{"a mark of", spoilt(512+31, 1)},
	} {
		_, err := readBlockLog(bytes.NewReader(c.b), int64(len(c.b)), 10*512)
		if err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v", c.why, err)
		}
	}
}

// TestBlockLogStaysOnTheDisk spoils logs at random: what is read of them lies inside the disk and the log.
func TestBlockLogStaysOnTheDisk(t *testing.T) {
	const disk = 16 * 512
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	good := blockLogBytes(4, 512, [4]uint64{7, 2, 0, 0}, [4]uint64{0, 0, entryFlush, 0}, [4]uint64{1, 4, entryDiscard, 0}, [4]uint64{0, 0, entryMark, 5})
	read := 0
	for range 20_000 {
		b := bytes.Clone(good[:len(good)-rng.IntN(2)*rng.IntN(len(good)-1)])
		for range 1 + rng.IntN(3) {
			b[min(rng.IntN(len(good)/512)*512+rng.IntN(blockEntryBytes), len(b)-1)] = byte(rng.IntN(256) >> rng.IntN(8))
		}
		l, err := readBlockLog(bytes.NewReader(b), int64(len(b)), disk)
		if err != nil {
			continue
		}
		read++
		for _, e := range l.entries {
			if e.off < 0 || e.n < 0 || e.off+e.n > disk {
				t.Fatalf("%+v is not on the disk", e)
			}
			if !e.has(entryDiscard) && (e.data < 0 || e.data+e.n > int64(len(b))) {
				t.Fatalf("%+v is not in the log's %d bytes", e, len(b))
			}
		}
	}
	t.Logf("%d of 20000 were read", read)
}
