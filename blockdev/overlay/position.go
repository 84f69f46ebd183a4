package overlay

import "fmt"

// Position is a place in the log. Positions are totally ordered.
type Position struct {
	Segment uint64
	Offset  int64 // bytes from the start of the segment
}

// Less says that p lies before q.
func (p Position) Less(q Position) bool {
	return p.Segment < q.Segment || p.Segment == q.Segment && p.Offset < q.Offset
}

func (p Position) String() string { return fmt.Sprintf("%016x+%d", p.Segment, p.Offset) }

// plausible says that p can be a place in a log.
func (p Position) plausible() bool {
	return p.Segment <= segmentNumberMax && p.Offset >= 0 && p.Offset <= segmentMax
}

func later(p, q Position) Position {
	if p.Less(q) {
		return q
	}
	return p
}
