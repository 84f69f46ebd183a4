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
// the table of nodes that the kernel knows.
type raw struct {
	fuse.RawFileSystem // ENOSYS for whatever is not here
	tree               fs.Served
	mutable            fs.Mutable // the tree, when names can be changed in it, else nil
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

// Nothing changes behind the kernel's back, so it may remember as long as it likes: what a change of a Mutable tree
// does to attributes that it knows it works out itself (counts of links), or it asks again (both folders, times of what
// was moved, linked, written or removed; fs/fuse/dir.c and file.c). With direct I/O another protocol may change the
// same tree: then attributes are asked for again after a moment, and names that can change at each use. In a tree that
// changes by itself names are looked up at each use, which brings attributes as well; those of the root, and of folders
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
	r.mutable, _ = tree.(fs.Mutable)
	return r
}

// entryValid is how long a name leads to what it led to, or to nothing.
func (r *raw) entryValid() time.Duration {
	if r.changing || r.directIO && r.mutable != nil {
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
	if r.mutable != nil {
		if err := fs.CheckName(name); err != nil {
			return r.status("lookup", in.NodeId, err)
		}
	}
	n, err := dir.Lookup(context.Background(), name)
	if errs.Is(err, errs.NotFound) && r.mutable != nil && r.entryValid() > 0 {
		out.SetEntryTimeout(r.entryValid()) // node 0: the kernel remembers that it is not there
		return fuse.OK
	}
	if err != nil {
		return r.status("lookup", in.NodeId, err)
	}
	return r.entry(n, out)
}

// entry gives the kernel a node. One that lost its last name since it was found may have lost its bytes as well: ESTALE
// makes the kernel look again.
func (r *raw) entry(n fs.Node, out *fuse.EntryOut) fuse.Status {
	id := r.hold(n)
	if r.gone(n) {
		r.Forget(id, 1)
		return fuse.Status(syscall.ESTALE)
	}
	out.NodeId, out.Generation = id, 1
	out.SetEntryTimeout(r.entryValid())
	out.SetAttrTimeout(r.attrValid(n))
	r.fill(n, &out.Attr)
	return fuse.OK
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
	if r.mutable != nil {
		out.Files, out.Ffree = out.Files+filesFree, filesFree
	}
	return fuse.OK
}

// filesFree is what df -i shows as free where files can be made.
const filesFree = 1 << 20
