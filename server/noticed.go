package server

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"

	"livemount/blockdev"
	"livemount/internal/errs"
)

// damageMax bounds what is remembered of one mount.
const damageMax = 20

// damageList is what was found bad in a mount since it was served, for status.
type damageList struct {
	mu   sync.Mutex // guards list
	list []string
}

func (d *damageList) add(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if what := fmt.Sprintf(format, args...); len(d.list) < damageMax && !slices.Contains(d.list, what) {
		d.list = append(d.list, what)
	}
}

func (d *damageList) get() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string(nil), d.list...)
}

// noticed is a disk of a mount that tells once when stored bytes of it are bad.
type noticed struct {
	blockdev.Reader
	once *sync.Once
	tell func(error)
}

// notice returns r, or the same as a blockdev.Device when it is one.
func notice(r blockdev.Reader, tell func(error)) blockdev.Reader {
	n := noticed{r, &sync.Once{}, tell}
	if dev, ok := r.(blockdev.Device); ok {
		return noticedDevice{n, dev}
	}
	return n
}

func (n noticed) look(err error) error {
	if errs.Is(err, errs.Corrupt) {
		n.once.Do(func() { n.tell(err) })
	}
	return err
}

// ReadAt implements blockdev.ReaderAt.
func (n noticed) ReadAt(ctx context.Context, p []byte, off int64) error {
	return n.look(n.Reader.ReadAt(ctx, p, off))
}

// Extents implements blockdev.Reader.
func (n noticed) Extents(ctx context.Context, off, length int64) iter.Seq2[blockdev.Extent, error] {
	return func(yield func(blockdev.Extent, error) bool) {
		for e, err := range n.Reader.Extents(ctx, off, length) {
			if !yield(e, n.look(err)) {
				return
			}
		}
	}
}

// noticedDevice is a noticed disk that can be written.
type noticedDevice struct {
	noticed
	dev blockdev.Device
}

// WriteAt implements blockdev.WriterAt.
func (n noticedDevice) WriteAt(ctx context.Context, p []byte, off int64) error {
	return n.look(n.dev.WriteAt(ctx, p, off))
}

// Sync implements blockdev.WriterAt.
func (n noticedDevice) Sync(ctx context.Context) error { return n.dev.Sync(ctx) }

// Zero implements blockdev.Device.
func (n noticedDevice) Zero(ctx context.Context, off, length int64) error {
	return n.look(n.dev.Zero(ctx, off, length))
}
