package overlay

import (
	"context"
	"io"

	"livemount/blockdev"
	"livemount/internal/errs"
)

// piece is a range to read, with a reference to its segment when it is data.
type piece struct {
	extent
	from *segment
}

// readAt fills p with the bytes of n at off.
func (l *Log) readAt(ctx context.Context, n *node, p []byte, off int64) error {
	var extents [8]extent
	var pieces [8]piece
	list, err := l.pieces(n, extents[:0], pieces[:0], off, off+int64(len(p)))
	if err != nil {
		return err
	}
	return l.readPieces(ctx, n, list, p, off)
}

// pieces looks a range up and holds its segments, so that clean-up does not close them.
func (l *Log) pieces(n *node, extents []extent, list []piece, off, end int64) ([]piece, error) {
	l.index.RLock()
	defer l.index.RUnlock()
	if l.closed {
		return nil, errs.New(errs.Invalid, "overlay log %s is closed", l.opts.Dir)
	}
	if err := blockdev.CheckRange(n.size.Load(), off, end-off); err != nil { // it may have become shorter just now
		return nil, err
	}
	return n.pieces(l.live.segments, extents, list, off, end), nil
}

// pieces appends what [off, end) is made of, with references to the segments.
func (n *node) pieces(segments map[uint32]*segment, extents []extent, list []piece, off, end int64) []piece {
	for _, e := range n.lookup(extents, off, end) {
		pc := piece{extent: e}
		if e.isData() {
			pc.from = segments[e.seg].acquire()
		}
		list = append(list, pc)
	}
	return list
}

// readPieces fills p and gives the references back.
func (l *Log) readPieces(ctx context.Context, n *node, list []piece, p []byte, off int64) error {
	err := l.fill(ctx, n, list, p, off)
	for _, pc := range list {
		if pc.from != nil {
			pc.from.release()
		}
	}
	return err
}

func (l *Log) fill(ctx context.Context, n *node, list []piece, p []byte, off int64) error {
	at := off
	for _, pc := range list {
		if err := n.readBase(ctx, p[at-off:pc.off-off], at); err != nil {
			return err
		}
		if err := l.readPiece(ctx, n, pc, p[pc.off-off:pc.end()-off]); err != nil {
			return err
		}
		at = pc.end()
	}
	return n.readBase(ctx, p[at-off:], at)
}

// readBase fills p from below the overlay; behind the end of the base are zeroes.
func (n *node) readBase(ctx context.Context, p []byte, off int64) error {
	inside := min(max(0, n.baseSize()-off), int64(len(p)))
	clear(p[inside:])
	if inside == 0 {
		return nil
	}
	return n.base.ReadAt(ctx, p[:inside], off)
}

func (l *Log) readPiece(ctx context.Context, n *node, pc piece, p []byte) error {
	switch pc.seg {
	case segZero:
		clear(p)
		return nil
	case segBad:
		return corrupt(n.id, pc.extent, "its record was lost")
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return l.readData(n.id, pc.from, pc.extent, p)
}

func corrupt(node uint64, e extent, why string) error {
	return errs.New(errs.Corrupt, "read overlay node %d, %d bytes at %d: %s", node, e.len, e.off, why)
}

// readData reads payload in steps that fit a pooled buffer together with their checksums.
func (l *Log) readData(id uint64, s *segment, e extent, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	buf := l.buffers.Get().(*[]byte)
	defer l.buffers.Put(buf)
	const step = smallBytes / 2
	for e.len > 0 {
		n := min(e.len, step-int64(e.skip)%blockBytes)
		part := e.cut(e.off, e.off+n)
		if err := readPart(id, s, part, p[:n], *buf); err != nil {
			return err
		}
		p, e.len = p[n:], e.len-n
		e.off, e.skip = e.off+n, e.skip+uint32(n)
	}
	return nil
}

// readPart reads the whole blocks that hold e, checks them and copies e out. When the checksums lie near
// the blocks, as in every record of one block, both are read by one call.
func readPart(id uint64, s *segment, e extent, p, buf []byte) error {
	rec := essentials{kindData, id, e.off - int64(e.skip), int64(e.size)}
	pitch := s.form.pitch(rec)
	first := int64(e.skip) / blockBytes
	last := (int64(e.skip) + e.len - 1) / blockBytes
	stop := min((last+1)*pitch, s.form.stored(rec))
	table := int64(e.rec) + headerBytes + 4*first
	body := int64(e.rec) + rec.payloadOffset() + first*pitch
	n := stop - first*pitch
	bound := s.binding(buf[len(buf)-bindingBytes:], rec)
	buf = buf[:len(buf)-bindingBytes]
	var entries, payload []byte
	var err error
	if gap := body - table; gap+n <= int64(len(buf)) && gap <= nearBytes {
		err = readFull(s, buf[:gap+n], table)
		entries, payload = buf[:gap], buf[gap:gap+n]
	} else {
		entries, payload = buf[:4*(last-first+1)], buf[4*blocks(smallBytes):]
		payload = payload[:n]
		if err = readFull(s, entries, table); err == nil {
			err = readFull(s, payload, body)
		}
	}
	if err == io.EOF {
		return corrupt(id, e, "segment "+s.name+" is too short")
	}
	if err != nil {
		return err
	}
	if b := firstBadBlock(entries, payload, pitch, s.tag(int64(e.rec))); b >= 0 {
		bad := rec.off + (first+int64(b))*blockBytes
		return corrupt(id, clip(e, bad, bad+blockBytes), "checksum mismatch in segment "+s.name)
	}
	skip := int64(e.skip) - first*blockBytes
	if s.form == plain {
		copy(p, payload[skip:])
		return nil
	}
	b, err := s.openBlocks(p, payload, bound, skip, body)
	if err != nil {
		bad := rec.off + (first+b)*blockBytes
		return corrupt(id, clip(e, bad, bad+blockBytes), err.Error())
	}
	return nil
}

// openBlocks fills p with what was sealed in stored blocks, behind the first skip bytes. at is the place of stored in the
// segment. An error is that of the block whose number is returned.
func (s *segment) openBlocks(p, stored, bound []byte, skip, at int64) (block int64, err error) {
	for len(p) > 0 {
		from := stored[:min(blockBytes+int64(sealed), int64(len(stored)))]
		n := int64(len(from)) - int64(sealed)
		dst := from[:0]
		if whole := skip == 0 && n <= int64(len(p)); whole {
			dst = p[:0:n]
		}
		b, err := s.openUnit(dst, from, bound, at)
		if err != nil {
			return block, err
		}
		if skip > 0 || n > int64(len(p)) {
			n = int64(copy(p, b[skip:]))
			skip = 0
		}
		p, stored, at, block = p[n:], stored[len(from):], at+int64(len(from)), block+1
	}
	return block, nil
}

// nearBytes is how far checksums may lie from their blocks to be read along with them.
const nearBytes = 4096

func clip(e extent, lo, hi int64) extent {
	lo, hi = max(lo, e.off), min(hi, e.end())
	return extent{off: lo, len: hi - lo}
}

func readFull(s *segment, b []byte, off int64) error {
	n, err := s.file.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	return err
}

// firstBadBlock returns the number of the first block that fails its checksum, or -1.
func firstBadBlock(entries, payload []byte, pitch int64, tag uint32) int {
	for i := 0; len(payload) > 0; i++ {
		n := min(int(pitch), len(payload))
		if !blockGood(entries[4*i:], payload[:n], tag) {
			return i
		}
		payload = payload[n:]
	}
	return -1
}
