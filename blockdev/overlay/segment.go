package overlay

import (
	"encoding/binary"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"sync/atomic"

	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/keyring"
)

const (
	formatVersion      = 1
	segmentHeaderBytes = 4096
	segmentMagic       = 0x314745534f4d4c4c // "LLMOSEG1" on disk
	segmentMax         = 1 << 30            // bytes; offsets are kept in 32 bits in memory
	segmentNumberMax   = 1<<32 - 2          // numbers are kept in 32 bits in memory
)

// segment is one open file of the log. live is guarded by Log.index; the rest but refs is set once, or
// guarded by Log.appending for the newest segment.
type segment struct {
	number uint64
	mount  [16]byte // whose it is: an origin's in a fork
	form   form
	key    *keyring.File // of a sealed segment, unless both its headers are bad
	rotten bool          // a header was written whole, and is bad
	seed   uint32
	name   string
	file   vfs.File
	refs   atomic.Int32 // the log's table holds one, each reader one
	used   atomic.Int64 // bytes up to the end of the last record
	ready  int64        // bytes up to the end of what was written, zeroes included
	spent  bool         // a place behind the end was sealed already: nothing more may be
	live   int64        // bytes its live payload would take in new records
	pinned bool         // holds rotten payload and cannot be emptied
}

func segmentName(dir string, number uint64) string {
	return path.Join(dir, fmt.Sprintf("%016x.seg", number))
}

// parseName reads the number between prefix and suffix of a file name.
func parseName(name, prefix, suffix string) (uint64, bool) {
	hex := strings.TrimSuffix(strings.TrimPrefix(name, prefix), suffix)
	n, err := strconv.ParseUint(hex, 16, 64)
	return n, err == nil && name == fmt.Sprintf("%s%016x%s", prefix, n, suffix)
}

func (l *Log) newSegment(number uint64, f vfs.File) *segment {
	s := &segment{number: number, name: segmentName(l.opts.Dir, number), file: f, form: l.form}
	s.bind(l.opts.Mount)
	s.refs.Store(1)
	return s
}

// bind says whose bytes are accepted in the segment.
func (s *segment) bind(mount [16]byte) { s.mount, s.seed = mount, segmentSeed(mount, s.number) }

func (s *segment) acquire() *segment {
	s.refs.Add(1)
	return s
}

// release gives a reference back; the last one closes the file. An error of closing a file that was
// only read, or is synced already, loses nothing.
func (s *segment) release() {
	if s.refs.Add(-1) == 0 {
		_ = s.file.Close()
	}
}

func (s *segment) tag(off int64) uint32 { return recordTag(s.seed, off) }

// segmentHeader is the first block of a segment, and in a sealed one the second too.
type segmentHeader struct {
	version  uint32
	epoch    uint32
	mount    [16]byte
	number   uint64
	firstSeq uint64
	synced   Position
	created  int64 // Unix nanoseconds
	keyID    uint32
	salt     [32]byte
}

func (h segmentHeader) encode() []byte {
	le, b := binary.LittleEndian, make([]byte, segmentHeaderBytes)
	le.PutUint64(b[0:], segmentMagic)
	le.PutUint32(b[8:], h.version)
	le.PutUint32(b[12:], h.epoch)
	copy(b[16:], h.mount[:])
	le.PutUint64(b[32:], h.number)
	le.PutUint64(b[40:], h.firstSeq)
	le.PutUint64(b[48:], h.synced.Segment)
	le.PutUint64(b[56:], uint64(h.synced.Offset))
	le.PutUint64(b[64:], uint64(h.created))
	le.PutUint32(b[72:], h.keyID)
	copy(b[80:], h.salt[:])
	le.PutUint32(b[segmentHeaderBytes-4:], checksum(0, b[:segmentHeaderBytes-4]))
	return b
}

// decodeSegmentHeader reports false when the block is not a whole valid header.
func decodeSegmentHeader(b []byte) (segmentHeader, bool) {
	le := binary.LittleEndian
	if len(b) < segmentHeaderBytes || le.Uint64(b) != segmentMagic {
		return segmentHeader{}, false
	}
	h := segmentHeader{
		version: le.Uint32(b[8:]), epoch: le.Uint32(b[12:]), mount: [16]byte(b[16:32]),
		number: le.Uint64(b[32:]), firstSeq: le.Uint64(b[40:]),
		synced:  Position{le.Uint64(b[48:]), int64(le.Uint64(b[56:]))},
		created: int64(le.Uint64(b[64:])), keyID: le.Uint32(b[72:]), salt: [32]byte(b[80:112]),
	}
	sum := checksum(0, b[:segmentHeaderBytes-4])
	return h, h.synced.plausible() && le.Uint32(b[segmentHeaderBytes-4:]) == sum
}

// check refuses what this version must not open, and the file of another segment.
func (h segmentHeader) check(number uint64) error {
	switch {
	case h.version > formatVersion:
		return errs.New(errs.Newer, "segment %016x: format version %d", number, h.version)
	case h.number != number:
		return errs.New(errs.Corrupt, "segment %016x: the file holds segment %016x", number, h.number)
	}
	return nil
}

// window reads a file forward through one buffer.
type window struct {
	file vfs.File
	off  int64 // of data in the file
	data []byte
	buf  []byte
}

const windowBytes = 64 << 10

func newWindow() *window { return &window{buf: make([]byte, windowBytes)} }

func (w *window) reset(f vfs.File) { w.file, w.off, w.data = f, 0, nil }

// at returns n bytes at off, fewer at the end of the file. They are valid until the next call.
func (w *window) at(off, n int64) ([]byte, error) {
	if off < w.off || off+n > w.off+int64(len(w.data)) {
		if n > int64(len(w.buf)) {
			w.buf = make([]byte, n)
		}
		got, err := w.file.ReadAt(w.buf, off)
		if err != nil && err != io.EOF {
			return nil, err
		}
		w.off, w.data = off, w.buf[:got]
	}
	have := w.data[off-w.off:]
	return have[:min(n, int64(len(have)))], nil
}
