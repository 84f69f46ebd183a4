package fs

import (
	"cmp"
	"context"
	iofs "io/fs"
	"slices"
	"sync"
	"time"

	"livemount/internal/errs"
)

// Dir is the folder of a Tree.
type Dir struct {
	id NodeID

	mu       sync.RWMutex
	byName   map[string]*File // guarded by mu
	byID     []*File          // sorted by id; guarded by mu
	modified time.Time        // guarded by mu
}

func newDir(now time.Time) *Dir {
	return &Dir{id: RootID, byName: map[string]*File{}, modified: now}
}

// ID implements Node.
func (d *Dir) ID() NodeID { return d.id }

// Parent implements Folder.
func (d *Dir) Parent() NodeID { return d.id }

// Attr implements Node.
func (d *Dir) Attr() Attr {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return Attr{ID: d.id, Mode: iofs.ModeDir | 0o755, Accessed: d.modified, Modified: d.modified, Changed: d.modified}
}

// Lookup implements Folder.
func (d *Dir) Lookup(_ context.Context, name string) (Node, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if f, ok := d.byName[name]; ok {
		return f, nil
	}
	return nil, errs.New(errs.NotFound, "file %q does not exist", name)
}

// List implements Folder, in the order of ids. The cookie behind a file is its id.
func (d *Dir) List(_ context.Context, behind Cookie, limit int) ([]Entry, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	at, found := slices.BinarySearchFunc(d.byID, NodeID(behind), compareID)
	if found {
		at++
	}
	var list []Entry
	for _, f := range d.byID[at:] {
		if len(list) == limit {
			break
		}
		list = append(list, Entry{Name: f.name, ID: f.id, Cookie: Cookie(f.id)})
	}
	return list, nil
}

func compareID(f *File, id NodeID) int { return cmp.Compare(f.id, id) }

func (d *Dir) add(f *File, now time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.byName[f.name]; ok {
		return errs.New(errs.Exists, "file %s exists", f.name)
	}
	at, _ := slices.BinarySearchFunc(d.byID, f.id, compareID)
	d.byName[f.name] = f
	d.byID = slices.Insert(d.byID, at, f)
	d.modified = now
	return nil
}
