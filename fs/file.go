package fs

import (
	"context"
	"iter"
	"sync/atomic"
	"time"

	"livemount/blockdev"
	"livemount/internal/clock"
	"livemount/internal/errs"
)

// File is a disk in the folder of a Tree. It has the methods of a blockdev.Device but Close; writes to a read-only
// file are Denied.
type File struct {
	id        NodeID
	name      string
	clock     clock.Clock
	data      blockdev.Reader
	device    blockdev.Device // nil when the file is read-only
	allocated func() int64

	// Times in nanoseconds since 1970. Each stands alone, so atomics do instead of a lock on every write.
	accessed, modified, changed atomic.Int64
}

func newFile(c clock.Clock, d Disk) *File {
	f := &File{id: d.ID, name: d.Name, clock: c, data: d.Data, allocated: d.Allocated}
	if dev, ok := d.Data.(blockdev.Device); ok && !d.ReadOnly {
		f.device = dev
	}
	if d.Modified.IsZero() {
		d.Modified = c.Now()
	}
	f.accessed.Store(d.Modified.UnixNano())
	f.modified.Store(d.Modified.UnixNano())
	f.changed.Store(d.Modified.UnixNano())
	return f
}

// ID implements Node.
func (f *File) ID() NodeID { return f.id }

// Name in its folder.
func (f *File) Name() string { return f.name }

// Writable says whether the file takes writes.
func (f *File) Writable() bool { return f.device != nil }

// Limit implements Writable: a disk does not grow.
func (f *File) Limit() int64 { return f.Size() }

// Size in bytes. It does not change.
func (f *File) Size() int64 { return f.data.Size() }

// Attr implements Node.
func (f *File) Attr() Attr {
	a := Attr{
		ID: f.id, Mode: 0o400, SizeBytes: f.Size(), AllocatedBytes: f.Size(),
		Accessed: time.Unix(0, f.accessed.Load()),
		Modified: time.Unix(0, f.modified.Load()),
		Changed:  time.Unix(0, f.changed.Load()),
	}
	if f.Writable() {
		a.Mode = 0o600
	}
	if f.allocated != nil {
		a.AllocatedBytes = f.allocated()
	}
	return a
}

// SetTimes sets the times that are not nil, in memory: they last as long as the tree.
func (f *File) SetTimes(accessed, modified *time.Time) {
	if accessed != nil {
		f.accessed.Store(accessed.UnixNano())
	}
	if modified != nil {
		f.modified.Store(modified.UnixNano())
	}
	f.changed.Store(f.clock.Now().UnixNano())
}

// ReadAt is blockdev.ReaderAt.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) error {
	return f.data.ReadAt(ctx, p, off)
}

// Extents is that of blockdev.Reader.
func (f *File) Extents(ctx context.Context, off, n int64) iter.Seq2[blockdev.Extent, error] {
	return f.data.Extents(ctx, off, n)
}

// WriteAt is that of blockdev.WriterAt.
func (f *File) WriteAt(ctx context.Context, p []byte, off int64) error {
	if f.device == nil {
		return f.readOnly()
	}
	if err := blockdev.CheckRange(f.Size(), off, int64(len(p))); err != nil { // the device may know how to grow
		return err
	}
	f.touch()
	return f.device.WriteAt(ctx, p, off)
}

// Zero is that of blockdev.Device.
func (f *File) Zero(ctx context.Context, off, n int64) error {
	if f.device == nil {
		return f.readOnly()
	}
	f.touch()
	return f.device.Zero(ctx, off, n)
}

// Sync is that of blockdev.WriterAt. A read-only file has nothing to sync.
func (f *File) Sync(ctx context.Context) error {
	if f.device == nil {
		return ctx.Err()
	}
	return f.device.Sync(ctx)
}

func (f *File) readOnly() error { return errs.New(errs.Denied, "file %s is read-only", f.name) }

// touch marks the content as changed. It comes before the change, so that nobody finds new bytes under an
// old time.
func (f *File) touch() {
	now := f.clock.Now().UnixNano()
	f.modified.Store(now)
	f.changed.Store(now)
}
