package fusefs

import (
	"context"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"livemount/blockdev"
	"livemount/fs"
)

// Fallocate implements fuse.RawFileSystem. Punching holes and zeroing ranges is Device.Zero; the kernel
// drops its own cached pages of the range. Preallocation within the size is a promise that a disk with a
// size of its own has made already. The ends are those of a block special file (block/fops.c,
// blkdev_fallocate): a start behind the end is EINVAL, KEEP_SIZE is cut at the end; without it a range
// beyond the end would have to grow the file: EFBIG.
func (r *raw) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	f, st := r.writable(in.NodeId)
	if !st.Ok() {
		return st
	}
	if r.mutable != nil {
		return r.fallocateScratch(in, f)
	}
	n := inside(in.Offset, in.Length, f.Size())
	keep := in.Mode&unix.FALLOC_FL_KEEP_SIZE != 0
	switch {
	case !supported(in.Mode):
		return fuse.ENOTSUP
	case in.Length == 0:
		return fuse.EINVAL
	case n < in.Length && !keep:
		return fuse.Status(syscall.EFBIG)
	case n == 0:
		return fuse.EINVAL
	case in.Mode&^unix.FALLOC_FL_KEEP_SIZE == 0:
		return fuse.OK
	}
	ctx := context.Background() // see call
	return r.status("fallocate", in.NodeId, f.Zero(ctx, int64(in.Offset), int64(n)))
}

// fallocateScratch is Fallocate of a file of a Mutable tree: holes are punched and ranges zeroed inside of the size, and
// zeroing without KEEP_SIZE makes the file longer: by a write, because a new size could cut off what another protocol
// wrote behind it meanwhile. Nothing is preallocated: many files share the space, and none can be promised.
func (r *raw) fallocateScratch(in *fuse.FallocateIn, f fs.Writable) fuse.Status {
	const keep = unix.FALLOC_FL_KEEP_SIZE
	end := in.Offset + in.Length
	switch {
	case !supported(in.Mode) || in.Mode&^keep == 0:
		return fuse.ENOTSUP
	case in.Length == 0 || end < in.Offset:
		return fuse.EINVAL
	case in.Mode&keep == 0 && end > uint64(f.Limit()):
		return fuse.Status(syscall.EFBIG)
	}
	ctx := context.Background() // see call
	var err error
	if in.Mode&keep == 0 && end > uint64(f.Size()) {
		err = f.WriteAt(ctx, []byte{0}, int64(end)-1)
	}
	if n := inside(in.Offset, in.Length, f.Size()); err == nil && n > 0 {
		err = f.Zero(ctx, int64(in.Offset), int64(n))
	}
	return r.status("fallocate", in.NodeId, err)
}

// supported knows the modes that have a meaning for a disk.
func supported(mode uint32) bool {
	switch mode {
	case 0, unix.FALLOC_FL_KEEP_SIZE,
		unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE,
		unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE:
		return true
	}
	return false
}

// Lseek implements fuse.RawFileSystem for SEEK_DATA and SEEK_HOLE; the kernel does the others itself.
func (r *raw) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	f, st := r.file(in.NodeId)
	if !st.Ok() {
		return st
	}
	off, st := offset(in.Offset)
	switch {
	case !st.Ok() || off >= f.Size():
		return fuse.Status(syscall.ENXIO)
	case in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE:
		return fuse.EINVAL
	}
	at, err := seek(context.Background(), f, off, in.Whence == unix.SEEK_DATA)
	if err != nil {
		return r.status("lseek", in.NodeId, err)
	}
	if at == f.Size() && in.Whence == unix.SEEK_DATA {
		return fuse.Status(syscall.ENXIO)
	}
	out.Offset = uint64(at)
	return fuse.OK
}

// seek returns the first offset at or behind off that is data, or is not, else the size: there is a hole
// behind the end of every file.
func seek(ctx context.Context, f fs.Regular, off int64, data bool) (int64, error) {
	for e, err := range f.Extents(ctx, off, f.Size()-off) {
		if err != nil {
			return 0, err
		}
		if (e.Kind == blockdev.Data) == data {
			return e.Off, nil
		}
	}
	return f.Size(), nil
}
