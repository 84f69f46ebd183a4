package fusefs

import (
	"context"
	"math"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"livemount/fs"
	"livemount/internal/errs"
)

// Open implements fuse.RawFileSystem. There are no file handles: a request is answered by its node.
func (r *raw) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	_, st := r.file(in.NodeId)
	if in.Flags&(syscall.O_WRONLY|syscall.O_RDWR|syscall.O_TRUNC) != 0 {
		_, st = r.writable(in.NodeId)
	}
	if !st.Ok() {
		return st
	}
	out.OpenFlags = r.openFlags()
	return fuse.OK
}

func (r *raw) openFlags() uint32 {
	if r.directIO {
		return fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES
	}
	return fuse.FOPEN_KEEP_CACHE
}

// Read implements fuse.RawFileSystem: buf goes to the kernel as it is, without a copy.
func (r *raw) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	f, st := r.file(in.NodeId)
	if !st.Ok() {
		return nil, st
	}
	n, err := readInside(call{cancel}, f, in.Offset, buf[:min(int(in.Size), len(buf))])
	if err != nil {
		return nil, r.status("read", in.NodeId, err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// readInside reads what of p is inside of the file, and once more when the file became shorter meanwhile: the kernel
// lets truncate(2) overtake reads.
func readInside(c call, f fs.Regular, off uint64, p []byte) (uint64, error) {
	for {
		size := f.Size()
		n := inside(off, uint64(len(p)), size)
		if n == 0 {
			return 0, nil
		}
		err := f.ReadAt(c, p[:n], int64(off))
		if !errs.Is(err, errs.Invalid) || f.Size() >= size {
			return n, err
		}
	}
}

// inside cuts [off, off+n) at size and returns the bytes that are left.
func inside(off, n uint64, size int64) uint64 {
	if off >= uint64(size) {
		return 0
	}
	return min(n, uint64(size)-off)
}

// Write implements fuse.RawFileSystem. A write that reaches beyond the limit of the file, which is the end of a disk of
// a Tree, is short, one behind it EFBIG, as for a file that has reached the greatest size. O_SYNC, O_DSYNC and RWF_DSYNC (which the kernel sends
// as O_DSYNC; O_SYNC contains its bit) are answered after a Sync. Linux 6.18 sends an FSYNC after such a
// write through the page cache as well, but not after one with direct I/O; a Sync with nothing new costs
// a device little.
func (r *raw) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	f, st := r.writable(in.NodeId)
	if !st.Ok() {
		return 0, st
	}
	n := inside(in.Offset, uint64(len(data)), f.Limit())
	if n == 0 && len(data) > 0 {
		return 0, fuse.Status(syscall.EFBIG)
	}
	ctx := context.Background() // see call
	err := f.WriteAt(ctx, data[:n], int64(in.Offset))
	if err == nil && in.Flags&syscall.O_DSYNC != 0 {
		err = f.Sync(ctx)
	}
	if err != nil {
		return 0, r.status("write", in.NodeId, err)
	}
	return uint32(n), fuse.OK
}

// Fsync implements fuse.RawFileSystem.
func (r *raw) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	f, st := r.file(in.NodeId)
	if !st.Ok() {
		return st
	}
	if w, ok := f.(fs.Writable); ok {
		return r.status("fsync", in.NodeId, w.Sync(context.Background()))
	}
	return fuse.OK // it never changes
}

// Flush implements fuse.RawFileSystem: close promises nothing. It is answered, not ENOSYS, because the
// kernel writes back what was changed through mmap before it asks, and so close can report an error.
func (r *raw) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

// Ioctl implements fuse.RawFileSystem: there are none.
func (r *raw) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) fuse.Status {
	return fuse.Status(syscall.ENOTTY)
}

// offset turns the kernel's number into ours; what no device can have is refused.
func offset(v uint64) (int64, fuse.Status) {
	if v > math.MaxInt64 {
		return 0, fuse.EINVAL
	}
	return int64(v), fuse.OK
}
