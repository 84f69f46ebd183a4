package fusefs

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"livemount/fs"
)

// raw answers the kernel's requests from a tree. Requests run concurrently; all state besides the tree is
// the table of nodes that the kernel knows.
type raw struct {
	fuse.RawFileSystem // ENOSYS for whatever is not here
	tree               fs.Served
	readOnly           bool
	directIO           bool
	changing           bool
	valid              time.Duration // how long the kernel may believe names and attributes
	owner              fuse.Owner
	log                *slog.Logger
	failures           atomic.Int64

	mu    sync.Mutex
	nodes map[uint64]known // by the kernel's number; guarded by mu
	added int              // nodes since the last prune; guarded by mu
	full  chan struct{}    // of one: time to prune
}

// known is a node that the kernel holds references to.
type known struct {
	node fs.Node
	refs uint64
}

// Nothing changes behind the kernel's back, so it may remember as long as it likes. With direct I/O
// another protocol may write the same disk: then attributes are asked for again. In a tree that changes
// by itself names are looked up at each use, which brings attributes as well; those of the root, and of folders
// that are open, may be a second old.
const (
	validAlone  = 24 * time.Hour
	validShared = time.Second
)

func newRaw(tree fs.Served, o Options) *raw {
	r := &raw{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		tree:          tree, readOnly: o.ReadOnly, directIO: o.DirectIO, changing: o.Changing, valid: validAlone, log: o.Log,
		owner: fuse.Owner{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())},
		nodes: map[uint64]known{uint64(fs.RootID): {tree.Root(), 1}}, full: make(chan struct{}, 1),
	}
	if o.DirectIO {
		r.valid = validShared
	}
	return r
}

// entryValid is how long a name leads to what it led to.
func (r *raw) entryValid() time.Duration {
	if r.changing {
		return 0
	}
	return r.valid
}

// attrValid is how long the attributes of n stay.
func (r *raw) attrValid(n fs.Node) time.Duration {
	if _, ok := n.(fs.Regular); r.changing && !ok {
		return validShared
	}
	return r.valid
}

// String implements fuse.RawFileSystem.
func (r *raw) String() string { return "livemount" }

// panicked answers a request that ran into a bug of ours.
func (r *raw) panicked(v any) fuse.Status {
	r.log.Error("request panicked", "error", fmt.Sprint(v), "stack", string(debug.Stack()))
	return fuse.EIO
}

// Lookup implements fuse.RawFileSystem.
func (r *raw) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir, st := r.dir(in.NodeId)
	if !st.Ok() {
		return st
	}
	n, err := dir.Lookup(context.Background(), name)
	if err != nil {
		return r.status("lookup", in.NodeId, err)
	}
	out.NodeId, out.Generation = r.hold(n), 1
	out.SetEntryTimeout(r.entryValid())
	out.SetAttrTimeout(r.attrValid(n))
	r.fill(n, &out.Attr)
	return fuse.OK
}

// hold counts a reference of the kernel's to a node and returns the number that it goes by: its id, or, when
// another node has the same, the next that is free.
func (r *raw) hold(n fs.Node) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := uint64(n.ID()); ; id++ {
		k, taken := r.nodes[id]
		if !taken || k.node == n {
			r.nodes[id] = known{n, k.refs + 1}
			if !taken {
				r.grownLocked()
			}
			return id
		}
	}
}

// Forget implements fuse.RawFileSystem.
func (r *raw) Forget(node, n uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k, ok := r.nodes[node]
	switch {
	case !ok || node == uint64(fs.RootID):
	case n < k.refs:
		r.nodes[node] = known{k.node, k.refs - n}
	default:
		delete(r.nodes, node)
	}
}

// known is the number of nodes that the kernel holds.
func (r *raw) known() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.nodes)
}

// node finds a node by the kernel's number.
func (r *raw) node(id uint64) (fs.Node, fuse.Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k, ok := r.nodes[id]; ok {
		return k.node, fuse.OK
	}
	return nil, fuse.Status(syscall.ESTALE)
}

func (r *raw) dir(id uint64) (fs.Folder, fuse.Status) {
	n, st := r.node(id)
	if !st.Ok() {
		return nil, st
	}
	if d, ok := n.(fs.Folder); ok {
		return d, fuse.OK
	}
	return nil, fuse.ENOTDIR
}

func (r *raw) file(id uint64) (fs.Regular, fuse.Status) {
	n, st := r.node(id)
	if !st.Ok() {
		return nil, st
	}
	switch n := n.(type) {
	case fs.Regular:
		return n, fuse.OK
	case fs.Folder:
		return nil, fuse.EISDIR
	}
	return nil, fuse.EINVAL
}

// writable finds a file that takes writes.
func (r *raw) writable(id uint64) (*fs.File, fuse.Status) {
	n, st := r.file(id)
	if !st.Ok() {
		return nil, st
	}
	f, ok := n.(*fs.File)
	if !ok || r.readOnly || !f.Writable() {
		return nil, fuse.EROFS
	}
	return f, fuse.OK
}

// StatFs implements fuse.RawFileSystem: the space of the store that new data goes to.
func (r *raw) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	space, err := r.tree.Space(context.Background())
	if err != nil {
		return r.status("statfs", in.NodeId, err)
	}
	*out = fuse.StatfsOut{
		Bsize: blockBytes, Frsize: blockBytes, NameLen: 255,
		Blocks: uint64(space.TotalBytes) / blockBytes,
		Bfree:  uint64(space.FreeBytes) / blockBytes,
		Bavail: uint64(space.FreeBytes) / blockBytes,
		Files:  uint64(r.tree.Len()),
	}
	return fuse.OK
}
