package fusefs

import "github.com/hanwen/go-fuse/v2/fuse"

// refused answers whatever would change names.
func (r *raw) refused() fuse.Status {
	if r.readOnly {
		return fuse.EROFS
	}
	return fuse.EPERM
}

// Create implements fuse.RawFileSystem.
func (r *raw) Create(<-chan struct{}, *fuse.CreateIn, string, *fuse.CreateOut) fuse.Status {
	return r.refused()
}

// Tmpfile implements fuse.RawFileSystem.
func (r *raw) Tmpfile(<-chan struct{}, *fuse.CreateIn, *fuse.CreateOut) fuse.Status {
	return fuse.ENOTSUP // what open(O_TMPFILE) is documented to give, so that callers fall back
}

// Mknod implements fuse.RawFileSystem.
func (r *raw) Mknod(<-chan struct{}, *fuse.MknodIn, string, *fuse.EntryOut) fuse.Status {
	return r.refused()
}

// Mkdir implements fuse.RawFileSystem.
func (r *raw) Mkdir(<-chan struct{}, *fuse.MkdirIn, string, *fuse.EntryOut) fuse.Status {
	return r.refused()
}

// Unlink implements fuse.RawFileSystem.
func (r *raw) Unlink(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return r.refused() }

// Rmdir implements fuse.RawFileSystem.
func (r *raw) Rmdir(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return r.refused() }

// Rename implements fuse.RawFileSystem.
func (r *raw) Rename(<-chan struct{}, *fuse.RenameIn, string, string) fuse.Status { return r.refused() }

// Link implements fuse.RawFileSystem.
func (r *raw) Link(<-chan struct{}, *fuse.LinkIn, string, *fuse.EntryOut) fuse.Status {
	return r.refused()
}

// Symlink implements fuse.RawFileSystem.
func (r *raw) Symlink(<-chan struct{}, *fuse.InHeader, string, string, *fuse.EntryOut) fuse.Status {
	return r.refused()
}
