package fusefs

import (
	"context"
	"math"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"livemount/fs"
)

// set is SetAttr of a node of a Mutable tree. The kernel has checked that the caller may.
func (r *raw) set(n fs.Node, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if size, ok := in.GetSize(); ok && size > math.MaxInt64 {
		return fuse.Status(syscall.EFBIG)
	}
	if _, err := r.mutable.SetAttr(context.Background(), n.ID(), wanted(in), time.Time{}, nil); err != nil {
		return r.status("setattr", in.NodeId, err)
	}
	out.SetTimeout(r.attrValid(n))
	r.fill(n, &out.Attr)
	return fuse.OK
}

// wanted is what the kernel wants set. The time of change is the tree's matter.
func wanted(in *fuse.SetAttrIn) (s fs.SetAttr) {
	if v, ok := in.GetMode(); ok {
		s.Perm = &v
	}
	if v, ok := in.GetUID(); ok {
		s.UID = &v
	}
	if v, ok := in.GetGID(); ok {
		s.GID = &v
	}
	if v, ok := in.GetSize(); ok {
		size := int64(v)
		s.SizeBytes = &size
	}
	s.AccessedNow = in.Valid&fuse.FATTR_ATIME_NOW != 0
	s.ModifiedNow = in.Valid&fuse.FATTR_MTIME_NOW != 0
	if in.Valid&fuse.FATTR_ATIME != 0 && !s.AccessedNow {
		s.Accessed = timeIn(in.Atime, in.Atimensec)
	}
	if in.Valid&fuse.FATTR_MTIME != 0 && !s.ModifiedNow {
		s.Modified = timeIn(in.Mtime, in.Mtimensec)
	}
	return s
}

// timeIn is a time of the kernel's, moved into the years that fit nanoseconds since 1970: 1678 to 2262.
func timeIn(seconds uint64, nanoseconds uint32) *time.Time {
	const most = math.MaxInt64/int64(time.Second) - 1
	t := time.Unix(max(-most, min(int64(seconds), most)), int64(nanoseconds))
	return &t
}
