package overlay

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// imageReader reads the stream of a checkpoint, taking each block from whichever copy is good.
type imageReader struct {
	blockDecoder
	file   vfs.File
	image  int64
	index  uint32
	block  []byte
	bufs   [2][blockBytes]byte
	healed int // blocks that were bad in one copy
}

// Read implements io.Reader.
func (r *imageReader) Read(p []byte) (int, error) {
	if len(r.block) == 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.block)
	r.block = r.block[n:]
	return n, nil
}

// next reads a block in both copies: also a second copy that is not needed, so that rot in it is
// reported while there is a good one.
func (r *imageReader) next() error {
	off := int64(r.index) * blockBytes
	if off >= r.image {
		return io.EOF
	}
	var good []byte
	var cause error
	for i, base := range [2]int64{0, r.image} {
		payload, err := r.read(r.bufs[i][:], base+off)
		if err != nil && !errs.Is(err, errs.Corrupt) {
			return err
		}
		if err != nil {
			r.healed++
			cause = err
		} else if good == nil {
			good = payload
		}
	}
	if good == nil {
		return fmt.Errorf("block %d, both copies: %w", r.index, cause)
	}
	r.index++
	r.block = good
	return nil
}

func (r *imageReader) read(b []byte, off int64) ([]byte, error) {
	if _, err := r.file.ReadAt(b, off); err != nil {
		return nil, err
	}
	payload, ok, err := r.decode(b, r.index)
	if err == nil && !ok {
		err = errs.New(errs.Corrupt, "checksum mismatch")
	}
	return payload, err
}

// loadCheckpoint fills the log from a checkpoint. On an error the log holds a part of it.
func (l *Log) loadCheckpoint(number uint64, rep *Report) (h checkpointHead, err error) {
	f, err := l.fs.Open(checkpointName(l.opts.Dir, number))
	if err != nil {
		return h, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return h, err
	}
	if size == 0 || size%(2*blockBytes) != 0 {
		return h, errs.New(errs.Corrupt, "checkpoint %016x: %d bytes", number, size)
	}
	r := &imageReader{blockDecoder: blockDecoder{form: l.form, id: checkpointID{l.opts.Mount, number}, keys: l.opts.Keys}, file: f, image: size / 2}
	if h, err = l.decodeCheckpoint(r, number, rep); err != nil {
		return h, fmt.Errorf("checkpoint %016x: %w", number, err)
	}
	if r.healed > 0 {
		rep.note("checkpoint %016x: %d of its blocks are bad in one copy", number, r.healed)
		rep.Rotten = true
	}
	return h, nil
}

func (l *Log) decodeCheckpoint(r *imageReader, number uint64, rep *Report) (checkpointHead, error) {
	h, err := readCheckpointHead(r)
	if err != nil {
		return h, err
	}
	if h.mount != l.opts.Mount || h.number != number || h.imageBytes(l.form) != r.image {
		return h, errs.New(errs.Corrupt, "mount %x, number %016x, %d bytes", h.mount, h.number, h.imageBytes(l.form))
	}
	if err := l.decodeOrigins(r, h); err != nil {
		return h, err
	}
	left := h.extents
	for range h.nodes {
		if left, err = l.decodeNode(r, h.version, left, rep); err != nil {
			return h, err
		}
	}
	return h, l.decodeUpper(r, h)
}

func readCheckpointHead(r *imageReader) (checkpointHead, error) {
	b := make([]byte, checkpointHeader1)
	if _, err := io.ReadFull(r, b); err != nil {
		return checkpointHead{}, torn(err)
	}
	if binary.LittleEndian.Uint32(b[8:]) == checkpointVersion {
		b = append(b, make([]byte, checkpointHeader-checkpointHeader1)...)
		if _, err := io.ReadFull(r, b[checkpointHeader1:]); err != nil {
			return checkpointHead{}, torn(err)
		}
	}
	return decodeCheckpointHead(b)
}

// decodeOrigins binds the segments that were taken over to their mounts.
func (l *Log) decodeOrigins(r *imageReader, h checkpointHead) error {
	b, before := make([]byte, originEntryBytes), uint64(0)
	for range h.origins {
		if _, err := io.ReadFull(r, b); err != nil {
			return torn(err)
		}
		o := decodeOrigin(b)
		if o.number <= before || o.number >= h.at.Segment || o.mount == h.mount {
			return errs.New(errs.Corrupt, "impossible origin of segment %016x", o.number)
		}
		if s := l.live.segments[uint32(o.number)]; s != nil {
			s.bind(o.mount)
		}
		before = o.number
	}
	return nil
}

// torn makes a stream that ends too early a corruption.
func torn(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return errs.New(errs.Corrupt, "the stream ends too early")
	}
	return err
}

func (l *Log) decodeNode(r *imageReader, version uint32, left uint64, rep *Report) (uint64, error) {
	b := make([]byte, nodeEntryBytes)
	if _, err := io.ReadFull(r, b); err != nil {
		return 0, torn(err)
	}
	id, size, known, count := decodeNodeEntry(b)
	if count > left || size < 0 {
		return 0, errs.New(errs.Corrupt, "node %d has %d extents and size %d", id, count, size)
	}
	n := l.node(id)
	if known {
		n.sizeKnown = true
		n.size.Store(size)
	}
	read := extentReader{l: l, r: r, rep: rep, n: n, left: count, fill: filler{m: &n.extents}}
	if version == 1 {
		return left - count, read.entries()
	}
	return left - count, read.leaves()
}

func (l *Log) decodeUpper(r *imageReader, h checkpointHead) error {
	if !h.meta {
		return nil
	}
	if l.opts.Restore == nil {
		return errs.New(errs.Invalid, "overlay log %s holds state of a layer above; none was given", l.opts.Dir)
	}
	upper := slices.Grow([]byte(nil), int(min(h.snapshot, uint64(r.image))))[:0]
	upper, err := readAll(r, upper, int64(h.snapshot))
	if err != nil {
		return torn(err)
	}
	l.logMeta = true
	return l.opts.Restore(upper)
}

func readAll(r io.Reader, b []byte, n int64) ([]byte, error) {
	b = b[:n] // fits: the image is longer than the snapshot
	_, err := io.ReadFull(r, b)
	return b, err
}
