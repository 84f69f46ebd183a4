package datastore

import (
	iofs "io/fs"
	"sync"
	"sync/atomic"

	"livemount/blockdev"
	"livemount/fs"
	"livemount/internal/errs"
)

// inode is a folder, file or link. What is not said to be else is guarded by the store's mu.
type inode struct {
	s        *Store
	id       fs.NodeID
	typ      iofs.FileMode // never changes
	mode     iofs.FileMode // type and permissions
	uid, gid uint32
	names    uint32   // entries that lead to it; 1 for the root
	holds    int      // by translators
	verifier uint64   // of the exclusive call that made it
	target   string   // of a link
	entries  []*entry // that lead to it
	children children // of a folder
	subs     uint32   // folders in a folder

	// Times in nanoseconds since 1970. Each stands alone. logged is the time of change that the log has.
	accessed, modified, changed, logged atomic.Int64

	io     sync.RWMutex // held for reading by those who read and write data, for writing by the one that forgets it
	forgot bool         // guarded by io
	open   sync.Mutex   // guards the opening of data
	data   atomic.Pointer[content]
}

// content is where the bytes of a file are.
type content struct {
	blockdev.Reader
	device blockdev.Device // nil when read-only
	used   func() int64
}

// entry is a name in a folder.
type entry struct {
	dir    *inode
	name   string
	to     *inode
	cookie fs.Cookie
	gone   bool
}

func (s *Store) newInode(id fs.NodeID, mode iofs.FileMode) *inode {
	in := &inode{s: s, id: id, typ: mode.Type(), mode: mode}
	if mode.IsDir() {
		in.children.byName = map[string]*entry{}
	}
	return in
}

func (in *inode) setTimes(ns int64) {
	in.accessed.Store(ns)
	in.modified.Store(ns)
	in.changed.Store(ns)
	in.logged.Store(ns)
}

// touch marks the content as changed at a time. It comes before the change, so that nobody finds new bytes under an
// old time.
func (in *inode) touch(ns int64) {
	raise(&in.modified, ns)
	raise(&in.changed, ns)
}

// raise sets t to ns unless it is later.
func raise(t *atomic.Int64, ns int64) {
	for {
		old := t.Load()
		if old >= ns || t.CompareAndSwap(old, ns) {
			return
		}
	}
}

// place is a folder that the inode is in, and its name there.
func (in *inode) place() (*inode, string) {
	if len(in.entries) == 0 {
		return nil, ""
	}
	return in.entries[0].dir, in.entries[0].name
}

// folderBytes is the size that every folder shows.
const folderBytes = 4096

// attr returns the attributes. The caller holds mu.
func (in *inode) attr() fs.Attr {
	a := fs.Attr{
		ID: in.id, Mode: in.mode, UID: in.uid, GID: in.gid, Links: in.names,
		Accessed: timeOf(in.accessed.Load()), Modified: timeOf(in.modified.Load()), Changed: timeOf(in.changed.Load()),
	}
	switch in.typ {
	case iofs.ModeDir:
		a.SizeBytes, a.AllocatedBytes = folderBytes, folderBytes
		if in.names > 0 {
			a.Links = 2 + in.subs
		}
	case iofs.ModeSymlink:
		a.SizeBytes = int64(len(in.target))
	}
	return a
}

// fullAttr is attr with the size of a file, which is the log's matter.
func (in *inode) fullAttr() fs.Attr {
	in.s.mu.RLock()
	a := in.attr()
	in.s.mu.RUnlock()
	if !in.typ.IsRegular() {
		return a
	}
	if c, err := in.content(); err == nil {
		a.SizeBytes = c.Size()
		a.AllocatedBytes = min(c.used(), (a.SizeBytes+blockdev.PageSize-1)&^(blockdev.PageSize-1))
	}
	return a
}

// content finds the bytes of a file, which is made known to the log when it is first used.
func (in *inode) content() (*content, error) {
	if c := in.data.Load(); c != nil {
		return c, nil
	}
	in.open.Lock()
	defer in.open.Unlock()
	if c := in.data.Load(); c != nil {
		return c, nil
	}
	c, err := in.openContent()
	if err == nil {
		in.data.Store(c)
	}
	return c, err
}

func (in *inode) openContent() (*content, error) {
	if d, ok := in.s.disks[in.id]; ok {
		return &content{d.data, d.device, d.allocated}, nil
	}
	log, id := in.s.log, uint64(in.id)
	if log == nil {
		return nil, errs.New(errs.NotFound, "node %d has no content", in.id)
	}
	if err := log.AddNode(id); err != nil && !errs.Is(err, errs.Exists) {
		return nil, err
	}
	dev, err := log.Device(id)
	if err != nil {
		return nil, err
	}
	return &content{dev, dev, func() int64 { return log.DataBytes(id) }}, nil
}

// node is the inode as translators see it.
func (in *inode) node() fs.Node {
	switch in.typ {
	case iofs.ModeDir:
		return folder{in}
	case iofs.ModeSymlink:
		return link{in}
	default:
		return file{in}
	}
}

func inodeOf(n fs.Node) *inode {
	switch n := n.(type) {
	case folder:
		return n.in
	case file:
		return n.in
	case link:
		return n.in
	}
	return nil
}
