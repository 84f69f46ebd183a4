package image

import (
	"context"
	"errors"
	"iter"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"livemount/blockdev"
)

// Extents implements blockdev.Reader: the data and holes that the file system reports (SEEK_DATA,
// SEEK_HOLE). A block device, and a file system that does not know, is all Data.
func (r *Raw) Extents(ctx context.Context, off, n int64) iter.Seq2[blockdev.Extent, error] {
	if err := blockdev.CheckRange(r.size, off, n); err != nil {
		return blockdev.Fail(err)
	}
	return func(yield func(blockdev.Extent, error) bool) {
		for end := off + n; off < end; {
			e, err := r.next(ctx, off, end)
			if !yield(e, err) || err != nil {
				return
			}
			off = e.End()
		}
	}
}

// next is the extent that starts at off and ends at most at end.
func (r *Raw) next(ctx context.Context, off, end int64) (blockdev.Extent, error) {
	if err := ctx.Err(); err != nil {
		return blockdev.Extent{}, err
	}
	all := blockdev.Extent{Off: off, Len: end - off, Kind: blockdev.Data}
	if r.dev || r.noSeek.Load() {
		return all, nil
	}
	data, err := r.seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, syscall.ENXIO): // no data from here on
		all.Kind = blockdev.Hole
		return all, nil
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENOTSUP), errors.Is(err, syscall.ENOSYS):
		r.noSeek.Store(true)
		return all, nil
	case err != nil:
		return blockdev.Extent{}, readError(r.path, err)
	case data > off:
		return blockdev.Extent{Off: off, Len: min(data, end) - off, Kind: blockdev.Hole}, nil
	}
	return r.dataFrom(off, end)
}

func (r *Raw) dataFrom(off, end int64) (blockdev.Extent, error) {
	hole, err := r.seek(off, unix.SEEK_HOLE)
	if errors.Is(err, syscall.ENXIO) || err == nil && hole <= off {
		hole, err = end, nil // it shrank between the two calls; reading it says so
	}
	if err != nil {
		return blockdev.Extent{}, readError(r.path, err)
	}
	return blockdev.Extent{Off: off, Len: min(hole, end) - off, Kind: blockdev.Data}, nil
}

// seek uses the file's position only for the answer, so calls do not disturb each other or ReadAt.
func (r *Raw) seek(off int64, whence int) (int64, error) {
	var at int64
	err := r.control(func(fd int) (err error) {
		at, err = unix.Seek(fd, off, whence)
		return err
	})
	return at, err
}

// deviceSize asks the kernel for the bytes of a block device.
func (r *Raw) deviceSize() (int64, error) {
	var size uint64
	err := r.control(func(fd int) error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size)))
		if errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		return 0, readError(r.path, err)
	}
	return int64(size), nil
}
