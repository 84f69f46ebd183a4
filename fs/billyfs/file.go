package billyfs

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"livemount/fs"
	"livemount/internal/errs"
)

// file implements billy.File and io.WriterAt.
type file struct {
	fs    *filesystem
	name  string
	node  fs.Writable // held from open to close
	flag  int
	dirty atomic.Bool // Close has something to sync

	use    sync.RWMutex // held for reading by what uses node, for writing by Close
	closed bool         // guarded by use

	mu  sync.Mutex // guards pos; held by what moves it, and taken after use
	pos int64
}

// Name implements billy.File.
func (f *file) Name() string { return f.name }

// begin lets an operation use the node, until end.
func (f *file) begin(op string, wants int) error {
	f.use.RLock()
	err := f.may(wants)
	if err == nil {
		return nil
	}
	f.use.RUnlock()
	return &os.PathError{Op: op, Path: f.name, Err: err}
}

// may says whether the file is open for reading (O_RDONLY), for writing (O_WRONLY), or for either (O_RDWR).
func (f *file) may(wants int) error {
	const how = os.O_RDONLY | os.O_WRONLY | os.O_RDWR
	mode := f.flag & how
	switch {
	case f.closed:
		return os.ErrClosed
	case wants == os.O_RDONLY && mode == os.O_WRONLY, wants == os.O_WRONLY && mode == os.O_RDONLY:
		return syscall.EBADF
	}
	return nil
}

func (f *file) end() { f.use.RUnlock() }

// Read implements io.Reader.
func (f *file) Read(p []byte) (int, error) {
	if err := f.begin("read", os.O_RDONLY); err != nil {
		return 0, err
	}
	defer f.end()
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.get(p, f.pos)
	f.pos += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// ReadAt implements io.ReaderAt.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if err := f.begin("read", os.O_RDONLY); err != nil {
		return 0, err
	}
	defer f.end()
	return f.get(p, off)
}

func (f *file) get(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, pathError("read", f.name, syscall.EINVAL)
	}
	n, err := f.readInside(p, off)
	if err != nil {
		return 0, pathError("read", f.name, err)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// readInside reads what of p is inside of the file, and once more when the file became shorter meanwhile.
func (f *file) readInside(p []byte, off int64) (int, error) {
	for {
		size := f.node.Size()
		n := int(min(int64(len(p)), max(0, size-off)))
		if n == 0 {
			return 0, nil
		}
		err := f.node.ReadAt(context.Background(), p[:n], off)
		if !errs.Is(err, errs.Invalid) || f.node.Size() >= size {
			return n, err
		}
	}
}

// Write implements io.Writer.
func (f *file) Write(p []byte) (int, error) {
	if err := f.begin("write", os.O_WRONLY); err != nil {
		return 0, err
	}
	defer f.end()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.flag&os.O_APPEND != 0 {
		f.fs.appends.Lock()
		defer f.fs.appends.Unlock()
		f.pos = f.node.Size()
	}
	n, err := f.put(p, f.pos)
	f.pos += int64(n)
	return n, err
}

// WriteAt implements io.WriterAt. As with package os, a file that was opened to append refuses it.
func (f *file) WriteAt(p []byte, off int64) (int, error) {
	if err := f.begin("write", os.O_WRONLY); err != nil {
		return 0, err
	}
	defer f.end()
	if off < 0 || f.flag&os.O_APPEND != 0 {
		return 0, pathError("write", f.name, syscall.EINVAL)
	}
	return f.put(p, off)
}

func (f *file) put(p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	f.dirty.Store(true)
	if err := f.node.WriteAt(context.Background(), p, off); err != nil {
		return 0, pathError("write", f.name, err)
	}
	return len(p), nil
}

// Seek implements io.Seeker.
func (f *file) Seek(offset int64, whence int) (int64, error) {
	if err := f.begin("seek", os.O_RDWR); err != nil {
		return 0, err
	}
	defer f.end()
	f.mu.Lock()
	defer f.mu.Unlock()
	from := int64(0)
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		from = f.pos
	case io.SeekEnd:
		from = f.node.Size()
	default:
		return 0, pathError("seek", f.name, syscall.EINVAL)
	}
	if to := from + offset; to >= 0 {
		f.pos = to
		return to, nil
	}
	return 0, pathError("seek", f.name, syscall.EINVAL)
}

// Truncate implements billy.File.
func (f *file) Truncate(size int64) error {
	if err := f.begin("truncate", os.O_WRONLY); err != nil {
		return err
	}
	defer f.end()
	return pathError("truncate", f.name, f.cut(size))
}

// Close implements io.Closer. It returns nil only when all that was written is on disk. It waits for what uses the file,
// but for Lock, which it ends.
func (f *file) Close() error {
	f.use.Lock()
	defer f.use.Unlock()
	if f.closed {
		return &os.PathError{Op: "close", Path: f.name, Err: os.ErrClosed}
	}
	f.closed = true
	f.fs.locks.close(f)
	var err error
	if f.dirty.Load() {
		err = f.node.Sync(context.Background())
	}
	f.fs.tree.Release(f.node)
	return pathError("close", f.name, err)
}
