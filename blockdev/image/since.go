package image

import (
	"context"
)

// maxRanges bounds the answer of AllocatedSince; more is slower than comparing.
const maxRanges = 1 << 20

// Range is a range of a disk, in bytes.
type Range struct{ Off, Len int64 }

// AllocatedSince returns what may differ between this disk and an image behind it, which identity stands
// for: the ranges that the images in front of it store or zero, and what a change of size can have changed.
// The ranges ascend and do not touch. It is false when no image of the chain has that identity now, or when
// there are more than 1,048,576 ranges. The answer holds for as long as Identity stays what it is.
func (q *Qcow2) AllocatedSince(ctx context.Context, identity string) ([]Range, bool, error) {
	k := q.level(identity)
	if k < 0 {
		return nil, false, nil
	}
	// What lies behind the end of an image in between reads as zeroes, whatever the images behind it hold.
	least := q.Size()
	for _, l := range q.layers[:k+1] {
		least = min(least, l.size)
	}
	var list []Range
	c := newCursor(q.layers[:k])
	for off := int64(0); off < least && len(list) <= maxRanges; {
		r, err := c.next(ctx, off, least)
		if err != nil {
			return nil, false, err
		}
		if r.kind != runNone {
			list = addRange(list, off, r.n)
		}
		off += r.n
	}
	list = addRange(list, least, q.Size()-least)
	return list, len(list) <= maxRanges, nil
}

// level is the index of the image that has the identity, or -1.
func (q *Qcow2) level(id string) int {
	if id == "" {
		return -1
	}
	for i := range q.layers {
		if identity(q.layers[i:]) == id {
			return i
		}
	}
	return -1
}

func addRange(list []Range, off, n int64) []Range {
	last := len(list) - 1
	switch {
	case n == 0:
		return list
	case last >= 0 && list[last].Off+list[last].Len == off:
		list[last].Len += n
		return list
	}
	return append(list, Range{off, n})
}
