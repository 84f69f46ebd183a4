// Package billyfs shows a writable tree to Go programs as a billy file system (github.com/go-git/go-billy): by path, with
// the functions of package os.
//
// What it promises: bytes that were written to a file are on disk when its Close returned nil; names and attributes are on
// disk with the next such Close. A file stays usable while it is open, though its name is removed. Paths are cleaned
// before anything is looked up, and no path and no symbolic link leads out of the root: that is billy.ErrCrossedBoundary.
// All other errors are *os.PathError or *os.LinkError with an errno in them, so errors.Is and os.IsNotExist work.
//
// Whoever has the file system may do everything: nobody's rights are checked. Locks hold between the files of one New
// only. All methods may be called from several goroutines.
package billyfs

import (
	"path/filepath"
	"strings"
	"sync"

	"github.com/go-git/go-billy/v5"

	"livemount/fs"
)

// Options of New. The zero value works.
type Options struct {
	// ReadOnly refuses every change.
	ReadOnly bool
	// UID and GID own what is made.
	UID, GID uint32
}

// Filesystem is what New returns.
type Filesystem interface {
	billy.Filesystem
	billy.Change
	billy.Capable
}

// filesystem is a tree below a base.
type filesystem struct {
	*shared
	base string // where its root is in the tree, cleaned, with a slash in front
}

// shared is what a file system has in common with those that Chroot made of it.
type shared struct {
	tree    fs.Mutable
	options Options
	locks   locks
	appends sync.Mutex // held from finding the end of a file until something is written there
}

// New returns a file system that shows a tree.
func New(tree fs.Mutable, o Options) Filesystem {
	return &filesystem{&shared{tree: tree, options: o, locks: newLocks()}, "/"}
}

// Root implements billy.Chroot.
func (b *filesystem) Root() string { return b.base }

// Chroot implements billy.Chroot. The folder need not exist yet.
func (b *filesystem) Chroot(path string) (billy.Filesystem, error) {
	if crosses(path) {
		return nil, billy.ErrCrossedBoundary
	}
	return &filesystem{b.shared, filepath.Join(b.base, path)}, nil
}

// Join implements billy.Basic.
func (b *filesystem) Join(elem ...string) string { return filepath.Join(elem...) }

// Capabilities implements billy.Capable.
func (b *filesystem) Capabilities() billy.Capability {
	if b.options.ReadOnly {
		return billy.ReadCapability | billy.SeekCapability | billy.LockCapability
	}
	return billy.AllCapabilities
}

// crosses says whether a path leads above its root.
func crosses(path string) bool {
	path = filepath.Clean(strings.TrimLeft(path, "/"))
	return path == ".." || strings.HasPrefix(path, "../")
}

// split returns the elements of a path, which may be a target of a link, without empty ones and dots.
func split(path string) []string {
	var parts []string
	for _, p := range strings.Split(path, "/") {
		if p != "" && p != "." {
			parts = append(parts, p)
		}
	}
	return parts
}
