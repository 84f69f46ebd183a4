package crash

import (
	"context"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"livemount/test/harness"
)

// sickDisk is a folder that shows another one, and fails where it is told to.
type sickDisk struct {
	dir   string
	fails atomic.Pointer[func(op, name string) bool] // op: create, write, sync
	hits  atomic.Int64
}

func newSickDisk(t *testing.T) *sickDisk {
	t.Helper()
	harness.NeedRoot(t)
	harness.Tools(t, "fusermount3 fuse3")
	top := harness.Dir(t)
	d := &sickDisk{dir: harness.Mkdir(t, top, "shown")}
	d.heal()
	back := harness.Mkdir(t, top, "back")
	var st syscall.Stat_t
	if err := syscall.Stat(back, &st); err != nil {
		t.Fatal(err)
	}
	root := &fs.LoopbackRoot{Path: back, Dev: uint64(st.Dev)}
	first := &sickNode{&fs.LoopbackNode{RootData: root}, d}
	root.RootNode = first
	server, err := fs.Mount(d.dir, first, &fs.Options{MountOptions: fuse.MountOptions{DirectMountStrict: true, MaxWrite: 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		harness.RemoveWhatever(t, d.dir)
		_ = server.Unmount() // it may be gone already
	})
	return d
}

// failOn lets an operation on files whose path contains what fail.
func (d *sickDisk) failOn(op, what string) {
	f := func(o, name string) bool { return o == op && strings.Contains(name, what) }
	d.fails.Store(&f)
	d.hits.Store(0)
}

func (d *sickDisk) heal() {
	f := func(string, string) bool { return false }
	d.fails.Store(&f)
}

func (d *sickDisk) ask(op, name string) syscall.Errno {
	if !(*d.fails.Load())(op, name) {
		return 0
	}
	d.hits.Add(1)
	return syscall.EIO
}

type sickNode struct {
	*fs.LoopbackNode
	d *sickDisk
}

// WrapChild implements fs.NodeWrapChilder.
func (n *sickNode) WrapChild(_ context.Context, ops fs.InodeEmbedder) fs.InodeEmbedder {
	return &sickNode{ops.(*fs.LoopbackNode), n.d}
}

func (n *sickNode) file(f fs.FileHandle, name string) fs.FileHandle {
	if f == nil {
		return nil
	}
	return &sickFile{f, n.d, name}
}

// Open implements fs.NodeOpener.
func (n *sickNode) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	f, more, errno := n.LoopbackNode.Open(ctx, flags)
	return n.file(f, n.Path(nil)), more, errno
}

// Create implements fs.NodeCreater.
func (n *sickNode) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	path := n.Path(nil) + "/" + name
	if errno := n.d.ask("create", path); errno != 0 {
		return nil, nil, 0, errno
	}
	inode, f, more, errno := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	return inode, n.file(f, path), more, errno
}

// sickFile passes on what a file of a daemon is asked for.
type sickFile struct {
	f    fs.FileHandle
	d    *sickDisk
	name string
}

// Read implements fs.FileReader.
func (s *sickFile) Read(ctx context.Context, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	return s.f.(fs.FileReader).Read(ctx, p, off)
}

// Write implements fs.FileWriter.
func (s *sickFile) Write(ctx context.Context, p []byte, off int64) (uint32, syscall.Errno) {
	if errno := s.d.ask("write", s.name); errno != 0 {
		return 0, errno
	}
	return s.f.(fs.FileWriter).Write(ctx, p, off)
}

// Fsync implements fs.FileFsyncer.
func (s *sickFile) Fsync(ctx context.Context, flags uint32) syscall.Errno {
	if errno := s.d.ask("sync", s.name); errno != 0 {
		return errno
	}
	return s.f.(fs.FileFsyncer).Fsync(ctx, flags)
}

// Flush implements fs.FileFlusher.
func (s *sickFile) Flush(ctx context.Context) syscall.Errno { return s.f.(fs.FileFlusher).Flush(ctx) }

// Release implements fs.FileReleaser.
func (s *sickFile) Release(ctx context.Context) syscall.Errno {
	return s.f.(fs.FileReleaser).Release(ctx)
}

// Getattr implements fs.FileGetattrer.
func (s *sickFile) Getattr(ctx context.Context, out *fuse.AttrOut) syscall.Errno {
	return s.f.(fs.FileGetattrer).Getattr(ctx, out)
}

// Setattr implements fs.FileSetattrer.
func (s *sickFile) Setattr(ctx context.Context, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return s.f.(fs.FileSetattrer).Setattr(ctx, in, out)
}

// Allocate implements fs.FileAllocater.
func (s *sickFile) Allocate(ctx context.Context, off, size uint64, mode uint32) syscall.Errno {
	return s.f.(fs.FileAllocater).Allocate(ctx, off, size, mode)
}

// Lseek implements fs.FileLseeker.
func (s *sickFile) Lseek(ctx context.Context, off uint64, whence uint32) (uint64, syscall.Errno) {
	return s.f.(fs.FileLseeker).Lseek(ctx, off, whence)
}
