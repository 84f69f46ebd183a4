package ingest

import (
	"bytes"
	"context"
	"sort"

	"livemount/snapshotchain"
	"livemount/snapshotchain/chunkstore"
)

// maxPending bounds the leaves that wait for a gathered chunk to be full.
const maxPending = 64

// committer stores the chunks of a disk and sets its leaves, in order.
type committer struct {
	r      *run
	hasher *chunkstore.Hasher
	leaves map[int64][]snapshotchain.Run // changed so far and not set yet
	loose  []page                        // gathered, less than a chunk; copies
	last   int64                         // leaf of the newest batch's last page
}

func (c *committer) commit(ctx context.Context, b *batch) error {
	for i := range b.res.chunks {
		if err := c.store(ctx, &b.res.chunks[i]); err != nil {
			return err
		}
	}
	for _, no := range b.res.zeroes {
		c.add(no, snapshotchain.Run{Len: 1})
	}
	for _, p := range b.res.loose {
		p.data = bytes.Clone(p.data)
		c.loose = append(c.loose, p)
		if len(c.loose) == chunkPages {
			if err := c.storeLoose(ctx); err != nil {
				return err
			}
		}
	}
	c.account(b)
	c.last = b.spans[len(b.spans)-1].leaf()
	return c.setLeaves(ctx)
}

func (c *committer) account(b *batch) {
	c.r.dst.Account(b.res.sum, b.res.data)
	c.r.read += b.res.read
	c.r.changed += b.res.changed
	c.r.count.Changed.Add(b.res.changed * chunkstore.PageSize)
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
	for i, no := range ch.pages {
		c.add(no, snapshotchain.Run{Len: 1, First: uint16(i), Ptr: ch.ptr})
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

// storeLoose makes a chunk of the pages gathered so far.
func (c *committer) storeLoose(ctx context.Context) error {
	if len(c.loose) == 0 {
		return nil
	}
	ch, raw, err := makeChunk(c.hasher, c.loose)
	if err != nil {
		return err
	}
	if ch.ptr, ch.found = c.r.dst.Find(ctx, ch.enc.ID); !ch.found {
		if ch.enc, err = c.r.store.Encode(ch.enc.ID, raw, ch.enc.Hashes, nil); err != nil {
			return err
		}
	}
	c.loose = c.loose[:0]
	return c.store(ctx, &ch)
}

// setLeaves sets the leaves that nothing can be added to any more.
func (c *committer) setLeaves(ctx context.Context) error {
	if len(c.leaves) > maxPending {
		if err := c.storeLoose(ctx); err != nil {
			return err
		}
	}
	open := c.last
	if len(c.loose) > 0 {
		open = min(open, c.loose[0].no/snapshotchain.LeafPages)
	}
	return c.setBelow(ctx, open)
}

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
		if err := c.r.dst.SetLeaf(ctx, uint32(n), runs); err != nil {
			return err
		}
	}
	return nil
}

// finish stores what is left.
func (c *committer) finish(ctx context.Context) error {
	if err := c.storeLoose(ctx); err != nil {
		return err
	}
	return c.setBelow(ctx, 1<<62)
}
