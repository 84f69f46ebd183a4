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
	"livemount/internal/errs"
)

// raw answers the kernel's requests from a tree. Requests run concurrently; all state besides the tree is
// the count of lookups.
type raw struct {
	fuse.RawFileSystem // ENOSYS for whatever is not here
	tree               *fs.Tree
	readOnly           bool
	directIO           bool
	valid              time.Duration // how long the kernel may believe names and attributes
	owner              fuse.Owner
	log                *slog.Logger
	failures           atomic.Int64

	mu      sync.Mutex
	lookups map[uint64]uint64 // references that the kernel holds, by node; guarded by mu
}

// Nothing changes behind the kernel's back, so it may remember as long as it likes. With direct I/O
// another protocol may write the same disk: then attributes are asked for again.
const (
	validAlone  = 24 * time.Hour
	validShared = time.Second
)

func newRaw(tree *fs.Tree, o Options) *raw {
	r := &raw{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		tree:          tree, readOnly: o.ReadOnly, directIO: o.DirectIO, valid: validAlone, log: o.Log,
		owner:   fuse.Owner{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())},
		lookups: map[uint64]uint64{},
	}
	if o.DirectIO {
		r.valid = validShared
	}
	return r
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
	n, err := dir.Lookup(name)
	if err != nil {
		return r.status("lookup", in.NodeId, err)
	}
	r.count(uint64(n.ID()))
	out.NodeId, out.Generation = uint64(n.ID()), 1
	out.SetEntryTimeout(r.valid)
	out.SetAttrTimeout(r.valid)
	r.fill(n, &out.Attr)
	return fuse.OK
}

func (r *raw) count(node uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lookups[node]++
}

// Forget implements fuse.RawFileSystem.
func (r *raw) Forget(node, n uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n < r.lookups[node] {
		r.lookups[node] -= n
		return
	}
	delete(r.lookups, node)
}

// node finds a node by the kernel's number; the kernel may hold one that is gone.
func (r *raw) node(id uint64) (fs.Node, fuse.Status) {
	n, err := r.tree.Node(fs.NodeID(id))
	if errs.Is(err, errs.NotFound) {
		return nil, fuse.Status(syscall.ESTALE)
	}
	return n, r.status("find node", id, err)
}

func (r *raw) dir(id uint64) (*fs.Dir, fuse.Status) {
	n, st := r.node(id)
	if !st.Ok() {
		return nil, st
	}
	if d, ok := n.(*fs.Dir); ok {
		return d, fuse.OK
	}
	return nil, fuse.ENOTDIR
}

func (r *raw) file(id uint64) (*fs.File, fuse.Status) {
	n, st := r.node(id)
	if !st.Ok() {
		return nil, st
	}
	if f, ok := n.(*fs.File); ok {
		return f, fuse.OK
	}
	return nil, fuse.EISDIR
}

// writable finds a file that takes writes.
func (r *raw) writable(id uint64) (*fs.File, fuse.Status) {
	f, st := r.file(id)
	if st.Ok() && (r.readOnly || !f.Writable()) {
		return nil, fuse.EROFS
	}
	return f, st
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
