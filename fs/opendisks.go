package fs

import (
	"context"
	"sync/atomic"

	"livemount/blockdev"
	"livemount/internal/cache"
)

// openDisks keeps the disks that were read last open. One that must make room is closed when nobody reads
// it any more.
type openDisks struct {
	open  func(context.Context, PointDisk) (blockdev.Reader, error)
	cache *cache.Cache[PointDisk, *openDisk]
	shut  atomic.Pointer[error] // what closing disks ended with, if it was an error
}

// openDisk is an open disk.
type openDisk struct {
	blockdev.Reader
	owner *openDisks
	users atomic.Int64 // who reads it, and the cache; it is closed when none is left
}

func newOpenDisks(most int, open func(context.Context, PointDisk) (blockdev.Reader, error)) *openDisks {
	o := &openDisks{open: open}
	one := func(*openDisk) int64 { return 1 }
	o.cache = cache.New(int64(most), one, func(_ PointDisk, d *openDisk) { d.release() })
	return o
}

// get returns an open disk, which the caller releases.
func (o *openDisks) get(ctx context.Context, key PointDisk) (*openDisk, error) {
	for {
		d, err := o.cache.Get(ctx, key, func() (*openDisk, error) { return o.load(ctx, key) })
		if err != nil {
			return nil, err
		}
		if d.retain() {
			return d, nil
		}
		// It was closed to make room just now.
	}
}

func (o *openDisks) load(ctx context.Context, key PointDisk) (*openDisk, error) {
	r, err := o.open(ctx, key)
	if err != nil {
		return nil, err
	}
	d := &openDisk{Reader: r, owner: o}
	d.users.Store(1)
	return d, nil
}

// retain counts a reader, unless the disk is closed.
func (d *openDisk) retain() bool {
	for {
		n := d.users.Load()
		if n == 0 {
			return false
		}
		if d.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (d *openDisk) release() {
	if d.users.Add(-1) > 0 {
		return
	}
	if err := d.Close(); err != nil {
		d.owner.shut.Store(&err)
	}
}

// close closes all disks. It returns an error that closing one gave, now or before.
func (o *openDisks) close() error {
	o.cache.Clear()
	if err := o.shut.Load(); err != nil {
		return *err
	}
	return nil
}
