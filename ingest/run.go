package ingest

import (
	"context"
	"runtime"

	"golang.org/x/sync/errgroup"

	"livemount/blockdev"
	"livemount/internal/gate"
	"livemount/snapshotchain"
	"livemount/snapshotchain/chunkstore"
)

// batchPages is how much is read, hashed and compressed as one piece of work (4 MiB).
const batchPages = 1024

// maxSpans bounds the spans of a batch: it is what a batch may cost when little of it is read.
const maxSpans = 4096

// run takes in one disk.
type run struct {
	store  *snapshotchain.Store
	disk   *Disk
	dst    *snapshotchain.DraftDisk
	parent *snapshotchain.Disk
	level  chunkstore.Level
	size   int64
	count  *Counters
	stored func() int64 // by the whole draft
	before int64        // bytes of the disks that came before this one

	read, changed int64 // bytes and pages, written by the committer
}

// mode says how the disk is read: full, compare or list.
func (r *run) mode() string {
	switch {
	case r.parent == nil:
		return "full"
	case r.disk.Listed && r.dst.Current():
		return "list"
	default:
		return "compare"
	}
}

func (r *run) parentSize() int64 {
	if r.parent == nil {
		return 0
	}
	return r.parent.Size()
}

// batch is a piece of work. It is read, hashed by a worker, cut into chunks, compressed by a worker and
// committed; batches are cut and committed in the order of the disk.
type batch struct {
	spans []span
	buf   []byte // the pages of the spans that are not zero, one behind the other
	upTo  int64  // bytes of the disk that have been looked at when it is done
	found found
	cut   cut
	arena []byte // holds payloads

	hashed, encoded chan struct{}
}

// lastLeaf is the leaf of its last page, -1 for the batch behind the last.
func (b *batch) lastLeaf() int64 {
	if len(b.spans) == 0 {
		return -1
	}
	return b.spans[len(b.spans)-1].leaf()
}

// queues are the ways of batches through the pipeline. Those that keep the order hold all batches there
// are, so nobody waits to send on them.
type queues struct {
	free           chan *batch
	hash, encode   chan *batch // to any worker
	cutting, ready chan *batch // in the order of the disk
}

// run reads, works and commits.
func (r *run) run(ctx context.Context) error {
	r.size = r.disk.Source.Size()
	workers := max(2, runtime.GOMAXPROCS(0))
	n := workers + 3
	q := &queues{
		free: make(chan *batch, n), hash: make(chan *batch), encode: make(chan *batch),
		cutting: make(chan *batch, n), ready: make(chan *batch, n+1),
	}
	for range n {
		q.free <- &batch{} // its buffer is made when it is needed: small disks need few
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(q.hash)
		defer close(q.cutting)
		return r.readAll(ctx, q)
	})
	for range workers {
		g.Go(func() error { return r.work(ctx, q) })
	}
	g.Go(func() error {
		defer close(q.encode)
		defer close(q.ready)
		return r.cutAll(ctx, q)
	})
	g.Go(func() error { return r.commitAll(ctx, q) })
	return g.Wait()
}

// readAll cuts the plan into batches and reads them.
func (r *run) readAll(ctx context.Context, q *queues) error {
	var b *batch
	for s, err := range r.plan(ctx) {
		if err != nil {
			return err
		}
		if b != nil && b.full(s) {
			if err := send(ctx, b, q.hash, q.cutting); err != nil {
				return err
			}
			b = nil
		}
		if b == nil {
			if b, err = take(ctx, q.free); err != nil {
				return err
			}
			b.makeRoom(min(batchPages*blockdev.PageSize, pagesOf(r.size)*blockdev.PageSize))
		}
		if err := r.readSpan(ctx, b, s); err != nil {
			return err
		}
	}
	if b == nil {
		return nil
	}
	return send(ctx, b, q.hash, q.cutting)
}

