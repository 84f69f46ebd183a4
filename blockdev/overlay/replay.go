package overlay

import (
	"context"
	"io"

	"livemount/internal/errs"
)

// replayer reads the records from a checkpoint, or from the start, to the end of the log.
type replayer struct {
	l        *Log
	ctx      context.Context
	rep      *Report
	win      *window
	segments []*segment      // all, ascending
	headers  []segmentHeader // of those whose header is good
	mark     mark
	epoch    uint32 // the highest that was seen

	pos     Position // behind the last good record
	want    uint64   // sequence number of the next record
	last    essentials
	synced  Position // the best that is known
	ahead   bool     // synced takes account of every record of the log
	nonzero bool     // the last search passed bytes that are not zero

	firstSynced Position // synced, as known when replay began
}

// found is a valid record at a place.
type found struct {
	header
	seg *segment
	off int64
}

func (f found) pos() Position { return Position{f.seg.number, f.off} }

func (r *replayer) begin(h checkpointHead) {
	r.pos, r.want, r.last = h.at, h.nextSeq, h.last
	if h.at == (Position{}) && len(r.segments) > 0 {
		r.pos = Position{r.segments[0].number, r.l.form.first()}
	}
	r.synced = later(r.synced, h.at)
	r.firstSynced = r.synced
}

// run replays until the end or the tear.
func (r *replayer) run() error {
	for {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		f, good, err := r.next()
		if err != nil {
			return err
		}
		done := false
		if good {
			done, err = r.take(f)
		} else {
			done, err = r.broken()
		}
		if done || err != nil {
			return err
		}
	}
}

// next decodes the record at pos.
func (r *replayer) next() (found, bool, error) {
	s := r.segment(r.pos.Segment)
	if s == nil {
		return found{}, false, nil
	}
	f, good, err := r.decode(s, r.pos.Offset)
	return f, good && f.seq == r.want, err
}

func (r *replayer) segment(number uint64) *segment { return r.l.live.segments[uint32(number)] }

func (r *replayer) decode(s *segment, off int64) (found, bool, error) {
	if r.win.file != s.file {
		r.win.reset(s.file)
	}
	if off < s.form.first() || off+headerBytes > s.ready {
		return found{}, false, nil
	}
	b, err := r.win.at(off, headerBytes+tableMax)
	if err != nil {
		return found{}, false, err
	}
	h, ok := decodeHeader(b, s.tag(off))
	if !ok {
		return found{}, false, nil
	}
	if h.unsupported(s.form) {
		return found{}, false, errs.New(errs.Newer, "record at %v: kind %d, flags %d, key %d", Position{s.number, off}, h.kind, h.flags, h.keyID)
	}
	return found{h, s, off}, true, nil
}

// whole checks the payload of a record that is not known to be synced: it may be torn. Rotten payload of
// a synced record is left to its readers, which find it at the exact range.
func (r *replayer) whole(f found) (bool, error) {
	if r.pos.Less(r.synced) || !f.hasPayload() {
		return true, nil
	}
	bad, _, err := r.badBlocks(f.seg, f.off, f.essentials)
	if err != nil {
		return false, err
	}
	// When no header reached the disk, nothing in the segment was synced.
	locked := f.seg.form == sealed && f.seg.key == nil && !f.seg.rotten
	if bad == 0 && !locked {
		return true, nil
	}
	if err := r.lookAhead(); err != nil {
		return false, err
	}
	r.nonzero = true
	return r.pos.Less(r.synced), nil
}

// badBlocks reads the table of a record and what is stored of its payload, and counts the blocks that fail their checksums.
func (r *replayer) badBlocks(s *segment, off int64, e essentials) (bad int64, stored []byte, err error) {
	size, pitch := s.form.stored(e), s.form.pitch(e)
	b := make([]byte, tableBytes(e.payload())+size)
	n, err := s.file.ReadAt(b, off+headerBytes)
	if err != nil && err != io.EOF {
		return 0, nil, err
	}
	table, stored := b[:tableBytes(e.payload())], b[tableBytes(e.payload()):]
	have := int64(n) - int64(len(table)) // bytes of it that the file has
	tag := s.tag(off)
	for i := range blocks(e.payload()) {
		lo, hi := i*pitch, min((i+1)*pitch, size)
		if hi > have || !blockGood(table[4*i:], stored[lo:hi], tag) {
			bad++
		}
	}
	return bad, stored, nil
}

// take applies a good record and goes behind it, or ends replay before a torn one. pos is not moved to
// the start of another segment before there is a whole record: it stays the end of the last record.
func (r *replayer) take(f found) (done bool, err error) {
	whole, err := r.whole(f)
	if err != nil {
		return false, err
	}
	if !whole {
		return true, r.tear()
	}
	if err := r.effect(f.essentials, f.seg, f.off); err != nil {
		return false, err
	}
	r.epoch = max(r.epoch, f.epoch)
	r.synced = later(r.synced, f.header.synced)
	r.step(f.essentials, Position{f.seg.number, f.off + f.seg.form.bytes(f.essentials)}, f.seq+1)
	return false, nil
}

func (r *replayer) step(e essentials, pos Position, want uint64) {
	r.last, r.pos, r.want = e, pos, want
	r.rep.Records++
	if s := r.segment(pos.Segment); s != nil {
		s.used.Store(pos.Offset)
	}
}

// effect shows a record in the index, or to the layer above.
func (r *replayer) effect(e essentials, s *segment, off int64) error {
	if !e.isMeta() {
		r.l.apply(e, s, off)
		return nil
	}
	bad, stored, err := r.badBlocks(s, off, e)
	if err != nil {
		return err
	}
	payload, forged := s.unseal(off, e, stored)
	if bad += forged; e.kind == kindMirror {
		whole, ok := unmirror(payload)
		if ok && bad > 0 {
			r.rep.Rotten = true
			r.rep.note("record %d at %v: one copy of its payload is bad, healed", r.want, Position{s.number, off})
		}
		if payload = whole; ok {
			bad = 0
		} else {
			bad = 1
		}
	}
	if bad > 0 {
		return r.lost(1, "the payload of a record of the layer above is bad")
	}
	if r.l.opts.Meta == nil {
		return errs.New(errs.Invalid, "the log holds records of a layer above; none was given")
	}
	r.l.logMeta = true
	r.l.apply(e, s, off)
	return r.l.opts.Meta(payload)
}

// broken decides what it means that there is no good record at pos: the end of a segment, a tear, or
// rot. It goes on behind what was lost, or reports that the log ends here.
func (r *replayer) broken() (done bool, err error) {
	f, ok, err := r.search(r.pos, r.want)
	if err != nil {
		return false, err
	}
	if ok && f.seq == r.want && f.seg.number > r.pos.Segment && f.off == r.l.form.first() {
		return r.take(f)
	}
	if err := r.lookAhead(); err != nil {
		return false, err
	}
	switch {
	case !r.pos.Less(r.synced):
		return true, r.tear()
	case !ok:
		return true, r.lostTail()
	case f.seq == r.want+1 && f.prev.plausible():
		return false, r.heal(f)
	}
	err = r.lost(f.seq-r.want, "the next good record does not tell what they were")
	r.want, r.pos = f.seq, f.pos()
	return false, err
}

// tear ends replay at pos. What lies behind was never synced.
func (r *replayer) tear() error {
	for _, s := range r.segments {
		if s.number == r.pos.Segment && r.nonzero {
			r.rep.CutBytes += max(0, s.ready-r.pos.Offset)
		}
		if s.number > r.pos.Segment {
			r.rep.CutBytes += max(0, s.ready-s.form.first())
		}
	}
	return nil
}
