package ingest

import (
	"context"

	"livemount/blockdev"
	"livemount/internal/gate"
	"livemount/snapshotchain"
	"livemount/snapshotchain/chunkstore"
)

// found is what a worker found out about a batch. Its pages point into the batch's buffer.
type found struct {
	pages   []page  // changed, and not zeroes
	zeroes  []int64 // pages that became zeroes
	sum     chunkstore.Sum
	data    int64 // pages that are not zero any more or now
	read    int64 // bytes
	changed int64 // pages
}

type worker struct {
	r      *run
	hasher *chunkstore.Hasher
	old    [snapshotchain.LeafPages]chunkstore.PageHash
	bad    [snapshotchain.LeafPages]bool
}

// hash finds out what changed in a batch.
func (w *worker) hash(ctx context.Context, b *batch) error {
	leave, err := w.r.store.Gate().Enter(ctx, gate.Ingest)
	if err != nil {
		return err
	}
	defer leave()
	f := &b.found
	*f = found{pages: f.pages[:0], zeroes: f.zeroes[:0]}
	buf := b.buf
	for _, s := range b.spans {
		var data []byte
		if !s.zero {
			data = buf[:s.n*blockdev.PageSize]
			buf = buf[len(data):]
			f.read += min(int64(len(data)), w.r.size-s.page*blockdev.PageSize)
		}
		if err := w.span(ctx, f, s, data); err != nil {
			return err
		}
	}
	close(b.hashed)
	return nil
}

func (w *worker) span(ctx context.Context, f *found, s span, data []byte) error {
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
		w.page(f, p, old[i], bad[i])
	}
	return nil
}

// page accounts for a page and, when it changed, keeps it. One whose stored bytes are known to be bad is
// stored again: the source has them.
func (w *worker) page(f *found, p page, old chunkstore.PageHash, bad bool) {
	var none chunkstore.PageHash
	if p.hash == old && !bad {
		return
	}
	f.changed++
	f.sum = f.sum.Add(w.hasher.Term(p.no, p.hash)).Sub(w.hasher.Term(p.no, old))
	if p.hash == none {
		f.data--
		f.zeroes = append(f.zeroes, p.no)
		return
	}
	if old == none {
		f.data++
	}
	f.pages = append(f.pages, p)
}

// encode looks for the chunks of a batch among those that are stored, and compresses the others. What is
// found is mostly followed by what followed it when it was stored.
func (w *worker) encode(ctx context.Context, b *batch) error {
	leave, err := w.r.store.Gate().Enter(ctx, gate.Ingest)
	if err != nil {
		return err
	}
	defer leave()
	b.arena = b.arena[:0]
	var near chunkstore.Ptr
	for i := range b.cut.chunks {
		c := &b.cut.chunks[i]
		if c.ptr, c.found = w.r.dst.Find(ctx, c.enc.ID, near); c.found {
			near = c.ptr
			continue
		}
		free := b.arena[len(b.arena):cap(b.arena)]
		enc, err := w.r.store.Encode(w.r.level, c.enc, join(c.pages), free)
		if err != nil {
			return err
		}
		if c.enc = enc; enc.Codec != chunkstore.CodecRaw && len(enc.Payload) <= len(free) {
			b.arena = b.arena[:len(b.arena)+len(enc.Payload)]
		}
	}
	close(b.encoded)
	return nil
}
