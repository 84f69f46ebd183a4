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
	for _, id := range l.nodeIDs() {
		for off := int64(0); off < sizeEnd; {
			var list []extent
			list, off = l.liveIn(id, set, off)
			for _, e := range list {
				if err := l.moveExtent(ctx, id, e, set[e.seg]); err != nil {
					return err
				}
			}
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
	n.extents.Ascend(off, func(_ int64, e extent) bool {
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

// moveExtent copies what is still live of e to the head, as ordinary records. A guest that overwrites it
// meanwhile wins, because only what the index shows under the lock is written. Rotten payload cannot be
// moved: it stays where it is, and its segment with it.
func (l *Log) moveExtent(ctx context.Context, id uint64, e extent, s *segment) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p := make([]byte, e.len)
	s.acquire() // the victim is in the table until this clean-up removes it
	err := l.readData(id, s, e, p)
	s.release()
	if errs.Is(err, errs.Corrupt) {
		l.index.Lock()
		s.pinned = true
		l.index.Unlock()
		return nil
	}
	if err != nil {
		return err
	}
	d := l.newDraft(essentials{kindData, id, e.off, e.len}, p)
	defer l.freeDraft(d)
	l.appending.Lock()
	defer l.appending.Unlock()
	return l.appendLive(d, id, e, p)
}

// appendLive appends the pieces of e that the index still shows. The caller holds appending, so the
// index stands still.
func (l *Log) appendLive(d *draft, id uint64, e extent, p []byte) error {
	l.index.RLock()
	var now []extent
	if n := l.nodes[id]; n != nil {
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
		piece := l.newDraft(essentials{kindData, id, part.off, part.len}, p[part.off-e.off:part.end()-e.off])
		err := l.append(piece)
		l.freeDraft(piece)
		if err != nil {
			return err
		}
	}
	return nil
}
