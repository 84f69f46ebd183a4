// Package datastore is the writable tree of a mount, as a hypervisor's datastore: folders of VMs with their
// configuration, disk descriptors and disks, and whatever is made beside them.
//
// Everything goes through one Log, in order: names, attributes, data, sizes, and the answers to calls that must not be
// carried out twice. So a crash leaves one moment of the whole datastore. A change is one record; a file that loses its
// last name is removed in that record, and its bytes follow by themselves, also after a crash. Times of writes are in
// the log to the second; all else exactly. Node ids and cookies are counted up and never used again.
//
// Without a Log the datastore is read-only. It must not be used before Start. All methods may be called from several
// goroutines; what protects what is in LOCKING.md, the records are in FORMAT.md.
package datastore

import (
	"context"
	iofs "io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"livemount/blockdev"
	"livemount/fs"
	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// Log is where all changes go, in order: the overlay log of a mount.
type Log interface {
	// Append logs a record, and runs apply before any later one is written. apply must not call the log.
	Append(ctx context.Context, payload []byte, apply func()) error
	// AppendSize is Append that sets the size of a file in the same record.
	AppendSize(ctx context.Context, payload []byte, node uint64, size int64, apply func()) error
	// AppendFreeing is Append of what gives space back: it is taken also when the disk is nearly full.
	AppendFreeing(ctx context.Context, payload []byte, apply func()) error
	// AddNode makes a file known that has no base; it grows with writes. Exists when it is known.
	AddNode(id uint64) error
	// Device gives a file.
	Device(id uint64) (blockdev.Device, error)
	// DataBytes is how much of a file is in the log.
	DataBytes(id uint64) int64
	// Forget drops the bytes of a file that AddNode added.
	Forget(ctx context.Context, id uint64) error
	Sync(ctx context.Context) error
}

// Options of a datastore. The zero value works.
type Options struct {
	Clock clock.Clock // nil is the system's
	// Space tells the bytes of the store below; nil stands for none.
	Space func(context.Context) (vfs.Space, error)
	// MaxNodes bounds the nodes; default 1,000,000.
	MaxNodes int
	// Bad is told of a file whose stored bytes are bad, but for disks; nil is nobody.
	Bad func(id fs.NodeID, err error)
}

const (
	maxNodesDefault = 1_000_000
	// namesMax bounds what all names and attributes take: a snapshot of them is made while writers wait, and has a bound
	// of its own.
	namesMax   = 128 << 20
	nodeBytes  = 72 // of a node in a snapshot, and of an entry, at most, beside their texts
	entryBytes = 32
	// firstID of the nodes that are made here. Below are those of disks.
	firstID = 1 << 16
)

// Store is a datastore.
type Store struct {
	clock    clock.Clock
	space    func(context.Context) (vfs.Space, error)
	maxNodes int
	bad      func(fs.NodeID, error)   // nil is nobody
	log      Log                      // nil when read-only
	disks    map[fs.NodeID]diskSource // set by Start
	shut     bool                     // guarded by ops: Close was called

	undropped atomic.Bool // something without a name could not be dropped

	ops sync.Mutex // one change of names or attributes at a time; taken before the log's locks and mu

	mu       sync.RWMutex // guards the fields below, and all of inodes that is not said to be else
	nodes    map[fs.NodeID]*inode
	orphans  map[fs.NodeID]*inode // that have no name any more
	root     *inode
	nextID   fs.NodeID
	cookie   fs.Cookie // the last that was used
	laid     bool
	replies  replies
	refusals replies
	bytes    int64 // that names, targets and attributes take in a snapshot, at most
}

// New returns a datastore with an empty root folder. Restore and Replay fill it from a log, then Start makes it work.
func New(o Options) *Store {
	s := &Store{clock: o.Clock, space: o.Space, maxNodes: o.MaxNodes, bad: o.Bad}
	if s.clock == nil {
		s.clock = clock.System{}
	}
	if s.space == nil {
		s.space = func(context.Context) (vfs.Space, error) { return vfs.Space{}, nil }
	}
	if s.maxNodes <= 0 {
		s.maxNodes = maxNodesDefault
	}
	s.reset()
	return s
}

// reset makes the datastore empty.
func (s *Store) reset() {
	s.nodes, s.orphans = map[fs.NodeID]*inode{}, map[fs.NodeID]*inode{}
	s.nextID, s.cookie, s.laid, s.bytes = firstID, 0, false, 0
	s.replies, s.refusals = replies{max: repliesMax}, replies{max: refusalMax}
	s.root = s.newInode(fs.RootID, iofs.ModeDir)
	s.root.mode = iofs.ModeDir | 0o755
	s.root.setTimes(s.clock.Now().UnixNano())
	s.root.names = 1
	s.nodes[fs.RootID] = s.root
}

// diskSource is a disk of the point, as the mount shows it.
type diskSource struct {
	data      blockdev.Reader
	device    blockdev.Device // nil when it is read-only
	allocated func() int64
}

// Disk is a file that is a disk.
type Disk struct {
	ID fs.NodeID // from 2 to 65535, that of the node of the log
	// Data is a blockdev.Device that grows with writes behind its end, or, when the datastore is read-only, a Reader.
	Data blockdev.Reader
	// Allocated tells the bytes that the point has of it.
	Allocated int64
}

// Start makes the datastore work: on a log, from which it was restored, or read-only without one. What had lost its
// last name before a crash is removed now.
func (s *Store) Start(ctx context.Context, log Log, disks []Disk) error {
	if err := s.checkTree(); err != nil {
		return err
	}
	s.log, s.disks = log, map[fs.NodeID]diskSource{}
	for _, d := range disks {
		if d.ID <= fs.RootID || d.ID >= firstID {
			return errs.New(errs.Invalid, "disk: node id %d is out of range", d.ID)
		}
		src := diskSource{data: d.Data, allocated: func() int64 { return d.Allocated }}
		if dev, ok := d.Data.(blockdev.Device); ok && log != nil {
			src.device = dev
			src.allocated = func() int64 { return d.Allocated + log.DataBytes(uint64(d.ID)) }
		}
		s.disks[d.ID] = src
	}
	for _, in := range s.unnamed() {
		err := s.forget(ctx, in)
		if errs.Is(err, errs.NoSpace) { // reads go on, and it is tried again
			s.undropped.Store(true)
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// checkTree finds names that cannot be reached from the root: folders in each other. Nothing here makes them.
func (s *Store) checkTree() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	names, reached := 0, 0
	for _, in := range s.nodes {
		names += in.children.len()
	}
	for todo := []*inode{s.root}; len(todo) > 0; {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, e := range dir.children.byName {
			if reached++; e.to.typ.IsDir() {
				todo = append(todo, e.to)
			}
		}
	}
	if names != reached {
		return errs.New(errs.Corrupt, "datastore: %d of %d names cannot be reached", names-reached, names)
	}
	return nil
}

func (s *Store) unnamed() []*inode {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var list []*inode
	for _, in := range s.orphans {
		list = append(list, in)
	}
	return list
}

// Root implements fs.Served.
func (s *Store) Root() fs.Folder { return folder{s.root} }

// Space implements fs.Served.
func (s *Store) Space(ctx context.Context) (vfs.Space, error) { return s.space(ctx) }

// Len implements fs.Served.
func (s *Store) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.nodes)
}

// Writable says whether the datastore takes changes.
func (s *Store) Writable() bool { return s.log != nil }

// Node implements fs.Mutable.
func (s *Store) Node(id fs.NodeID) (fs.Node, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	in, err := s.named(id)
	if err != nil {
		return nil, err
	}
	return in.node(), nil
}

// named finds an inode that has a name. The caller holds mu.
func (s *Store) named(id fs.NodeID) (*inode, error) {
	if in := s.nodes[id]; in != nil && in.names > 0 {
		return in, nil
	}
	return nil, errs.New(errs.NotFound, "node %d does not exist", id)
}

// Sync implements fs.Mutable.
func (s *Store) Sync(ctx context.Context) error {
	if s.log == nil {
		return ctx.Err()
	}
	return s.log.Sync(ctx)
}

// Reply implements fs.Mutable.
func (s *Store) Reply(key fs.CallKey) ([]byte, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if b, ok := s.replies.get(key, s.clock.Now()); ok {
		return b, ok
	}
	return s.refusals.get(key, s.clock.Now())
}

// Hold implements fs.Mutable.
func (s *Store) Hold(n fs.Node) {
	if in := inodeOf(n); in != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		in.holds++
	}
}

