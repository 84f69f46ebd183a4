package image

import (
	"context"
	"iter"

	"livemount/blockdev"
)

// cursor walks over a chain from one offset to higher ones. What it has seen not to be in an image is not
// looked up again, so a walk costs each table once, however the runs of the images lie to each other.
type cursor struct {
	layers []*layer
	until  []int64 // of each layer: it maps nothing from where the cursor is to here
}

func newCursor(layers []*layer) *cursor {
	return &cursor{layers: layers, until: make([]int64, len(layers))}
}

// next maps the disk from off on, at most to limit: as the first image does that maps it. What none of them
// maps, or what lies behind the end of one that is smaller, is runNone.
func (c *cursor) next(ctx context.Context, off, limit int64) (run, error) {
	for i, l := range c.layers {
		if off >= l.size {
			break
		}
		limit = min(limit, l.size)
		if c.until[i] > off {
			limit = min(limit, c.until[i])
			continue
		}
		r, err := l.run(ctx, off, limit)
		if err != nil || r.kind != runNone {
			return r, err
		}
		limit = off + r.n
		c.until[i] = limit
	}
	return run{n: limit - off}, nil
}

// Extents implements blockdev.Reader. Clusters that are stored are Data, also when they hold zeroes; Zero is
// what the image says are zeroes; Hole is what no image of the chain has. Of a raw image behind it is said
// what its file system knows.
func (q *Qcow2) Extents(ctx context.Context, off, n int64) iter.Seq2[blockdev.Extent, error] {
	if err := blockdev.CheckRange(q.Size(), off, n); err != nil {
		return blockdev.Fail(err)
	}
	return func(yield func(blockdev.Extent, error) bool) {
		c := newCursor(q.layers)
		for at, end := off, off+n; at < end; {
			e, err := c.extent(ctx, at, end)
			if !yield(e, err) || err != nil {
				return
			}
			at = e.End()
		}
	}
}

func (c *cursor) extent(ctx context.Context, off, end int64) (blockdev.Extent, error) {
	r, err := c.next(ctx, off, end)
	e := blockdev.Extent{Off: off, Len: r.n, Kind: blockdev.Hole}
	switch {
	case err != nil:
		return blockdev.Extent{}, err
	case r.kind == runZero:
		e.Kind = blockdev.Zero
	case r.kind == runNone:
	case r.layer.format == formatRaw:
		return r.layer.data.next(ctx, off, off+r.n)
	default:
		e.Kind = blockdev.Data
	}
	return e, ctx.Err()
}
