package fusefs_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"livemount/blockdev"
	"livemount/blockdev/image"
	"livemount/fs"
	"livemount/fs/fusefs"
	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// A process must not use a mount that it serves itself, so this test binary runs itself again as the
// server. The parent sends commands, a line each, and reads a line for each.

const serverEnv = "LIVEMOUNT_TEST_SERVER"

// config is what a server is told to mount.
type config struct {
	Dir                string
	Size               int64
	File               string // a sparse file to write to; "" is memory
	ReadOnly, DirectIO bool
	User               uint32 // who serves; 0 is root
	Store              string // the folder of a datastore to serve, made when it is not there
	VMs, Points        int    // a History of a catalogue of so many VMs with so many points each, and one bad VM
}

func TestMain(m *testing.M) {
	if text := os.Getenv(serverEnv); text != "" {
		if err := serveMain(text); err != nil {
			fmt.Println("error", errs.KindOf(err), err, "Try:", errs.TryOf(err))
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func serveMain(text string) error {
	var c config
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	if c.Store != "" {
		return serveStore(c)
	}
	if c.VMs > 0 {
		return serveHistory(c)
	}
	var disk blockdev.Device = blockdev.NewMem(c.Size)
	if c.File != "" {
		var err error
		if disk, err = newSparse(c.File, c.Size); err != nil {
			return err
		}
	}
	p := &probe{Device: disk}
	slow := &blocking{Device: blockdev.NewMem(4096), started: make(chan struct{})}
	s, err := fusefs.Mount(context.Background(), testTree(p, slow), fusefs.Options{
		Dir: c.Dir, ReadOnly: c.ReadOnly, DirectIO: c.DirectIO, FsName: "livemount:7c1e",
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	command(s, p, slow)
	return s.Detach(context.Background()) // the parent is gone
}

const (
	diskID, readerID, badID, slowID = 10, 11, 12, 13
	totalBytes, freeBytes           = 1 << 40, 1 << 38
	allocatedBytes                  = 12 << 10
)

func testTree(disk, slow blockdev.Device) *fs.Tree {
	tree := fs.New(fs.Options{Space: func(context.Context) (vfs.Space, error) {
		return vfs.Space{TotalBytes: totalBytes, FreeBytes: freeBytes}, nil
	}})
	for _, d := range []fs.Disk{
		{ID: diskID, Name: "disk.raw", Data: disk, Allocated: func() int64 { return allocatedBytes }},
		{ID: readerID, Name: "reader.raw", Data: blockdev.NewMem(1 << 20), ReadOnly: true},
		{ID: badID, Name: "bad.raw", Data: &bad{blockdev.NewMem(3 << 20)}},
		{ID: slowID, Name: "slow.raw", Data: slow},
	} {
		if _, err := tree.AddDisk(d); err != nil {
			panic(err)
		}
	}
	return tree
}

func command(s *fusefs.Server, p *probe, slow *blocking) {
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		switch in.Text() {
		case "stats":
			fmt.Println(p.syncs.Load(), p.zeroes.Load(), p.writes.Load())
		case "started":
			<-slow.started
			fmt.Println("ok")
		case "done":
			<-s.Done()
			fmt.Println("ok")
		case "unmount":
			if err := s.Unmount(context.Background()); err != nil {
				fmt.Println("error", errs.KindOf(err), err)
			} else {
				fmt.Println("ok")
			}
		}
	}
}

// probe counts what reaches a device: calls of Sync, bytes given to Zero and WriteAt.
type probe struct {
	blockdev.Device
	syncs, zeroes, writes atomic.Int64
}

func (p *probe) Sync(ctx context.Context) error {
	p.syncs.Add(1)
	return p.Device.Sync(ctx)
}

func (p *probe) Zero(ctx context.Context, off, n int64) error {
	p.zeroes.Add(n)
	return p.Device.Zero(ctx, off, n)
}

func (p *probe) WriteAt(ctx context.Context, b []byte, off int64) error {
	p.writes.Add(int64(len(b)))
	return p.Device.WriteAt(ctx, b, off)
}

// bad fails: its first MiB is corrupt, its second hits a bug.
type bad struct{ *blockdev.Mem }

func (b *bad) ReadAt(_ context.Context, _ []byte, off int64) error {
	if off < 1<<20 {
		return errs.New(errs.Corrupt, "chunk 91c0: checksum mismatch")
	}
	panic("a bug")
}

func (b *bad) WriteAt(context.Context, []byte, int64) error {
	return errs.New(errs.NoSpace, "store is full")
}

// blocking waits in each read until nobody wants the answer any more.
type blocking struct {
	blockdev.Device
	once    sync.Once
	started chan struct{}
}

func (b *blocking) ReadAt(ctx context.Context, _ []byte, _ int64) error {
	b.once.Do(func() { close(b.started) })
	<-ctx.Done()
	return ctx.Err()
}

// sparse is a Device over a file with holes.
type sparse struct {
	*image.Raw
	file *os.File
}

func newSparse(path string, size int64) (*sparse, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	r, err := image.OpenRaw(path)
	return &sparse{r, f}, err
}

func (s *sparse) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := errors.Join(ctx.Err(), blockdev.CheckRange(s.Size(), off, int64(len(p)))); err != nil {
		return err
	}
	_, err := s.file.WriteAt(p, off)
	return err
}

func (s *sparse) Zero(ctx context.Context, off, n int64) error {
	if err := errors.Join(ctx.Err(), blockdev.CheckRange(s.Size(), off, n)); err != nil || n == 0 {
		return err
	}
	return unix.Fallocate(int(s.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func (s *sparse) Sync(ctx context.Context) error { return errors.Join(ctx.Err(), s.file.Sync()) }

func (s *sparse) Close() error { return errors.Join(s.Raw.Close(), s.file.Close()) }
