package fusefs

import (
	"context"
	iofs "io/fs"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"livemount/fs"
	"livemount/internal/errs"
)

// Changes of names, which only a Mutable tree allows. None is given up when its caller is interrupted (see call). The
// kernel has checked modes, owners and sticky bits, and holds the folders that a change is made in.

// mayName finds a folder in which names may be changed.
func (r *raw) mayName(id uint64) (fs.Folder, fuse.Status) {
	switch {
	case r.readOnly:
		return nil, fuse.EROFS
	case r.mutable == nil:
		return nil, fuse.EPERM
	}
	return r.dir(id)
}

// Create implements fuse.RawFileSystem. The kernel asks when it found no file of that name. If another protocol has
// made one since, ESTALE makes it look again, and check whether the caller may open that (fs/namei.c, do_filp_open).
func (r *raw) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	st := r.makeNode("create", &in.InHeader, name, fs.Make{Set: withPerm(in.Mode)}, &out.EntryOut)
	if st == fuse.Status(syscall.EEXIST) && in.Flags&syscall.O_EXCL == 0 {
		st = fuse.Status(syscall.ESTALE)
	}
	out.OpenFlags = r.openFlags()
	return st
}

// Tmpfile implements fuse.RawFileSystem.
func (r *raw) Tmpfile(<-chan struct{}, *fuse.CreateIn, *fuse.CreateOut) fuse.Status {
	return fuse.ENOTSUP // what open(O_TMPFILE) is documented to give, so that callers fall back
}

// Mknod implements fuse.RawFileSystem: of files. There are no devices, sockets or pipes, which is EPERM (mknod(2)).
func (r *raw) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if t := in.Mode & syscall.S_IFMT; t != syscall.S_IFREG && t != 0 && !r.readOnly {
		return fuse.EPERM
	}
	return r.makeNode("mknod", &in.InHeader, name, fs.Make{Set: withPerm(in.Mode)}, out)
}

// Mkdir implements fuse.RawFileSystem.
func (r *raw) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return r.makeNode("mkdir", &in.InHeader, name, fs.Make{Type: iofs.ModeDir, Set: withPerm(in.Mode)}, out)
}

// Symlink implements fuse.RawFileSystem.
func (r *raw) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return r.makeNode("symlink", in, name, fs.Make{Type: iofs.ModeSymlink, Target: target, Set: withPerm(0o777)}, out)
}

func withPerm(mode uint32) fs.SetAttr {
	mode &= 0o7777
	return fs.SetAttr{Perm: &mode}
}

// makeNode makes a node that belongs to the caller. In a folder with the setgid bit it gets the folder's group, and a
// folder the bit as well (inode(7)).
func (r *raw) makeNode(op string, in *fuse.InHeader, name string, m fs.Make, out *fuse.EntryOut) fuse.Status {
	dir, st := r.mayName(in.NodeId)
	if !st.Ok() {
		return st
	}
	uid, gid := in.Uid, in.Gid
	if d := dir.Attr(); d.Mode&iofs.ModeSetgid != 0 {
		gid = d.GID
		if m.Type == iofs.ModeDir {
			*m.Set.Perm |= syscall.S_ISGID
		}
	}
	m.Set.UID, m.Set.GID = &uid, &gid
	o, err := r.mutable.Make(context.Background(), dir.ID(), name, m, nil)
	if err != nil {
		return r.status(op, in.NodeId, err)
	}
	return r.enter(op, o.Node.ID, out)
}

// enter gives the kernel a node that was just made or linked. ESTALE says that it is gone again.
func (r *raw) enter(op string, id fs.NodeID, out *fuse.EntryOut) fuse.Status {
	n, err := r.mutable.Node(id)
	if errs.Is(err, errs.NotFound) {
		return fuse.Status(syscall.ESTALE)
	}
	if err != nil {
		return r.status(op, uint64(id), err)
	}
	return r.entry(n, out)
}

// Link implements fuse.RawFileSystem.
func (r *raw) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	dir, st := r.mayName(in.NodeId)
	if !st.Ok() {
		return st
	}
	n, st := r.node(in.Oldnodeid)
	if !st.Ok() {
		return st
	}
	if _, ok := n.(fs.Folder); ok {
		return fuse.EPERM
	}
	if _, err := r.mutable.Link(context.Background(), n.ID(), dir.ID(), name, nil); err != nil {
		return r.status("link", in.NodeId, err)
	}
	return r.enter("link", n.ID(), out)
}

// Unlink implements fuse.RawFileSystem.
func (r *raw) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return r.unname("unlink", in, name, false)
}

// Rmdir implements fuse.RawFileSystem.
func (r *raw) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return r.unname("rmdir", in, name, true)
}

func (r *raw) unname(op string, in *fuse.InHeader, name string, folder bool) fuse.Status {
	dir, st := r.mayName(in.NodeId)
	if !st.Ok() {
		return st
	}
	_, err := r.mutable.Remove(context.Background(), dir.ID(), name, folder, nil)
	return r.status(op, in.NodeId, err)
}

// Rename implements fuse.RawFileSystem. RENAME_NOREPLACE is a look and a rename: the kernel, which holds both folders,
// lets nobody in between; another protocol could.
func (r *raw) Rename(_ <-chan struct{}, in *fuse.RenameIn, name, newName string) fuse.Status {
	from, st := r.mayName(in.NodeId)
	if !st.Ok() {
		return st
	}
	to, st := r.mayName(in.Newdir)
	if !st.Ok() {
		return st
	}
	if in.Flags&^unix.RENAME_NOREPLACE != 0 {
		return fuse.EINVAL
	}
	ctx := context.Background()
	if in.Flags != 0 {
		if _, err := to.Lookup(ctx, newName); err == nil {
			return fuse.Status(syscall.EEXIST)
		}
	}
	_, err := r.mutable.Rename(ctx, from.ID(), name, to.ID(), newName, nil)
	return r.status("rename", in.NodeId, err)
}