func (b *batch) full(s span) bool {
	return len(b.spans) >= maxSpans || (!s.zero && len(b.buf)+int(s.n)*blockdev.PageSize > cap(b.buf))
}

func take(ctx context.Context, free <-chan *batch) (*batch, error) {
	select {
	case b := <-free:
		b.spans, b.buf = b.spans[:0], b.buf[:0]
		b.hashed, b.encoded = make(chan struct{}), make(chan struct{})
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (b *batch) makeRoom(n int64) {
	if int64(cap(b.buf)) < n {
		b.buf, b.arena = make([]byte, 0, n), make([]byte, 0, n/2)
	}
}

func send(ctx context.Context, b *batch, queues ...chan<- *batch) error {
	for _, q := range queues {
		select {
		case q <- b:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func wait(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// readSpan adds a span to the batch, with its bytes unless they are zeroes. The last page is filled up
// with zeroes.
func (r *run) readSpan(ctx context.Context, b *batch, s span) error {
	b.spans = append(b.spans, s)
	off := s.page * blockdev.PageSize
	b.upTo = off + s.n*blockdev.PageSize
	if s.zero {
		return ctx.Err()
	}
	n := min(s.n*blockdev.PageSize, r.size-off)
	p := b.buf[len(b.buf) : len(b.buf)+int(s.n)*blockdev.PageSize]
	clear(p[n:])
	if err := r.disk.Source.ReadAt(ctx, p[:n], off); err != nil {
		return err
	}
	b.buf = b.buf[:len(b.buf)+len(p)]
	r.count.Read.Add(n)
	return nil
}

// work hashes and compresses whatever comes; what is nearer to its end goes first.
func (r *run) work(ctx context.Context, q *queues) error {
	w := &worker{r: r, hasher: r.store.Hasher()}
	hash, encode := q.hash, q.encode
	for hash != nil || encode != nil {
		select {
		case b, ok := <-encode:
			if !ok {
				encode = nil
			} else if err := w.encode(ctx, b); err != nil {
				return err
			}
			continue
		default:
		}
		select {
		case b, ok := <-encode:
			if !ok {
				encode = nil
			} else if err := w.encode(ctx, b); err != nil {
				return err
			}
		case b, ok := <-hash:
			if !ok {
				hash = nil
			} else if err := w.hash(ctx, b); err != nil {
				return err
			}
		}
	}
	return nil
}

// cutAll cuts the changed pages of all batches, as one sequence, into chunks.
func (r *run) cutAll(ctx context.Context, q *queues) error {
	c := &cutter{hasher: r.store.Hasher()}
	for b := range q.cutting {
		if err := wait(ctx, b.hashed); err != nil {
			return err
		}
		leave, err := r.store.Gate().Enter(ctx, gate.Ingest)
		if err != nil {
			return err
		}
		c.batch(b)
		leave()
		if err := send(ctx, b, q.ready, q.encode); err != nil {
			return err
		}
	}
	if ctx.Err() != nil || len(c.open) == 0 {
		return ctx.Err()
	}
	last := &batch{upTo: r.size, encoded: make(chan struct{})}
	c.end(last)
	return send(ctx, last, q.ready, q.encode)
}

// commit stores a batch while it holds a slot.
func (r *run) commit(ctx context.Context, c *committer, b *batch) error {
	leave, err := r.store.Gate().Enter(ctx, gate.Ingest)
	if err != nil {
		return err
	}
	defer leave()
	return c.commit(ctx, b)
}

func (r *run) commitAll(ctx context.Context, q *queues) error {
	c := &committer{r: r, leaves: map[int64][]snapshotchain.Run{}}
	for b := range q.ready {
		if err := wait(ctx, b.encoded); err != nil {
			return err
		}
		if err := r.commit(ctx, c, b); err != nil {
			return err
		}
		if cap(b.buf) > 0 {
			q.free <- b
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return c.finish(ctx)
}