// Release implements fs.Mutable.
func (s *Store) Release(n fs.Node) {
	in := inodeOf(n)
	if in == nil {
		return
	}
	s.mu.Lock()
	in.holds--
	gone := in.holds == 0 && in.names == 0
	s.mu.Unlock()
	if gone {
		s.drop(context.Background(), in)
	}
}

// PathOf returns where a node is, from the root, without a slash in front; "" when it has no name, or is too deep for a
// path. A file with several names has one of them.
func (s *Store) PathOf(id fs.NodeID) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	in, err := s.named(id)
	if err != nil || in == s.root {
		return ""
	}
	var names []string
	for length := 0; in != s.root; {
		dir, name := in.place()
		if length += len(name) + 1; dir == nil || length > pathMax {
			return ""
		}
		names, in = append(names, name), dir
	}
	slices.Reverse(names)
	return strings.Join(names, "/")
}

// pathMax is the longest path that anybody can use (PATH_MAX).
const pathMax = 4096

// Close writes down the times of the last writes, if there is room. It does not close the log.
func (s *Store) Close(ctx context.Context) error {
	s.ops.Lock()
	defer s.ops.Unlock()
	if s.shut || s.log == nil {
		return nil
	}
	s.shut = true
	const batch = 4096
	var list []effect
	for _, in := range s.stale() {
		list = append(list, in.timesEffect())
		if len(list) == batch {
			if err := s.commitTimes(ctx, list); err != nil {
				return err
			}
			list = nil
		}
	}
	return s.commitTimes(ctx, list)
}

// commitTimes logs times. On a full disk they stay a little older.
func (s *Store) commitTimes(ctx context.Context, list []effect) error {
	err := s.write(ctx, &plan{effects: list, freeing: true})
	if errs.Is(err, errs.NoSpace) {
		return nil
	}
	return err
}

// stale returns the inodes whose times the log does not have.
func (s *Store) stale() []*inode {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var list []*inode
	for _, in := range s.nodes {
		if in.names > 0 && in.changed.Load() != in.logged.Load() {
			list = append(list, in)
		}
	}
	return list
}

// now is the time of a change of an inode: later than its last one, so that each change is seen as one.
func (s *Store) now(in *inode) int64 {
	return max(s.clock.Now().UnixNano(), in.changed.Load()+1)
}

func timeOf(ns int64) time.Time { return time.Unix(0, ns) }
