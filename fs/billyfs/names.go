package billyfs

import (
	"context"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/go-git/go-billy/v5"

	"livemount/fs"
	"livemount/internal/errs"
)

// Stat implements billy.Basic.
func (b *filesystem) Stat(path string) (os.FileInfo, error) { return b.stat("stat", path, true) }

// Lstat implements billy.Symlink.
func (b *filesystem) Lstat(path string) (os.FileInfo, error) { return b.stat("lstat", path, false) }

func (b *filesystem) stat(op, path string, follow bool) (os.FileInfo, error) {
	n, err := b.found(path, follow)
	if err != nil {
		return nil, pathError(op, path, err)
	}
	return info{filepath.Base(filepath.Clean("/" + path)), n.Attr()}, nil
}

// ReadDir implements billy.Dir: sorted by name.
func (b *filesystem) ReadDir(path string) ([]os.FileInfo, error) {
	n, err := b.found(path, true)
	if err != nil {
		return nil, pathError("readdir", path, err)
	}
	dir, ok := n.(fs.Folder)
	if !ok {
		return nil, pathError("readdir", path, syscall.ENOTDIR)
	}
	list, err := b.list(dir)
	return list, pathError("readdir", path, err)
}

func (b *filesystem) list(dir fs.Folder) ([]os.FileInfo, error) {
	const batch = 256
	list := []os.FileInfo{}
	for behind := fs.Cookie(0); ; {
		entries, err := dir.List(context.Background(), behind, batch)
		if err != nil || len(entries) == 0 {
			slices.SortFunc(list, func(a, b os.FileInfo) int { return strings.Compare(a.Name(), b.Name()) })
			return list, err
		}
		for _, e := range entries {
			behind = e.Cookie
			n, err := b.tree.Node(e.ID)
			if errs.Is(err, errs.NotFound) { // it was removed meanwhile
				continue
			}
			if err != nil {
				return nil, err
			}
			list = append(list, info{e.Name, n.Attr()})
		}
	}
}

// MkdirAll implements billy.Dir.
func (b *filesystem) MkdirAll(path string, perm os.FileMode) error {
	return pathError("mkdir", path, b.mkdirAll(path, perm))
}

func (b *filesystem) mkdirAll(path string, perm iofs.FileMode) error {
	p, err := b.find(path, true, true)
	if err == nil && p.node == nil {
		p.node, err = b.makeFolder(p.dir, p.name, perm)
	}
	if err != nil {
		return err
	}
	if _, ok := p.node.(fs.Folder); !ok {
		return syscall.ENOTDIR
	}
	return nil
}

// change finds a name that is about to be changed, without following a link that it is.
func (b *filesystem) change(path string, parents bool) (place, error) {
	if b.options.ReadOnly {
		return place{}, syscall.EROFS
	}
	p, err := b.find(path, false, parents)
	if err == nil && p.dir == nil {
		err = syscall.EBUSY // the root
	}
	return p, err
}

// Remove implements billy.Basic: of an empty folder, or of anything else.
func (b *filesystem) Remove(path string) error {
	p, err := b.change(path, false)
	if err == nil && p.node == nil {
		err = syscall.ENOENT
	}
	if err == nil {
		_, folder := p.node.(fs.Folder)
		_, err = b.tree.Remove(context.Background(), p.dir.ID(), p.name, folder, nil)
	}
	return pathError("remove", path, err)
}

// Rename implements billy.Basic. The folders of the new name are made when they are not there.
func (b *filesystem) Rename(from, to string) error {
	src, err := b.change(from, false)
	if err == nil && src.node == nil {
		err = syscall.ENOENT
	}
	if err != nil {
		return linkError("rename", from, to, err)
	}
	dst, err := b.change(to, true)
	if err == nil {
		_, err = b.tree.Rename(context.Background(), src.dir.ID(), src.name, dst.dir.ID(), dst.name, nil)
	}
	return linkError("rename", from, to, err)
}

// Symlink implements billy.Symlink. The folders of the link are made when they are not there. An absolute target is one
// of this root.
func (b *filesystem) Symlink(target, link string) error {
	p, err := b.change(link, true)
	if err == nil && p.node != nil {
		err = syscall.EEXIST
	}
	if err == nil {
		if filepath.IsAbs(target) {
			target = filepath.Join(b.base, target)
		}
		_, err = b.make(p.dir, p.name, fs.Make{Type: iofs.ModeSymlink, Target: target}, 0o777)
	}
	return linkError("symlink", target, link, err)
}

// Readlink implements billy.Symlink.
func (b *filesystem) Readlink(path string) (string, error) {
	target, err := b.readlink(path)
	return target, pathError("readlink", path, err)
}

func (b *filesystem) readlink(path string) (string, error) {
	n, err := b.found(path, false)
	if err != nil {
		return "", err
	}
	l, ok := n.(fs.Link)
	if !ok {
		return "", syscall.EINVAL
	}
	target, err := l.Target(context.Background())
	if err != nil || !filepath.IsAbs(target) || b.base == "/" {
		return target, err
	}
	inside, ok := b.below(filepath.Clean(target))
	if !ok {
		return "", billy.ErrCrossedBoundary
	}
	return filepath.Join("/", inside), nil
}

// TempFile implements billy.TempFile: in the root when no folder is named.
func (b *filesystem) TempFile(dir, prefix string) (billy.File, error) {
	const tries = 1000
	path := ""
	for range tries {
		path = filepath.Join(dir, prefix+strconv.FormatUint(rand.Uint64(), 36))
		f, err := b.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if !os.IsExist(err) {
			return f, err
		}
	}
	return nil, pathError("open", path, syscall.EEXIST)
}
