package blockdev

import (
	"context"
	"iter"
	"sync"
)

// Mem is a Device in memory, for tests and as the model that others are compared with.
type Mem struct {
	mu   sync.RWMutex
	data []byte
}

// NewMem returns a Device of zeroes.
func NewMem(size int64) *Mem { return &Mem{data: make([]byte, size)} }

// Size implements Reader.
func (m *Mem) Size() int64 { return int64(len(m.data)) }

// ReadAt implements ReaderAt.
func (m *Mem) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := firstErr(ctx.Err(), CheckRange(m.Size(), off, int64(len(p)))); err != nil {
		return err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	copy(p, m.data[off:])
	return nil
}

// WriteAt implements WriterAt.
func (m *Mem) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := firstErr(ctx.Err(), CheckRange(m.Size(), off, int64(len(p)))); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.data[off:], p)
	return nil
}

// Zero implements Device.
func (m *Mem) Zero(ctx context.Context, off, n int64) error {
	if err := firstErr(ctx.Err(), CheckRange(m.Size(), off, n)); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+n])
	return nil
}

// Sync implements WriterAt; memory is never durable.
func (m *Mem) Sync(ctx context.Context) error { return ctx.Err() }

// Extents implements Reader: pages of zeroes are holes.
func (m *Mem) Extents(_ context.Context, off, n int64) iter.Seq2[Extent, error] {
	if err := CheckRange(m.Size(), off, n); err != nil {
		return Fail(err)
	}
	return func(yield func(Extent, error) bool) {
		for end := off + n; off < end; {
			e := m.pageExtent(off, end)
			if !yield(e, nil) {
				return
			}
			off = e.End()
		}
	}
}

func (m *Mem) pageExtent(off, end int64) Extent {
	m.mu.RLock()
	defer m.mu.RUnlock()
	stop := min(end, off-off%PageSize+PageSize)
	kind := Data
	if IsZero(m.data[off:stop]) {
		kind = Hole
	}
	return Extent{off, stop - off, kind}
}

// Close implements Reader.
func (m *Mem) Close() error { return nil }

func firstErr(list ...error) error {
	for _, err := range list {
		if err != nil {
			return err
		}
	}
	return nil
}
