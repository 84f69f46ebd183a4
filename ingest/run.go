package ingest

import (
	"context"
	"runtime"

	"golang.org/x/sync/errgroup"

	"livemount/blockdev"
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

// batch is a piece of work on its way from the reader through a worker to the committer.
type batch struct {
	spans []span
	buf   []byte // the pages of the spans that are not zero, one behind the other
	upTo  int64  // bytes of the disk that have been looked at when it is done
	res   result
	done  chan struct{}
}

// run reads, works and commits.
func (r *run) run(ctx context.Context) error {
	r.size = r.disk.Source.Size()
	workers := max(2, runtime.GOMAXPROCS(0))
	free := make(chan *batch, workers+2)
	for range workers + 2 {
		free <- &batch{} // its buffer is made when it is needed: small disks need few
	}
	work, ordered := make(chan *batch), make(chan *batch, workers+2)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(work)
		defer close(ordered)
		return r.readAll(ctx, free, work, ordered)
	})
	for range workers {
		g.Go(func() error { return r.work(ctx, work) })
	}
	g.Go(func() error { return r.commitAll(ctx, ordered, free) })
	return g.Wait()
}

// readAll cuts the plan into batches and reads them.
func (r *run) readAll(ctx context.Context, free <-chan *batch, work, ordered chan<- *batch) error {
	var b *batch
	for s, err := range r.plan(ctx) {
		if err != nil {
			return err
		}
		if b != nil && b.full(s) {
			if err := send(ctx, b, work, ordered); err != nil {
				return err
			}
			b = nil
		}
		if b == nil {
			if b, err = take(ctx, free); err != nil {
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
	return send(ctx, b, work, ordered)
}

func (b *batch) full(s span) bool {
	return len(b.spans) >= maxSpans || (!s.zero && len(b.buf)+int(s.n)*blockdev.PageSize > cap(b.buf))
}

func take(ctx context.Context, free <-chan *batch) (*batch, error) {
	select {
	case b := <-free:
		b.spans, b.buf, b.done = b.spans[:0], b.buf[:0], make(chan struct{})
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (b *batch) makeRoom(n int64) {
	if int64(cap(b.buf)) < n {
		b.buf = make([]byte, 0, n)
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

func (r *run) work(ctx context.Context, work <-chan *batch) error {
	w := &worker{r: r, hasher: r.store.Hasher()}
	for b := range work {
		if err := w.do(ctx, b); err != nil {
			return err
		}
		close(b.done)
	}
	return nil
}

func (r *run) commitAll(ctx context.Context, ordered <-chan *batch, free chan<- *batch) error {
	c := &committer{r: r, hasher: r.store.Hasher(), leaves: map[int64][]snapshotchain.Run{}}
	for b := range ordered {
		select {
		case <-b.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := c.commit(ctx, b); err != nil {
			return err
		}
		free <- b
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return c.finish(ctx)
}

// page is a changed page on its way into a chunk.
type page struct {
	no   int64
	hash chunkstore.PageHash
	data []byte
}
