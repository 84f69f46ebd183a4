// Package fusefs shows a tree as a file system of this machine, through FUSE.
//
// What it promises to programs on the mount: a write that was answered is in the device, one with O_SYNC,
// O_DSYNC or RWF_DSYNC, and everything before an fsync, is on disk (Device.Sync returned). Ranges that are
// punched or zeroed read as zeroes at once, also through mmap. SEEK_DATA and SEEK_HOLE are exact, except
// that a page changed through mmap in a hole is data only after msync. sync(2) and syncfs(2) do not reach
// a FUSE server (the kernel sends no request): use fsync.
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
	readAheadKiB    = 1024      // one full request; 4096 was never much better and sometimes worse
)

// Options of a mount. Dir is needed.
type Options struct {
	// Dir is an existing, empty folder.
	Dir string
	// ReadOnly refuses every change, also of files that could be written.
	ReadOnly bool
	// AllowOther lets other users than the one who mounts in, as far as the modes allow.
	AllowOther bool
	// DirectIO keeps nothing in the kernel's page cache. It is needed when the same disk is served
	// through another protocol at the same time.
	DirectIO bool
	// FsName is the source that findmnt shows, "livemount:ID" by custom; default "livemount".
	FsName string
	// Log may be nil.
	Log *slog.Logger
}

// Server is a mounted tree.
type Server struct {
	dir    string
	device string // "MAJOR:MINOR", tells our mount from another at the same place
	done   chan struct{}
}

// Mount mounts tree at o.Dir and returns when the file system answers. ctx bounds the checks before; the
// mount lasts until Unmount or until somebody else unmounts it. The tree's devices must stay open until
// Done.
//
// Errors: NotFound, Invalid, Busy when Dir does not exist, is no empty folder, is in use; Denied.
func Mount(ctx context.Context, tree *fs.Tree, o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.FsName == "" {
		o.FsName = typeName
	}
	dir, err := checkDir(o.Dir)
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
	return serve(server, dir, o.Log)
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

// serve starts to answer. Its goroutine ends with the mount; Done tells.
func serve(server *fuse.Server, dir string, log *slog.Logger) (*Server, error) {
	s := &Server{dir: dir, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		server.Serve()
	}()
	err := server.WaitMount()
	if err == nil {
		err = s.identify(log)
	}
	if err != nil {
		err = errs.New(errs.KindOf(err), "mount %s: %w", dir, err)
		return nil, errors.Join(err, detach(context.Background(), dir))
	}
	return s, nil
}

func (s *Server) identify(log *slog.Logger) error {
	info, err := FindMount(s.dir)
	if err != nil {
		return err
	}
	s.device = info.Device
	setReadAhead(info.Device, log)
	return nil
}

// Dir is where the tree is mounted, without symbolic links.
func (s *Server) Dir() string { return s.dir }

// Done is closed when the file system is unmounted, by whomever, and all requests are answered.
func (s *Server) Done() <-chan struct{} { return s.done }

// Wait returns after Done.
func (s *Server) Wait() { <-s.done }

// Unmount unmounts and waits until every request is answered. It is Busy while files are open there. What
// was unmounted by others already is not an error.
func (s *Server) Unmount(ctx context.Context) error {
	return s.unmount(ctx, func() error {
		err := unix.Unmount(s.dir, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EPERM) {
			return fusermount(ctx, "-u", "--", s.dir)
		}
		return err
	})
}

// Detach takes the mount away at once, though it is in use: programs keep the files that they have open,
// and Done follows when the last one is closed. It does not wait for that.
func (s *Server) Detach(ctx context.Context) error {
	if !s.mounted() {
		return nil
	}
	return detach(ctx, s.dir)
}

func (s *Server) unmount(ctx context.Context, umount func() error) error {
	if s.mounted() {
		if err := umount(); err != nil {
			err = errs.New(errs.KindOf(err), "unmount %s: %w", s.dir, err)
			return errs.WithTry(err, "see who uses it: fuser -vm %s; losetup -a", s.dir)
		}
	}
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return errs.New(errs.KindOf(ctx.Err()), "unmount %s: wait for open requests: %w", s.dir, ctx.Err())
	}
}

// mounted says whether what is at dir is this mount, so that no other is ever unmounted.
func (s *Server) mounted() bool {
	select {
	case <-s.done: // the device number may belong to another mount by now
		return false
	default:
	}
	info, err := FindMount(s.dir)
	return err == nil && info.Ours() && info.Device == s.device
}
