package fs

import (
	"cmp"
	iofs "io/fs"
	"slices"
	"sync"
	"time"

	"livemount/internal/errs"
)

// Dir is a folder.
type Dir struct {
	id   NodeID
	name string

	mu       sync.RWMutex
	byName   map[string]Node // guarded by mu
	byID     []Node          // sorted by id; guarded by mu
	modified time.Time       // guarded by mu
}

func newDir(now time.Time) *Dir {
	return &Dir{id: RootID, byName: map[string]Node{}, modified: now}
}

// ID implements Node.
func (d *Dir) ID() NodeID { return d.id }

// Name implements Node. The root's is empty.
func (d *Dir) Name() string { return d.name }

// Attr implements Node.
func (d *Dir) Attr() Attr {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return Attr{ID: d.id, Mode: iofs.ModeDir | 0o755, Accessed: d.modified, Modified: d.modified, Changed: d.modified}
}

// Lookup finds a node of the folder by name, or returns NotFound.
func (d *Dir) Lookup(name string) (Node, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if n, ok := d.byName[name]; ok {
		return n, nil
	}
	return nil, errs.New(errs.NotFound, "file %q does not exist", name)
}

// List returns at most limit nodes with ids above after, in the order of ids. A listing that continues
// behind the last id it got sees every node that stayed exactly once, whatever was added meanwhile.
func (d *Dir) List(after NodeID, limit int) []Node {
	d.mu.RLock()
	defer d.mu.RUnlock()
	at, found := slices.BinarySearchFunc(d.byID, after, compareID)
	if found {
		at++
	}
	rest := d.byID[at:]
	return slices.Clone(rest[:min(limit, len(rest))])
}

func compareID(n Node, id NodeID) int { return cmp.Compare(n.ID(), id) }

func (d *Dir) add(n Node, now time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.byName[n.Name()]; ok {
		return errs.New(errs.Exists, "file %s exists", n.Name())
	}
	at, _ := slices.BinarySearchFunc(d.byID, n.ID(), compareID)
	d.byName[n.Name()] = n
	d.byID = slices.Insert(d.byID, at, n)
	d.modified = now
	return nil
}
