// Package fs is the tree of a mounted datastore, free of any protocol: FUSE, NFS and go-billy are
// translators over it. There are two: a Tree is one folder with a file for each disk that was added; a
// History shows, read-only, every disk of every point that a Catalogue has, as VM/TIME/DISK.raw.
//
// A file of a Tree is a window on a blockdev.Reader or blockdev.Device that the tree does not own: whoever
// opened the device closes it after every translator has stopped. A History opens disks when they are read.
// Files have a fixed size. Node ids are stable and never used again. All methods may be called from several
// goroutines.
//
// The package knows nothing of chains or servers: what it needs is handed in.
package fs

import (
	"context"
	"sync"
	"time"

	"livemount/blockdev"
	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// Options of a tree. The zero value is a tree that knows nothing of the space below it.
type Options struct {
	// Clock tells the times of nodes; nil is the system's.
	Clock clock.Clock
	// Space tells the total and free bytes of the store that new data goes to. nil stands for the sizes
	// of all files and nothing free.
	Space func(context.Context) (vfs.Space, error)
}

// Tree is a folder of disks.
type Tree struct {
	clock clock.Clock
	space func(context.Context) (vfs.Space, error)
	root  *Dir

	mu    sync.RWMutex
	files map[NodeID]*File // guarded by mu
}

// New returns a tree with an empty root folder.
func New(opts Options) *Tree {
	if opts.Clock == nil {
		opts.Clock = clock.System{}
	}
	t := &Tree{clock: opts.Clock, space: opts.Space}
	t.root = newDir(t.clock.Now())
	t.files = map[NodeID]*File{}
	return t
}

// Root implements Served.
func (t *Tree) Root() Folder { return t.root }

// Len implements Served.
func (t *Tree) Len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.files) + 1
}

// Disk describes the file of a disk.
type Disk struct {
	// ID is at least 2 and below 1<<62; it stays the same in every mount of the same disk.
	ID NodeID
	// Name of the file, as a rule the disk's with ".raw".
	Name string
	// Data is a blockdev.Reader for a read-only file or a blockdev.Device for a writable one.
	Data blockdev.Reader
	// ReadOnly makes the file of a Device read-only all the same.
	ReadOnly bool
	// Allocated tells the bytes that the disk takes up in the store; nil stands for its size.
	Allocated func() int64
	// Modified is the time of the content; zero stands for now.
	Modified time.Time
}

// AddDisk puts a file into the root folder. It returns Invalid for a bad id or name, Exists when one of
// them is taken.
func (t *Tree) AddDisk(d Disk) (*File, error) {
	if err := CheckName(d.Name); err != nil {
		return nil, err
	}
	if d.ID <= RootID || d.ID >= maxID {
		return nil, errs.New(errs.Invalid, "file %s: node id %d is out of range", d.Name, d.ID)
	}
	f := newFile(t.clock, d)
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.files[d.ID]; old != nil {
		return nil, errs.New(errs.Exists, "file %s: node id %d belongs to %s", d.Name, d.ID, old.Name())
	}
	if err := t.root.add(f, t.clock.Now()); err != nil {
		return nil, err
	}
	t.files[d.ID] = f
	return f, nil
}

// Space implements Served.
func (t *Tree) Space(ctx context.Context) (vfs.Space, error) {
	if t.space != nil {
		return t.space(ctx)
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	var s vfs.Space
	for _, f := range t.files {
		s.TotalBytes += f.Size()
	}
	return s, nil
}
