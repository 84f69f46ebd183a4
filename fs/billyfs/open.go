package billyfs

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/go-git/go-billy/v5"

	"livemount/fs"
	"livemount/internal/errs"
)

// Create implements billy.Basic. The folders of the file are made when they are not there.
func (b *filesystem) Create(path string) (billy.File, error) {
	return b.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o666)
}

// Open implements billy.Basic.
func (b *filesystem) Open(path string) (billy.File, error) { return b.OpenFile(path, os.O_RDONLY, 0) }

// OpenFile implements billy.Basic: of files only. With O_CREATE, the folders are made when they are not there.
func (b *filesystem) OpenFile(path string, flag int, perm os.FileMode) (billy.File, error) {
	f, err := b.open(path, flag, perm)
	if err != nil {
		return nil, pathError("open", path, err)
	}
	return f, nil
}

// openTries is how often a file is looked for again that comes and goes.
const openTries = 100

func (b *filesystem) open(path string, flag int, perm os.FileMode) (*file, error) {
	changes := flag&(os.O_WRONLY|os.O_RDWR|os.O_CREATE|os.O_TRUNC) != 0
	if changes && b.options.ReadOnly {
		return nil, syscall.EROFS
	}
	for range openTries {
		f, err := b.openOnce(path, flag, perm)
		again := flag&os.O_CREATE != 0 && flag&os.O_EXCL == 0 && (errs.Is(err, errs.Exists) || errs.Is(err, errs.NotFound))
		if !again {
			return f, err
		}
	}
	return nil, syscall.EBUSY
}

func (b *filesystem) openOnce(path string, flag int, perm os.FileMode) (*file, error) {
	create := flag&os.O_CREATE != 0
	exclusive := create && flag&os.O_EXCL != 0
	p, err := b.find(path, !exclusive, create)
	switch {
	case err != nil:
		return nil, err
	case p.node != nil && exclusive:
		return nil, syscall.EEXIST
	case p.node != nil:
		return b.openNode(path, p.node, flag)
	case !create:
		return nil, syscall.ENOENT
	}
	o, err := b.make(p.dir, p.name, fs.Make{}, perm)
	if err != nil {
		return nil, err
	}
	n, err := b.tree.Node(o.Node.ID)
	if err != nil {
		return nil, err
	}
	return b.openNode(path, n, flag&^os.O_TRUNC)
}

// openNode opens a file that is there, and cuts it when that is wanted.
func (b *filesystem) openNode(path string, n fs.Node, flag int) (*file, error) {
	switch n.(type) {
	case fs.Folder:
		return nil, syscall.EISDIR
	case fs.Link:
		return nil, syscall.ELOOP // one that was not to be followed
	}
	w, ok := n.(fs.Writable)
	if !ok || flag&(os.O_WRONLY|os.O_RDWR|os.O_TRUNC) != 0 && !w.Writable() {
		return nil, syscall.EROFS
	}
	b.tree.Hold(n)
	if _, err := b.tree.Node(n.ID()); err != nil { // it may have lost its bytes before it was held
		b.tree.Release(n)
		return nil, err
	}
	f := &file{fs: b, name: filepath.Join(split(path)...), node: w, flag: flag}
	if flag&os.O_TRUNC != 0 {
		if err := f.cut(0); err != nil {
			b.tree.Release(n)
			return nil, err
		}
	}
	return f, nil
}

// cut sets the size.
func (f *file) cut(size int64) error {
	_, err := f.fs.tree.SetAttr(context.Background(), f.node.ID(), fs.SetAttr{SizeBytes: &size}, time.Time{}, nil)
	if err == nil {
		f.dirty.Store(true)
	}
	return err
}
