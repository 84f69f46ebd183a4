package overlay

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"livemount/internal/errs"
)

// draft is a record on its way to the log: its buffer holds room for the header, the unmasked table
// and, when it is small, the payload. It is made without a lock.
// In a sealed log the payload is always in the buffer, at its end, and is sealed as it is appended: not before is its place
// known.
type draft struct {
	essentials
	form    form
	buf     []byte
	payload []byte // large payload, written by a second call; nil when it is in buf
	pooled  *[]byte
	pool    *sync.Pool
}

func (l *Log) newDraft(e essentials, payload []byte) *draft {
	if len(payload) > smallBytes && l.form == plain {
		d := &draft{essentials: e, buf: make([]byte, e.payloadOffset()), payload: payload}
		d.fill()
		return d
	}
	d := l.emptyDraft(e)
	copy(d.body(), payload)
	d.fill()
	return d
}

// emptyDraft is a draft whose body is still to be filled, and sealed.
func (l *Log) emptyDraft(e essentials) *draft {
	pool := &l.buffers
	if e.payload() > smallBytes {
		if l.form == plain {
			return &draft{essentials: e, buf: make([]byte, e.payloadOffset()), payload: make([]byte, e.payload())}
		}
		pool = &l.large
	}
	d := &draft{essentials: e, form: l.form, pool: pool, pooled: pool.Get().(*[]byte)}
	d.buf = (*d.pooled)[:l.form.bytes(e)]
	clear(d.buf[:e.payloadOffset()])
	clear(d.buf[e.payloadOffset()+l.form.stored(e):])
	return d
}

// stored is what the log keeps of the payload.
func (d *draft) stored() []byte {
	if d.payload != nil {
		return d.payload
	}
	return d.buf[d.payloadOffset():][:d.form.stored(d.essentials)]
}

// body is the payload.
func (d *draft) body() []byte {
	b := d.stored()
	return b[int64(len(b))-d.essentials.payload():]
}

// fill makes the table of a plain record, whose payload is complete.
func (d *draft) fill() {
	if d.form == plain {
		fillTable(d.buf[headerBytes:], d.stored(), d.form.pitch(d.essentials))
	}
}

// sealAt seals the payload for its place, where it is written now or never.
func (d *draft) sealAt(s *segment, off int64) {
	if d.form == plain {
		return
	}
	stored := d.stored()
	bound := s.binding((*d.pooled)[len(*d.pooled)-bindingBytes:], d.essentials) // on the heap already
	sealUnits(s.key, d.essentials, stored, bound, off+d.payloadOffset())
	fillTable(d.buf[headerBytes:], stored, d.form.pitch(d.essentials))
}

func (l *Log) freeDraft(d *draft) {
	if d.pooled != nil {
		d.pool.Put(d.pooled)
	}
}

// payloadLimit is how much one data record may carry, so that several fit a small segment.
func (l *Log) payloadLimit() int64 {
	return min(payloadMax, (l.opts.SegmentBytes-l.form.first())/2&^(blockBytes-1))
}

// log appends one record for a caller from outside and then runs apply, in the order of the log.
func (l *Log) log(ctx context.Context, e essentials, payload []byte, apply func()) error {
	admit := l.opts.Admit
	if e.kind == kindZero || e.kind == kindForget {
		admit = l.opts.AdmitFreeing
	}
	return l.logAdmitted(ctx, admit, e, payload, apply)
}

func (l *Log) logAdmitted(ctx context.Context, admit func(int64) error, e essentials, payload []byte, apply func()) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := admit(l.form.bytes(e)); err != nil {
		return err
	}
	if e.kind == kindData {
		if err := l.cleaner.pace(ctx, l); err != nil {
			return err
		}
	}
	d := l.newDraft(e, payload)
	defer l.freeDraft(d)
	l.appending.Lock()
	err := l.append(d)
	if err == nil && apply != nil {
		apply()
	}
	l.appending.Unlock()
	l.cleaner.consider(l, err)
	return err
}

// append writes the record at the head and shows it to readers. After an error the log is as before; the draft is of no
// more use either way. The caller holds appending.
func (l *Log) append(d *draft) error {
	if err := l.writable(); err != nil {
		return err
	}
	if l.headEnd+l.form.bytes(d.essentials) > l.opts.SegmentBytes || l.stale() {
		if err := l.roll(); err != nil {
			return err
		}
	}
	off, tag := l.headEnd, l.head.tag(l.headEnd)
	d.sealAt(l.head, off)
	h := header{essentials: d.essentials, flags: l.form.flags(), epoch: l.epoch, seq: l.seq.Load() + 1, synced: l.synced, prev: l.last}
	maskTable(d.buf[headerBytes:], blocks(d.essentials.payload()), tag)
	h.encode(d.buf, tag)
	if err := l.write(d, off); err != nil {
		return l.undo(err)
	}
	l.touch(l.head)
	l.advance(d.essentials, h.seq)
	l.apply(d.essentials, l.head, off)
	return nil
}

// stale says that nothing more may be sealed in the head: a place was used in vain, or there is a newer key.
func (l *Log) stale() bool {
	return l.head != nil && (l.head.spent || l.head.key != nil && l.head.key.KeyID() != l.opts.Keys.Newest())
}

func (l *Log) writable() error {
	if err := l.Err(); err != nil {
		return err
	}
	if l.closed { // written under appending and index
		return errs.New(errs.Invalid, "overlay log %s is closed", l.opts.Dir)
	}
	return nil
}

func (l *Log) write(d *draft, off int64) error {
	if d.payload != nil {
		if _, err := l.head.file.WriteAt(d.payload, off+d.payloadOffset()); err != nil {
			return err
		}
	}
	_, err := l.head.file.WriteAt(d.buf, off)
	return err
}

