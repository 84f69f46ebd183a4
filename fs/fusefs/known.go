package fusefs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"livemount/fs"
	"livemount/internal/errs"
)

// known is a node that the kernel holds references to.
type known struct {
	node fs.Node
	refs uint64
}

// hold counts a reference of the kernel's to a node and returns the number that it goes by: its id, or, when
// another node has the same, the next that is free.
//
// A node of a Mutable tree is held there from the first reference to the last, so that it can be used for as long as
// it is open, though it has no name any more.
func (r *raw) hold(n fs.Node) uint64 {
	if r.mutable == nil {
		id, _ := r.count(n)
		return id
	}
	r.mutable.Hold(n) // before it is counted: another thread may count it down again at once
	id, first := r.count(n)
	if !first {
		r.mutable.Release(n)
	}
	return id
}

// gone says that a node of a Mutable tree has lost its last name.
func (r *raw) gone(n fs.Node) bool {
	if r.mutable == nil {
		return false
	}
	_, err := r.mutable.Node(n.ID())
	return errs.Is(err, errs.NotFound)
}

// count counts a reference and says whether it is the first.
func (r *raw) count(n fs.Node) (number uint64, first bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := uint64(n.ID()); ; id++ {
		k, taken := r.nodes[id]
		if !taken || k.node == n {
			r.nodes[id] = known{n, k.refs + 1}
			if !taken {
				r.grownLocked()
			}
			return id, !taken
		}
	}
}

// Forget implements fuse.RawFileSystem.
func (r *raw) Forget(node, n uint64) {
	if k, gone := r.discount(node, n); gone && r.mutable != nil {
		r.mutable.Release(k)
	}
}

// discount takes references away and says whether these were the last.
func (r *raw) discount(node, n uint64) (fs.Node, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k, ok := r.nodes[node]
	switch {
	case !ok || node == uint64(fs.RootID):
	case n < k.refs:
		r.nodes[node] = known{k.node, k.refs - n}
	default:
		delete(r.nodes, node)
		return k.node, true
	}
	return nil, false
}

// forgetAll lets go of what the kernel still held when the mount ended: it does not say so then.
func (r *raw) forgetAll() {
	for _, id := range r.numbers() {
		r.Forget(id, 1<<64-1)
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
func (r *raw) writable(id uint64) (fs.Writable, fuse.Status) {
	n, st := r.file(id)
	if !st.Ok() {
		return nil, st
	}
	f, ok := n.(fs.Writable)
	if !ok || r.readOnly || !f.Writable() {
		return nil, fuse.EROFS
	}
	return f, fuse.OK
}
