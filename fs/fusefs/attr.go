package fusefs

import (
	iofs "io/fs"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"livemount/fs"
)

// blockBytes is the unit of statfs, of fstrim (the loop driver takes its discard granularity from it) and
// the preferred size of I/O.
const blockBytes = 4096

// fill writes the attributes of n as stat shows them.
func (r *raw) fill(n fs.Node, out *fuse.Attr) {
	a := n.Attr()
	*out = fuse.Attr{
		Ino: uint64(a.ID), Size: uint64(a.SizeBytes), Blocks: uint64(a.AllocatedBytes+511) / 512,
		Blksize: blockBytes, Nlink: 1, Owner: r.owner,
	}
	out.Mode = typeBits(a.Mode) | fs.PermBits(a.Mode)
	if r.mutable != nil {
		out.Nlink, out.Owner = links(n, &a), fuse.Owner{Uid: a.UID, Gid: a.GID}
	}
	if r.readOnly && out.Mode&syscall.S_IFMT != syscall.S_IFLNK {
		out.Mode &^= 0o222
	}
	out.SetTimes(&a.Accessed, &a.Modified, &a.Changed)
}

// links is the number of names of a node of a Mutable tree. A folder that was removed is its own parent, and has none.
func links(n fs.Node, a *fs.Attr) uint32 {
	if f, ok := n.(fs.Folder); ok && a.ID != fs.RootID && f.Parent() == a.ID {
		return 0
	}
	return a.Links
}

// typeBits is the type of a node as stat shows it. (Folders of a Tree have a link count of 1: how many are in them is
// not counted, and find and others know that.)
func typeBits(mode iofs.FileMode) uint32 {
	switch mode.Type() {
	case iofs.ModeDir:
		return syscall.S_IFDIR
	case iofs.ModeSymlink:
		return syscall.S_IFLNK
	default:
		return syscall.S_IFREG
	}
}

// GetAttr implements fuse.RawFileSystem.
func (r *raw) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, st := r.node(in.NodeId)
	if !st.Ok() {
		return st
	}
	out.SetTimeout(r.attrValid(n))
	r.fill(n, &out.Attr)
	return fuse.OK
}

// SetAttr implements fuse.RawFileSystem. In a Mutable tree anything can be set. A disk of a Tree has a fixed size: growing it is EFBIG, shrinking it (and
// opening it with O_TRUNC) EPERM. Times are kept in memory. Mode and owner come from the mount: setting
// them to what they are succeeds, anything else is EPERM, which qemu, libvirt and cp take for an answer.
func (r *raw) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if r.readOnly {
		return fuse.EROFS
	}
	n, st := r.node(in.NodeId)
	if !st.Ok() {
		return st
	}
	if r.mutable != nil {
		return r.set(n, in, out)
	}
	out.SetTimeout(r.attrValid(n))
	r.fill(n, &out.Attr)
	if st := mayChange(in, &out.Attr); !st.Ok() {
		return st
	}
	if f, ok := n.(*fs.File); ok {
		setTimes(f, in)
		r.fill(n, &out.Attr)
	}
	return fuse.OK
}

// mayChange refuses what cannot be changed from the present attributes.
func mayChange(in *fuse.SetAttrIn, now *fuse.Attr) fuse.Status {
	if size, ok := in.GetSize(); ok && size > now.Size {
		return fuse.Status(syscall.EFBIG)
	} else if ok && size < now.Size {
		return fuse.EPERM
	}
	mode, hasMode := in.GetMode()
	uid, hasUID := in.GetUID()
	gid, hasGID := in.GetGID()
	if hasMode && mode != now.Mode&0o7777 || hasUID && uid != now.Uid || hasGID && gid != now.Gid {
		return fuse.EPERM
	}
	return fuse.OK
}

func setTimes(f *fs.File, in *fuse.SetAttrIn) {
	var accessed, modified *time.Time
	if t, ok := in.GetATime(); ok {
		accessed = &t
	}
	if t, ok := in.GetMTime(); ok {
		modified = &t
	}
	if accessed != nil || modified != nil {
		f.SetTimes(accessed, modified)
	}
}
