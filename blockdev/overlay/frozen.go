package overlay

import (
	"context"
	"iter"
	"sync"

	"livemount/blockdev"
	"livemount/internal/errs"
)

// Frozen is an immutable view of all nodes of a log at one position, all of it durable. It holds the
// segments that it needs: clean-up removes their files, but their space comes back only with Close. It
// outlives the Close of its log; the bases of the nodes must stay open for as long as it is read.
type Frozen struct {
	l     *Log
	at    Position
	nodes map[uint64]*node // copies

	mu       sync.RWMutex        // guards the fields below
	segments map[uint32]*segment // each with a reference
	closed   bool
}

// Freeze returns the state of all nodes after every record that was written before the call, and
// perhaps some later ones. It returns when all that the view shows is on disk, so that after any crash the
// log holds at least that. Any number of views may be open; each costs a little for every write that
// follows, and none when nothing is written.
func (l *Log) Freeze(ctx context.Context) (*Frozen, error) {
	f, err := l.freeze()
	if err != nil {
		return nil, err
	}
	if err := l.Sync(ctx); err != nil {
		_ = f.Close() // it never fails
		return nil, err
	}
	return f, nil
}

func (l *Log) freeze() (*Frozen, error) {
	l.appending.Lock()
	defer l.appending.Unlock()
	if err := l.writable(); err != nil {
		return nil, err
	}
	l.index.Lock()
	defer l.index.Unlock()
	f := &Frozen{l: l, at: l.end, nodes: make(map[uint64]*node, len(l.nodes)), segments: map[uint32]*segment{}}
	for id, n := range l.nodes {
		if n.attached {
			f.nodes[id] = n.copy()
		}
	}
	for number, s := range l.live.segments {
		if s.live > 0 {
			f.segments[number] = s.acquire()
		}
	}
	return f, nil
}

// At is the position behind the last record that the view shows. It can be stored: later records have
// later positions, also when the log was closed, or crashed, and was opened again.
func (f *Frozen) At() Position { return f.at }

func (f *Frozen) node(id uint64) (*node, error) {
	n := f.nodes[id]
	if n == nil {
		return nil, errs.New(errs.NotFound, "overlay node %d at %v", id, f.at)
	}
	return n, nil
}

// Reader gives a node as it was; NotFound when the log had none of that id. Its Close does nothing.
func (f *Frozen) Reader(id uint64) (blockdev.Reader, error) {
	n, err := f.node(id)
	if err != nil {
		return nil, err
	}
	return &frozenReader{f, n}, nil
}

// Changed yields, in order, the ranges inside the size of a node that may show other bytes than at since:
// an earlier At of this log, or, in a fork, of its origin before the fork. Since the zero Position it is all
// that the overlay covers. No changed range is left out, but for what came in by a larger size. More may
// be told: data that clean-up has moved; every zero range, and every bad one (reading it is the error),
// because these have no position; and the holes of a node without a base, because an earlier node of its id
// may have been forgotten. A position from before an Open that lost records (Report.LostRecords) must not be
// used. NotFound when there is no such node.
func (f *Frozen) Changed(id uint64, since Position) (iter.Seq[blockdev.Extent], error) {
	n, err := f.node(id)
	if err != nil {
		return nil, err
	}
	return func(yield func(blockdev.Extent) bool) { n.changed(since, yield) }, nil
}

func (n *node) changed(since Position, yield func(blockdev.Extent) bool) {
	size, at, more := n.size.Load(), int64(0), true
	holes := n.base == nil && since != Position{}
	n.extents.from(0, func(e extent) bool {
		if e.off >= size {
			return false
		}
		e = e.cut(0, size)
		if holes && at < e.off {
			more = yield(blockdev.Extent{Off: at, Len: e.off - at, Kind: blockdev.Hole})
		}
		if at = e.end(); more && !e.olderThan(since) {
			more = yield(e.shown())
		}
		return more
	})
	if more && holes && at < size {
		yield(blockdev.Extent{Off: at, Len: size - at, Kind: blockdev.Hole})
	}
}

// olderThan says that the range has been there, as it is, since before the position.
func (e extent) olderThan(p Position) bool {
	return e.isData() && Position{uint64(e.seg), int64(e.rec)}.Less(p)
}

// Close lets go of the segments. Reads that run are finished, later ones are refused with Invalid.
func (f *Frozen) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for _, s := range f.segments {
		s.release()
	}
	f.segments = nil
	return nil
}

// frozenReader is a node of a view seen as a disk.
type frozenReader struct {
	f *Frozen
	n *node
}

// Size implements blockdev.Reader.
func (r *frozenReader) Size() int64 { return r.n.size.Load() }

// Close implements blockdev.Reader.
func (r *frozenReader) Close() error { return nil }

// ReadAt implements blockdev.Reader.
func (r *frozenReader) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := blockdev.CheckRange(r.Size(), off, int64(len(p))); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	list, err := r.pieces(off, off+int64(len(p)))
	if err != nil {
		return err
	}
	return r.f.l.readPieces(ctx, r.n, list, p, off)
}

func (r *frozenReader) pieces(off, end int64) ([]piece, error) {
	r.f.mu.RLock()
	defer r.f.mu.RUnlock()
	if r.f.closed {
		return nil, errs.New(errs.Invalid, "the view of overlay log %s at %v is closed", r.f.l.opts.Dir, r.f.at)
	}
	return r.n.pieces(r.f.segments, nil, nil, off, end), nil
}

// Extents implements blockdev.Reader.
func (r *frozenReader) Extents(ctx context.Context, off, n int64) iter.Seq2[blockdev.Extent, error] {
	if err := blockdev.CheckRange(r.Size(), off, n); err != nil {
		return blockdev.Fail(err)
	}
	return func(yield func(blockdev.Extent, error) bool) {
		r.n.yieldAll(ctx, off, off+n, r.n.batch, yield)
	}
}
