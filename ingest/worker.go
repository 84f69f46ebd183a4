package ingest

import (
	"context"

	"livemount/blockdev"
	"livemount/snapshotchain"
	"livemount/snapshotchain/chunkstore"
)

const (
	// chunkPages is the size of a chunk: 64 KiB cells of the disk, or as many gathered pages.
	chunkPages = 16
	// cellPages is how many pages of a cell must have changed for it to be a chunk of its own.
	cellPages = 8
)

// result is what a worker made of a batch. Its slices point into the batch and into its own buffers.
type result struct {
	chunks  []chunk
	loose   []page  // changed pages that did not fill a chunk
	zeroes  []int64 // pages that became zeroes
	arena   []byte  // holds the payloads
	sum     chunkstore.Sum
	data    int64 // pages that are not zero any more or now
	read    int64
	changed int64
}

// chunk is a stored or a compressed chunk and the pages that it holds, in order.
type chunk struct {
	found bool
	ptr   chunkstore.Ptr
	enc   chunkstore.Encoded
	pages []int64
}

type worker struct {
	r      *run
	hasher *chunkstore.Hasher
	old    [snapshotchain.LeafPages]chunkstore.PageHash
	bad    [snapshotchain.LeafPages]bool
	cell   []page // changed pages of the present cell
	total  int    // pages of the cell that are not zeroes
	cellNo int64
	loose  []page
}

// do finds out what changed in a batch, and compresses it.
func (w *worker) do(ctx context.Context, b *batch) error {
	b.res = result{arena: b.res.arena[:0], chunks: b.res.chunks[:0], zeroes: b.res.zeroes[:0]}
	w.cell, w.total, w.loose = w.cell[:0], 0, w.loose[:0]
	buf := b.buf
	for _, s := range b.spans {
		var data []byte
		if !s.zero {
			data = buf[:s.n*blockdev.PageSize]
			buf = buf[len(data):]
			b.res.read += min(int64(len(data)), w.r.size-s.page*blockdev.PageSize)
		}
		if err := w.span(ctx, &b.res, s, data); err != nil {
			return err
		}
	}
	if err := w.closeCell(ctx, &b.res); err != nil {
		return err
	}
	b.res.loose = append([]page(nil), w.loose...)
	return nil
}

func (w *worker) span(ctx context.Context, res *result, s span, data []byte) error {
	old, bad := w.old[:s.n], w.bad[:s.n]
	if w.r.parent == nil {
		clear(old)
		clear(bad)
	} else if err := w.r.parent.PageHashes(ctx, s.page, old, bad); err != nil {
		return err
	}
	for i := range s.n {
		p := page{no: s.page + i}
		if data != nil {
			p.data = data[i*blockdev.PageSize:][:blockdev.PageSize]
			if !blockdev.IsZero(p.data) {
				p.hash = w.hasher.Page(p.data)
			}
		}
		if err := w.page(ctx, res, p, old[i], bad[i]); err != nil {
			return err
		}
	}
	return nil
}

// page accounts for a page and, when it changed, sends it on. One whose stored bytes are known to be bad is
// stored again: the source has them.
func (w *worker) page(ctx context.Context, res *result, p page, old chunkstore.PageHash, bad bool) error {
	var none chunkstore.PageHash
	if cell := p.no / chunkPages; cell != w.cellNo {
		if err := w.closeCell(ctx, res); err != nil {
			return err
		}
		w.cellNo = cell
	}
	if p.hash != none {
		w.total++
	}
	if p.hash == old && !bad {
		return nil
	}
	res.changed++
	res.sum = res.sum.Add(w.hasher.Term(p.no, p.hash)).Sub(w.hasher.Term(p.no, old))
	if p.hash == none {
		res.data--
		res.zeroes = append(res.zeroes, p.no)
		return nil
	}
	if old == none {
		res.data++
	}
	w.cell = append(w.cell, p)
	return nil
}

// closeCell makes a cell that changed as a whole a chunk, so that it is found again elsewhere; the pages
// of others are gathered.
func (w *worker) closeCell(ctx context.Context, res *result) error {
	cell, whole := w.cell, len(w.cell) == w.total
	w.cell, w.total = w.cell[:0], 0
	if len(cell) == 0 {
		return nil
	}
	if whole && len(cell) >= cellPages {
		return w.chunk(ctx, res, cell)
	}
	w.loose = append(w.loose, cell...)
	if len(w.loose) < chunkPages {
		return nil
	}
	err := w.chunk(ctx, res, w.loose[:chunkPages])
	w.loose = append(w.loose[:0], w.loose[chunkPages:]...)
	return err
}

// chunk looks for the pages as a stored chunk, and compresses them when there is none.
func (w *worker) chunk(ctx context.Context, res *result, pages []page) error {
	c, raw, err := makeChunk(w.hasher, pages)
	if err != nil {
		return err
	}
	if c.ptr, c.found = w.r.dst.Find(ctx, c.enc.ID); !c.found {
		free := res.arena[len(res.arena):cap(res.arena)]
		if c.enc, err = w.r.store.Encode(c.enc.ID, raw, c.enc.Hashes, free); err != nil {
			return err
		}
		if c.enc.Codec != chunkstore.CodecRaw && len(c.enc.Payload) <= len(free) {
			res.arena = res.arena[:len(res.arena)+len(c.enc.Payload)]
		}
	}
	res.chunks = append(res.chunks, c)
	return nil
}

// makeChunk joins pages. The bytes are those of the first page's buffer when they adjoin there.
func makeChunk(h *chunkstore.Hasher, pages []page) (chunk, []byte, error) {
	c := chunk{pages: make([]int64, len(pages))}
	hashes := make([]chunkstore.PageHash, len(pages))
	for i := range pages {
		c.pages[i], hashes[i] = pages[i].no, pages[i].hash
	}
	c.enc = chunkstore.Encoded{ID: h.Chunk(hashes), Hashes: hashes}
	return c, join(pages), nil
}

func join(pages []page) []byte {
	n := len(pages) * blockdev.PageSize
	first := pages[0].data
	adjoin := cap(first) >= n && &first[:n][n-1] == &pages[len(pages)-1].data[blockdev.PageSize-1]
	if adjoin && pages[len(pages)-1].no-pages[0].no == int64(len(pages)-1) {
		return first[:n]
	}
	raw := make([]byte, 0, n)
	for i := range pages {
		raw = append(raw, pages[i].data...)
	}
	return raw
}
