// Package fusefs shows a tree as a file system of this machine, through FUSE.
//
// What it promises to programs on the mount: a write that was answered is in the device, one with O_SYNC,
// O_DSYNC or RWF_DSYNC, and everything before an fsync, is on disk (Device.Sync returned). Ranges that are
// punched or zeroed read as zeroes at once, also through mmap. SEEK_DATA and SEEK_HOLE are exact, except
// that a page changed through mmap in a hole is data only after msync. sync(2) and syncfs(2) do not reach
// a FUSE server (the kernel sends no request): use fsync.
//
// A fs.Mutable is a POSIX file system: names are made, linked, renamed and removed, files grow and are cut, what was
// removed stays usable while it is open, and a change of names is on disk after an fsync of a folder or of a file. New
// nodes belong to the caller. There is no preallocation (EOPNOTSUPP: the space is shared), no O_TMPFILE, no
// RENAME_EXCHANGE, and no times of reads. Record locks and flock(2) are the kernel's: they hold within this machine.
// Together with another protocol (DirectIO) names are exact at each use, attributes of open files and what O_APPEND
// takes for the end may be a second old.
//
// It must not be read or written by the process that serves it: such a call can take the thread that would
// answer it (go-fuse, section "Deadlocks"). Mount and Unmount themselves keep clear of that.
//
// Limits: requests of 1 MiB both ways, 64 in the background (read-ahead, asynchronous direct I/O), 256 MiB
// of writes at a time; reads beyond that are one for each thread that waits.
package fusefs

import (
	"context"
	"errors"
	"log/slog"
	"os/exec"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"livemount/fs"
	"livemount/internal/errs"
)

const (
	requestBytesMax = 1 << 20
	backgroundMax   = 64
	inputBytesMax   = 256 << 20 // of all writes being answered
	readAheadKiB    = 2048      // two full requests, so that one is decoded while the other is copied; 4096 was never better
)

// Options of a mount. Dir is needed.
type Options struct {
	// Dir is an existing, empty folder.
	Dir string
	// OverFiles mounts also over a folder that is not empty, as mount(2) does. What is in it is hidden until
	// the unmount.
	OverFiles bool
	// ReadOnly refuses every change, also of files that could be written.
	ReadOnly bool
	// AllowOther lets other users than the one who mounts in, as far as the modes allow.
	AllowOther bool
	// DirectIO keeps nothing in the kernel's page cache, and no names of a Mutable tree. It is needed when the same disk
	// or tree is served through another protocol at the same time.
	DirectIO bool
	// Changing says that names come and go by themselves: the kernel asks at each use. It still keeps what is
	// in files, and their attributes: a file never becomes another.
	Changing bool
	// FsName is the source that findmnt shows, "livemount:ID" by custom; default "livemount".
	FsName string
	// Log may be nil.
	Log *slog.Logger
}

// Mount mounts tree at o.Dir and returns when the file system answers. ctx bounds the checks before; the
// mount lasts until Unmount or until somebody else unmounts it. The tree's devices must stay open until
// Done.
//
// Errors: NotFound, Invalid, Busy when Dir does not exist, is no empty folder, is in use; Denied.
func Mount(ctx context.Context, tree fs.Served, o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.FsName == "" {
		o.FsName = typeName
	}
	dir, err := checkDir(o.Dir, o.OverFiles, o.Log)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	r := newRaw(tree, o)
	server, err := fuse.NewServer(r, dir, mountOptions(r, o))
	if err != nil {
		return nil, mountError(dir, err)
	}
	return serve(server, r, dir, o.Log)
}

func mountOptions(r *raw, o Options) *fuse.MountOptions {
	m := &fuse.MountOptions{
		AllowOther: o.AllowOther, FsName: o.FsName, Name: typeName,
		Options:       []string{"default_permissions"}, // the kernel checks modes: no ACCESS requests
		MaxBackground: backgroundMax, MaxWrite: requestBytesMax, MaxReadAhead: requestBytesMax,
		MaxInflightRequestBytes: inputBytesMax,
		DisableXAttrs:           true, // saves a GETXATTR before every write
		DisableReadDirPlus:      true, // folders are small
		DisableSplice:           true, // data comes from memory
		DirectMount:             true,
		// Otherwise every mtime that our own writes move throws the page cache away.
		ExplicitDataCacheControl: true,
		ExtraCapabilities:        fuse.CAP_ASYNC_DIO | fuse.CAP_DIRECT_IO_ALLOW_MMAP,
		Logger:                   slog.NewLogLogger(o.Log.Handler(), slog.LevelWarn),
		PanicHandler:             r.panicked,
	}
	if o.ReadOnly {
		m.Options = append(m.Options, "ro")
	}
	return m
}

func mountError(dir string, err error) error {
	if denied := unix.Access("/dev/fuse", unix.R_OK|unix.W_OK); denied != nil {
		err = errs.New(errs.KindOf(denied), "mount %s: open /dev/fuse: %w", dir, denied)
		return errs.WithTry(err, "run as root, or see whether the kernel has FUSE: modprobe fuse; ls -l /dev/fuse")
	}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, unix.EPERM) {
		return errs.WithTry(errs.New(errs.Denied, "mount %s: %w", dir, err), "run as root, or install the package fuse3")
	}
	return errs.WithTry(errs.New(errs.KindOf(err), "mount %s: %w", dir, err),
		"look at what fusermount3 said above; user_allow_other in /etc/fuse.conf lets users share a mount")
}