// undo removes what a failed write may have left behind the head, durably: were it to come back after a
// crash, it would be taken for the record that the next write made under the same number.
func (l *Log) undo(cause error) error {
	l.head.spent = l.form == sealed
	err := l.head.file.Truncate(l.headEnd)
	if err == nil {
		err = l.head.file.Sync()
	}
	if err != nil {
		return l.fail(err)
	}
	l.head.ready = l.headEnd
	l.touch(l.head)
	return cause
}

// advance moves the head behind a record that was written.
func (l *Log) advance(e essentials, seq uint64) {
	l.headEnd += l.form.bytes(e)
	l.head.used.Store(l.headEnd)
	l.head.ready = max(l.head.ready, l.headEnd)
	l.logBytes.Add(l.form.bytes(e))
	l.end = Position{l.head.number, l.headEnd}
	l.last = e
	l.seq.Store(seq)
}

// touch notes that the segment must be synced by the next commit.
func (l *Log) touch(s *segment) {
	if n := len(l.unsynced); n == 0 || l.unsynced[n-1] != s {
		l.unsynced = append(l.unsynced, s.acquire())
	}
}

// apply shows a record to readers.
func (l *Log) apply(e essentials, s *segment, off int64) {
	l.index.Lock()
	defer l.index.Unlock()
	switch e.kind {
	case kindData:
		n := l.node(e.node)
		n.put(extent{e.off, e.length, uint32(s.number), uint32(off), uint32(e.length), 0}, &l.live)
		n.grow(e.off + e.length)
	case kindZero:
		l.node(e.node).put(extent{off: e.off, len: e.length, seg: segZero}, &l.live)
	case kindSize:
		l.node(e.node).resize(e.off, &l.live)
	case kindMeta, kindMirror:
		if e.node != 0 {
			l.node(e.node).resize(e.off, &l.live)
		}
	case kindForget:
		l.forget(e.node)
	}
}

// roll starts a new segment. The caller holds appending.
func (l *Log) roll() error {
	number := l.nextSeg
	if number > segmentNumberMax {
		return errs.New(errs.NoSpace, "overlay log %s: segment numbers are used up", l.opts.Dir)
	}
	l.nextSeg++ // also when it fails: a number names one file only
	l.dropEmptyHead()
	s, err := l.createSegment(number)
	if err != nil {
		return err
	}
	if l.head != nil && l.head.ready > l.headEnd {
		// The zeroes ahead are of no use any more. When this fails they stay, and replay skips them.
		_ = l.head.file.Truncate(l.headEnd)
	}
	l.index.Lock()
	l.live.segments[uint32(number)] = s
	l.index.Unlock()
	l.logBytes.Add(l.form.first())
	l.head, l.headEnd, l.namesNew, l.noRoom = s, l.form.first(), true, false
	l.touch(s)
	return nil
}

// dropEmptyHead removes a head without records, in which nothing can be written any more: on a disk that takes none there
// would be ever more. The first segment stays, because it says that the log is whole. The caller holds appending.
func (l *Log) dropEmptyHead() {
	s := l.head
	if s == nil || l.headEnd > l.form.first() || s.number == 1 {
		return
	}
	if err := l.removeSegments([]*segment{s}); err != nil { // the next clean-up removes it
		l.opts.Log.Debug("empty segment stays", "segment", s.name, "err", err)
		return
	}
	l.unsynced = slices.DeleteFunc(l.unsynced, func(u *segment) bool {
		if u == s {
			u.release()
		}
		return u == s
	})
	l.head, l.headEnd = nil, l.opts.SegmentBytes // as when Open finds no room for one
}

func (l *Log) createSegment(number uint64) (*segment, error) {
	name := segmentName(l.opts.Dir, number)
	key, err := l.newKey()
	if err != nil {
		return nil, err
	}
	f, err := l.fs.Create(name)
	if err != nil {
		return nil, err
	}
	h := segmentHeader{
		version: formatVersion, epoch: l.epoch, mount: l.opts.Mount, number: number,
		firstSeq: l.seq.Load() + 1, synced: l.synced, created: l.opts.Clock.Now().UnixNano(),
	}
	if key != nil {
		h.keyID, h.salt = key.KeyID(), key.Salt()
	}
	if _, err := f.WriteAt(bytes.Repeat(h.encode(), int(l.form.first()/segmentHeaderBytes)), 0); err != nil {
		_ = f.Close()
		_ = l.fs.Remove(name) // an empty segment is harmless
		return nil, err
	}
	s := l.newSegment(number, f)
	s.key = key
	s.used.Store(l.form.first())
	s.ready = l.form.first()
	return s, nil
}

// resize drops what lies behind size and lets zeroes show there if the node grows again.
func (n *node) resize(size int64, live *liveCount) {
	n.put(extent{off: size, len: sizeEnd - size, seg: segZero}, live)
	n.size.Store(size)
	n.sizeKnown = true
}

// grow makes the node end at or behind end, if it grows.
func (n *node) grow(end int64) {
	if n.grows && end > n.size.Load() {
		n.size.Store(end)
		n.sizeKnown = true
	}
}

// sizeEnd is behind every offset of every node.
const sizeEnd = 1 << 62

// forget empties a node. The caller holds index.
func (l *Log) forget(id uint64) {
	if n := l.nodes[id]; n != nil {
		n.extents.splice(0, sizeEnd, nil, &l.live)
		if !n.attached { // found in the log only
			delete(l.nodes, id)
		}
		n.sizeKnown = false
		n.size.Store(n.given)
	}
}
