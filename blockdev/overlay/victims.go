package overlay

import (
	"cmp"
	"slices"
)

// victims are the segments to be emptied, those with the fewest live bytes first, until as little is
// dead as half of what is live. One clean-up copies no more than an eighth of what is live, because the
// copies need room before the originals go.
func (l *Log) victims() []*segment {
	l.appending.Lock()
	head := l.head
	l.appending.Unlock()
	l.index.RLock()
	defer l.index.RUnlock()
	var list []*segment
	dead := l.logBytes.Load() - l.live.bytes
	for _, s := range l.live.segments {
		switch {
		case s == head || s.pinned:
		case s.live == 0:
			dead -= s.used.Load()
		case s.live < s.used.Load()*3/4:
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b *segment) int {
		return cmp.Or(cmp.Compare(a.live*b.used.Load(), b.live*a.used.Load()), cmp.Compare(a.number, b.number))
	})
	budget := max(l.live.bytes/8, 2*l.opts.SegmentBytes)
	for i, s := range list {
		if budget -= s.live; dead <= l.live.bytes/2 || budget < 0 {
			return list[:i]
		}
		dead -= s.used.Load() - s.live
	}
	return list
}
