package ingest

import (
	"context"
	"math"
	"sort"

	"livemount/snapshotchain"
	"livemount/snapshotchain/chunkstore"
)

// committer stores the chunks of a disk and sets its leaves, in order.
type committer struct {
	r      *run
	leaves map[int64][]snapshotchain.Run // changed so far and not set yet
}

func (c *committer) commit(ctx context.Context, b *batch) error {
	for i := range b.cut.chunks {
		if err := c.store(ctx, &b.cut.chunks[i]); err != nil {
			return err
		}
	}
	for _, no := range b.found.zeroes {
		c.add(no, snapshotchain.Run{Len: 1})
	}
	c.account(b)
	done := b.lastLeaf()
	if b.cut.open >= 0 {
		done = min(done, b.cut.open)
	}
	return c.setBelow(ctx, done)
}

func (c *committer) account(b *batch) {
	c.r.dst.Account(b.found.sum, b.found.data)
	c.r.read += b.found.read
	c.r.changed += b.found.changed
	c.r.count.Changed.Add(b.found.changed * chunkstore.PageSize)
	c.r.count.Stored.Store(c.r.stored())
	c.r.count.Looked.Store(c.r.before + min(b.upTo, c.r.size))
}

// store stores a chunk and maps its pages to it.
func (c *committer) store(ctx context.Context, ch *chunk) error {
	if !ch.found {
		var err error
		if ch.ptr, _, err = c.r.dst.Put(ctx, ch.enc); err != nil {
			return err
		}
	}
	for i := range ch.pages {
		c.add(ch.pages[i].no, snapshotchain.Run{Len: 1, First: uint16(i), Ptr: ch.ptr})
	}
	return nil
}

// add maps one page, as a part of the run before it where that fits.
func (c *committer) add(no int64, r snapshotchain.Run) {
	leaf := no / snapshotchain.LeafPages
	r.Page = uint16(no % snapshotchain.LeafPages)
	runs := c.leaves[leaf]
	if n := len(runs); n > 0 {
		l := &runs[n-1]
		if l.Page+l.Len == r.Page && l.Ptr == r.Ptr && (r.IsZero() || l.First+l.Len == r.First) {
			l.Len++
			return
		}
	}
	c.leaves[leaf] = append(runs, r)
}

// setBelow sets the leaves below open: nothing can be added to them any more.
func (c *committer) setBelow(ctx context.Context, open int64) error {
	var ready []int64
	for n := range c.leaves {
		if n < open {
			ready = append(ready, n)
		}
	}
	sort.Slice(ready, func(i, j int) bool { return ready[i] < ready[j] })
	for _, n := range ready {
		runs := c.leaves[n]
		delete(c.leaves, n)
		sort.Slice(runs, func(i, j int) bool { return runs[i].Page < runs[j].Page })
		runs, err := c.gather(ctx, uint32(n), runs)
		if err != nil {
			return err
		}
		if err := c.r.dst.SetLeaf(ctx, uint32(n), runs); err != nil {
			return err
		}
	}
	return nil
}

// finish sets the leaves that are left.
func (c *committer) finish(ctx context.Context) error { return c.setBelow(ctx, math.MaxInt64) }
