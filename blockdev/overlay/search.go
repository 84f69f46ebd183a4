package overlay

import (
	"bytes"
	"encoding/binary"
)

// lookAhead learns from every record behind pos what was synced. It is done once, when something is bad.
func (r *replayer) lookAhead() error {
	if r.ahead {
		return nil
	}
	r.ahead = true
	nonzero := r.nonzero
	for pos := r.pos; ; {
		f, ok, err := r.search(pos, 0)
		if err != nil || !ok {
			r.nonzero = nonzero
			return err
		}
		r.synced = later(r.synced, f.header.synced)
		pos = Position{f.seg.number, f.off + f.seg.form.bytes(f.essentials)}
	}
}

// search finds the first valid record at or behind pos with at least the given sequence number.
func (r *replayer) search(pos Position, seq uint64) (found, bool, error) {
	r.nonzero = false
	for _, s := range r.segments {
		if s.number < pos.Segment {
			continue
		}
		off := s.form.first()
		if s.number == pos.Segment {
			off = max(off, pos.Offset)
		}
		f, ok, err := r.searchSegment(s, off, seq)
		if ok || err != nil {
			return f, ok, err
		}
	}
	return found{}, false, nil
}

func (r *replayer) searchSegment(s *segment, off int64, seq uint64) (found, bool, error) {
	for off < s.ready {
		if err := r.ctx.Err(); err != nil {
			return found{}, false, err
		}
		hit, err := r.findMagic(s, off)
		if err != nil {
			return found{}, false, err
		}
		if hit < 0 {
			off += searchStep
			continue
		}
		f, ok, err := r.decode(s, hit)
		if err != nil || ok && f.seq >= seq {
			return f, ok, err
		}
		off = hit + 8
	}
	return found{}, false, nil
}

// searchStep is how many bytes findMagic looks at.
const searchStep = 16 << 10

// findMagic returns the offset of the first aligned magic in the step at off, or -1.
func (r *replayer) findMagic(s *segment, off int64) (int64, error) {
	if r.win.file != s.file {
		r.win.reset(s.file)
	}
	b, err := r.win.at(off, searchStep)
	if err != nil {
		return 0, err
	}
	var magic [4]byte
	binary.LittleEndian.PutUint32(magic[:], recordMagic)
	for i := 0; i < len(b); {
		hit := bytes.Index(b[i:], magic[:])
		if hit < 0 {
			break
		}
		if i += hit; i%8 == 0 {
			return off + int64(i), nil
		}
		i++
	}
	r.nonzero = r.nonzero || !allZero(b)
	return -1, nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
