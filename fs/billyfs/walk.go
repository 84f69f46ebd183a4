package billyfs

import (
	"context"
	iofs "io/fs"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/go-git/go-billy/v5"

	"livemount/fs"
	"livemount/internal/errs"
)

// linksMax is how many symbolic links are followed, as in the kernel.
const linksMax = 40

// place is where a path leads: to a name in a folder, which may not be there (node is nil then). The root, and what a
// link reaches through "..", has no folder and no name.
type place struct {
	dir  fs.Folder
	name string
	node fs.Node
}

// walker finds where a path leads.
type walker struct {
	*filesystem
	follow  bool // also a link at the end of the path
	parents bool // make folders that are not there
	stack   []fs.Folder
	parts   []string // that are left of the path
	links   int
}

// find finds where a path leads. Its last element need not exist.
func (b *filesystem) find(path string, follow, parents bool) (place, error) {
	if crosses(path) {
		return place{}, billy.ErrCrossedBoundary
	}
	w := walker{filesystem: b, follow: follow, parents: parents, parts: split(filepath.Clean("/" + path))}
	if err := w.start(); err != nil {
		return place{}, err
	}
	return w.walk()
}

// found is find of something that exists.
func (b *filesystem) found(path string, follow bool) (fs.Node, error) {
	p, err := b.find(path, follow, false)
	if err == nil && p.node == nil {
		err = syscall.ENOENT
	}
	return p.node, err
}

// start goes to the root: that of the tree, or a folder in it, which is found from the whole tree.
func (w *walker) start() error {
	w.stack = append(w.stack[:0], w.tree.Root())
	if w.base == "/" {
		return nil
	}
	outer := &filesystem{w.shared, "/"}
	if w.parents {
		if err := outer.mkdirAll(w.base, folderPerm); err != nil {
			return err
		}
	}
	n, err := outer.found(w.base, true)
	if err != nil {
		return err
	}
	dir, ok := n.(fs.Folder)
	if !ok {
		return syscall.ENOTDIR
	}
	w.stack[0] = dir
	return nil
}

func (w *walker) top() fs.Folder { return w.stack[len(w.stack)-1] }

func (w *walker) walk() (place, error) {
	for len(w.parts) > 0 {
		name := w.parts[0]
		w.parts = w.parts[1:]
		if name == ".." {
			if err := w.up(); err != nil {
				return place{}, err
			}
			continue
		}
		p, err := w.step(name)
		if err != nil || p.dir != nil {
			return p, err
		}
	}
	return place{node: w.top()}, nil
}

// up goes to the folder above. That of the tree's root is the root; a root below it is not left.
func (w *walker) up() error {
	switch {
	case len(w.stack) > 1:
		w.stack = w.stack[:len(w.stack)-1]
	case w.base != "/":
		return billy.ErrCrossedBoundary
	}
	return nil
}

// step goes to a name, or, when it is the last, returns the place.
func (w *walker) step(name string) (place, error) {
	last := len(w.parts) == 0
	n, err := w.top().Lookup(context.Background(), name)
	if errs.Is(err, errs.NotFound) && !last && w.parents {
		n, err = w.makeFolder(w.top(), name, folderPerm)
	}
	if errs.Is(err, errs.NotFound) && last {
		return place{dir: w.top(), name: name}, nil
	}
	if err != nil {
		return place{}, err
	}
	if l, ok := n.(fs.Link); ok && (!last || w.follow) {
		return place{}, w.followLink(l)
	}
	if last {
		return place{w.top(), name, n}, nil
	}
	dir, ok := n.(fs.Folder)
	if !ok {
		return place{}, syscall.ENOTDIR
	}
	w.stack = append(w.stack, dir)
	return place{}, nil
}

// followLink puts what a link says before what is left of the path.
func (w *walker) followLink(l fs.Link) error {
	if w.links++; w.links > linksMax {
		return syscall.ELOOP
	}
	target, err := l.Target(context.Background())
	if err != nil {
		return err
	}
	if strings.HasPrefix(target, "/") {
		inside, ok := w.below(filepath.Clean(target))
		if !ok {
			return billy.ErrCrossedBoundary
		}
		target, w.stack = inside, w.stack[:1]
	}
	w.parts = append(split(target), w.parts...)
	return nil
}

// below cuts the base off a cleaned path of the tree.
func (b *filesystem) below(path string) (string, bool) {
	if b.base == "/" {
		return path, true
	}
	rest, ok := strings.CutPrefix(path, b.base)
	return rest, ok && (rest == "" || rest[0] == '/')
}

// folderPerm are the permissions of folders that nobody said any of.
const folderPerm = 0o755

// makeFolder makes a folder, or finds one that somebody else has made meanwhile.
func (b *filesystem) makeFolder(dir fs.Folder, name string, perm iofs.FileMode) (fs.Node, error) {
	if b.options.ReadOnly {
		return nil, syscall.EROFS
	}
	_, err := b.make(dir, name, fs.Make{Type: iofs.ModeDir}, perm)
	if err != nil && !errs.Is(err, errs.Exists) {
		return nil, err
	}
	return dir.Lookup(context.Background(), name)
}

// make makes a node that belongs to the one whom the options name.
func (b *filesystem) make(dir fs.Folder, name string, m fs.Make, perm iofs.FileMode) (fs.Outcome, error) {
	if b.options.ReadOnly {
		return fs.Outcome{}, syscall.EROFS
	}
	bits, uid, gid := fs.PermBits(perm), b.options.UID, b.options.GID
	m.Set.Perm, m.Set.UID, m.Set.GID = &bits, &uid, &gid
	return b.tree.Make(context.Background(), dir.ID(), name, m, nil)
}
