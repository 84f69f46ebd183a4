package blockdev

import (
	"context"
	"sync/atomic"
)

// metered counts what is read.
type metered struct {
	Reader
	bytes *atomic.Int64
}

// Metered returns r, and adds the bytes of each read that succeeds to bytes.
func Metered(r Reader, bytes *atomic.Int64) Reader { return metered{r, bytes} }

// ReadAt implements ReaderAt.
func (m metered) ReadAt(ctx context.Context, p []byte, off int64) error {
	err := m.Reader.ReadAt(ctx, p, off)
	if err == nil {
		m.bytes.Add(int64(len(p)))
	}
	return err
}
