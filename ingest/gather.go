package ingest

import (
	"context"
	"slices"

	"livemount/blockdev"
	"livemount/internal/errs"
	"livemount/snapshotchain"
	"livemount/snapshotchain/chunkstore"
)

// gather stores all of a leaf anew when what it shows has come to lie in too many chunks, after many increments: so the
// newest point is read in sequence as fast as the first. It returns the runs to set instead. Older points keep theirs.
func (c *committer) gather(ctx context.Context, n uint32, runs []snapshotchain.Run) ([]snapshotchain.Run, error) {
	view, scattered, err := c.r.dst.Scattered(ctx, n, runs)
	if err != nil || !scattered {
		return runs, err
	}
	pages, err := c.pagesOf(ctx, view)
	if errs.Is(err, errs.Corrupt) {
		return runs, nil // they stay where they are, and are found bad by who reads them
	}
	if err != nil {
		return nil, err
	}
	out := slices.DeleteFunc(slices.Clone(runs), func(r snapshotchain.Run) bool { return !r.IsZero() })
	for _, ch := range cutLeaf(c.r.store.Hasher(), pages) {
		if ch.ptr, ch.found = c.r.dst.Find(ctx, ch.enc.ID, chunkstore.Ptr{}); !ch.found {
			if ch.enc, err = c.r.store.Encode(c.r.level, ch.enc, join(ch.pages), nil); err != nil {
				return nil, err
			}
			if ch.ptr, _, err = c.r.dst.Put(ctx, ch.enc); err != nil {
				return nil, err
			}
		}
		for i := range ch.pages {
			out = append(out, snapshotchain.Run{Page: uint16(ch.pages[i].no), Len: 1, First: uint16(i), Ptr: ch.ptr})
		}
	}
	return joinRuns(out), nil
}

// pagesOf reads the pages of a leaf, numbered within it.
func (c *committer) pagesOf(ctx context.Context, view []snapshotchain.Run) ([]page, error) {
	total := 0
	for _, r := range view {
		total += int(r.Len)
	}
	buf, pages := make([]byte, total*blockdev.PageSize), make([]page, 0, total)
	for _, r := range view {
		data := buf[:int(r.Len)*blockdev.PageSize]
		buf = buf[len(data):]
		hashes, err := c.r.dst.ReadRun(ctx, r, data)
		if err != nil {
			return nil, err
		}
		for i := range hashes {
			pages = append(pages, page{no: int64(r.Page) + int64(i), hash: hashes[i], data: data[i*blockdev.PageSize:][:blockdev.PageSize]})
		}
	}
	return pages, nil
}

// cutLeaf cuts the pages of a leaf as a first backup would.
func cutLeaf(h *chunkstore.Hasher, pages []page) []chunk {
	c, out := &cutter{hasher: h}, &cut{}
	for _, p := range pages {
		if c.endsBefore(&p) {
			c.close(out)
		}
		c.open = append(c.open, p)
		if c.ends(p.hash) {
			c.close(out)
		}
	}
	if len(c.open) > 0 {
		c.close(out)
	}
	return out.chunks
}

// joinRuns sorts runs by page and joins those that adjoin, in the disk and in their chunk.
func joinRuns(runs []snapshotchain.Run) []snapshotchain.Run {
	slices.SortFunc(runs, func(a, b snapshotchain.Run) int { return int(a.Page) - int(b.Page) })
	out := runs[:0]
	for _, r := range runs {
		if n := len(out); n > 0 {
			l := &out[n-1]
			if l.Page+l.Len == r.Page && l.Ptr == r.Ptr && (r.IsZero() || l.First+l.Len == r.First) {
				l.Len += r.Len
				continue
			}
		}
		out = append(out, r)
	}
	return out
}
