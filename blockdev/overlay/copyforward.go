package overlay

import (
	"context"

	"livemount/internal/errs"
)

// copyForward moves the live data of victims to the head.
func (l *Log) copyForward(ctx context.Context) error {
	victims := l.victims()
	if len(victims) == 0 {
		return nil
	}
	set := make(map[uint32]*segment, len(victims))
	for _, s := range victims {
		set[uint32(s.number)] = s
	}
	var b batch
	for _, id := range l.nodeIDs() {
		for off := int64(0); off < sizeEnd; {
			var list []extent
			list, off = l.liveIn(id, set, off)
			if err := l.move(ctx, &b, id, list, set); err != nil {
				return err
			}
		}
	}
	return l.store(&b)
}

func (l *Log) move(ctx context.Context, b *batch, id uint64, list []extent, set map[uint32]*segment) error {
	for _, e := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.load(b, id, e, set[e.seg]); err != nil {
			return err
		}
		if !b.full() {
			continue
		}
		if err := l.store(b); err != nil {
			return err
		}
	}
	return nil
}

func (l *Log) nodeIDs() []uint64 {
	l.index.RLock()
	defer l.index.RUnlock()
	ids := make([]uint64, 0, len(l.nodes))
	for id := range l.nodes {
		ids = append(ids, id)
	}
	return ids
}

// scanBatch is how many extents are looked at under the lock at once.
const scanBatch = 4096

// liveIn returns extents of a node from off on that lie in one of the segments, and where to go on.
func (l *Log) liveIn(id uint64, set map[uint32]*segment, off int64) (list []extent, next int64) {
	l.index.RLock()
	defer l.index.RUnlock()
	n := l.nodes[id]
	if n == nil {
		return nil, sizeEnd
	}
	seen := 0
	next = sizeEnd
	n.extents.from(off, func(e extent) bool {
		if seen++; seen > scanBatch {
			next = e.off
			return false
		}
		if e.isData() && set[e.seg] != nil {
			list = append(list, e)
		}
		return true
	})
	return list, next
}

// batch is what one taking of the lock appends. Its bounds keep writers waiting for little.
type batch struct {
	drafts  []*draft
	extents []extent
	bytes   int64
}

const (
	batchExtents = 32
	batchBytes   = 256 << 10
)

func (b *batch) full() bool { return len(b.drafts) >= batchExtents || b.bytes >= batchBytes }

// load reads the payload of an extent. Rotten payload cannot be moved: it stays where it is, and its
// segment with it.
func (l *Log) load(b *batch, id uint64, e extent, s *segment) error {
	d := l.emptyDraft(essentials{kindData, id, e.off, e.len})
	s.acquire() // the victim is in the table until this clean-up removes it
	err := l.readData(id, s, e, d.body())
	s.release()
	if err != nil {
		l.freeDraft(d)
		if errs.Is(err, errs.Corrupt) {
			l.index.Lock()
			s.pinned = true
			l.index.Unlock()
			return nil
		}
		return err
	}
	d.fill()
	b.drafts, b.extents, b.bytes = append(b.drafts, d), append(b.extents, e), b.bytes+e.len
	return nil
}

// store appends what is still live of a batch, as ordinary records. A guest that overwrote some of it
// meanwhile wins, because only what the index shows under the lock is written.
func (l *Log) store(b *batch) (err error) {
	l.appending.Lock()
	for i, d := range b.drafts {
		if err == nil {
			err = l.appendLive(d, b.extents[i])
		}
		l.freeDraft(d)
	}
	l.appending.Unlock()
	*b = batch{drafts: b.drafts[:0], extents: b.extents[:0]}
	l.cleaner.step()
	return err
}

// appendLive appends the pieces of e that the index still shows. The caller holds appending, so the
// index stands still.
func (l *Log) appendLive(d *draft, e extent) error {
	l.index.RLock()
	var now []extent
	if n := l.nodes[d.node]; n != nil {
		now = n.lookup(nil, e.off, e.end())
	}
	l.index.RUnlock()
	for _, part := range now {
		if !part.sameBytes(e) {
			continue
		}
		if part.len == e.len {
			return l.append(d)
		}
		piece := l.newDraft(essentials{kindData, d.node, part.off, part.len}, d.body()[part.off-e.off:part.end()-e.off])
		err := l.append(piece)
		l.freeDraft(piece)
		if err != nil {
			return err
		}
	}
	return nil
}
