package billyfs

import (
	"context"
	iofs "io/fs"
	"os"
	"syscall"
	"time"

	"livemount/fs"
)

// Chmod implements billy.Change.
func (b *filesystem) Chmod(path string, mode os.FileMode) error {
	bits := fs.PermBits(mode)
	return pathError("chmod", path, b.set(path, true, fs.SetAttr{Perm: &bits}))
}

// Chown implements billy.Change. An id of -1 stays as it is.
func (b *filesystem) Chown(path string, uid, gid int) error {
	return pathError("chown", path, b.set(path, true, owners(uid, gid)))
}

// Lchown implements billy.Change.
func (b *filesystem) Lchown(path string, uid, gid int) error {
	return pathError("lchown", path, b.set(path, false, owners(uid, gid)))
}

// Chtimes implements billy.Change. A zero time stays as it is, as with os.Chtimes.
func (b *filesystem) Chtimes(path string, accessed, modified time.Time) error {
	var s fs.SetAttr
	if !accessed.IsZero() {
		s.Accessed = &accessed
	}
	if !modified.IsZero() {
		s.Modified = &modified
	}
	return pathError("chtimes", path, b.set(path, true, s))
}

func owners(uid, gid int) (s fs.SetAttr) {
	if uid >= 0 {
		v := uint32(uid)
		s.UID = &v
	}
	if gid >= 0 {
		v := uint32(gid)
		s.GID = &v
	}
	return s
}

func (b *filesystem) set(path string, follow bool, s fs.SetAttr) error {
	if b.options.ReadOnly {
		return syscall.EROFS
	}
	n, err := b.found(path, follow)
	if err != nil {
		return err
	}
	_, err = b.tree.SetAttr(context.Background(), n.ID(), s, time.Time{}, nil)
	return err
}

// info implements os.FileInfo.
type info struct {
	name string
	attr fs.Attr
}

// Name implements os.FileInfo.
func (i info) Name() string { return i.name }

// Size implements os.FileInfo.
func (i info) Size() int64 { return i.attr.SizeBytes }

// Mode implements os.FileInfo.
func (i info) Mode() os.FileMode { return i.attr.Mode }

// ModTime implements os.FileInfo.
func (i info) ModTime() time.Time { return i.attr.Modified }

// IsDir implements os.FileInfo.
func (i info) IsDir() bool { return i.attr.Mode.IsDir() }

// Sys implements os.FileInfo, with what package os has there.
func (i info) Sys() any {
	a := &i.attr
	st := &syscall.Stat_t{
		Ino: uint64(a.ID), Mode: fs.PermBits(a.Mode), Uid: a.UID, Gid: a.GID, Size: a.SizeBytes, Blksize: 4096,
		Blocks: (a.AllocatedBytes + 511) / 512,
		Atim:   syscall.NsecToTimespec(a.Accessed.UnixNano()),
		Mtim:   syscall.NsecToTimespec(a.Modified.UnixNano()),
		Ctim:   syscall.NsecToTimespec(a.Changed.UnixNano()),
	}
	switch a.Mode.Type() {
	case iofs.ModeDir:
		st.Mode |= syscall.S_IFDIR
	case iofs.ModeSymlink:
		st.Mode |= syscall.S_IFLNK
	default:
		st.Mode |= syscall.S_IFREG
	}
	assign(&st.Nlink, a.Links)
	return st
}

// assign sets a field whose type is not the same on all machines.
func assign[T ~uint32 | ~uint64](field *T, n uint32) { *field = T(n) }
