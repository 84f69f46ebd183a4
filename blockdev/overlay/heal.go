package overlay

import (
	"fmt"

	"livemount/internal/errs"
)

// lost gives up records whose effect is unknown.
func (r *replayer) lost(n uint64, what string) error {
	if !r.l.opts.AcceptDamage {
		return errs.New(errs.Corrupt, "%d synced records behind %v are lost: %s", n, r.pos, what)
	}
	r.rep.LostRecords += n
	r.rep.Rotten = true
	r.rep.note("%d synced records behind %v are lost: %s", n, r.pos, what)
	return nil
}

// lostTail handles synced records that are missing at the end: the mark tells the last one.
func (r *replayer) lostTail() error {
	if r.mark.seq == r.want && r.mark.last.plausible() {
		e := r.mark.last
		at := Position{r.mark.synced.Segment, r.mark.synced.Offset - r.l.form.bytes(e)}
		return r.restore(e, []Position{at}, r.mark.synced, r.want+1)
	}
	n := uint64(1)
	if r.mark.seq > r.want {
		n = r.mark.seq - r.want + 1
	}
	err := r.lost(n, "the log ends too early")
	r.want += n
	return err
}

// heal brings back the one record before f, of which f tells all but the payload.
func (r *replayer) heal(f found) error {
	places := []Position{r.pos}
	for _, s := range r.segments {
		if s.number > r.pos.Segment && s.number <= f.seg.number {
			places = append(places, Position{s.number, s.form.first()})
		}
	}
	return r.restore(f.prev, places, f.pos(), f.seq)
}

// restore applies a record whose header is rotten. Its payload and checksums may well be good: then
// they are found at one of the places and nothing is lost.
func (r *replayer) restore(e essentials, places []Position, next Position, want uint64) error {
	r.rep.Rotten = true
	s, off, bad, err := r.locate(e, places)
	if err != nil {
		return err
	}
	switch {
	case !e.hasPayload() || s != nil && (bad == 0 || e.kind == kindMirror): // effect finds out whether a copy is good
		r.rep.note("record %d before %v: bad header, healed", r.want, next)
		err = r.effect(e, s, off)
	case e.kind == kindData && s != nil:
		r.rep.damage(e.node, e.off, e.length, fmt.Sprintf("%d of its %d blocks are bad", bad, blocks(e.length)))
		err = r.effect(e, s, off)
	case e.kind == kindData:
		r.rep.damage(e.node, e.off, e.length, "its record was lost")
		n := r.l.node(e.node)
		n.put(extent{off: e.off, len: e.length, seg: segBad}, &r.l.live)
		n.grow(e.off + e.length)
	default:
		err = r.lost(1, "a record of the layer above")
	}
	r.step(e, next, want)
	return err
}

// locate finds where the payload of a record is: the place with the most blocks that pass.
func (r *replayer) locate(e essentials, places []Position) (best *segment, off, bad int64, err error) {
	bad = blocks(e.payload())
	for _, p := range places {
		s := r.segment(p.Segment)
		if s == nil || p.Offset < s.form.first() || !e.hasPayload() {
			continue
		}
		n, stored, err := r.badBlocks(s, p.Offset, e)
		if err != nil {
			return nil, 0, 0, err
		}
		if e.kind == kindMirror {
			payload, _ := s.unseal(p.Offset, e, stored)
			if _, whole := unmirror(payload); whole { // the table may be what is bad
				n = 0
			}
		}
		if n < bad || n == 0 && best == nil {
			best, off, bad = s, p.Offset, n
		}
	}
	return best, off, bad, nil
}
