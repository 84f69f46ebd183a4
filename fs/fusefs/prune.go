package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"

	"livemount/fs"
)

// The kernel keeps what it looked up until it needs the memory, and as long we keep a node for it. Beyond
// pruneAbove nodes it is asked to let go of those that nobody uses. Linux before 6.18 cannot be asked.
const (
	pruneAbove = 50_000
	pruneBatch = 512 // nodes in one request to the kernel
)

// grownLocked counts a new node. The caller holds mu.
func (r *raw) grownLocked() {
	r.added++
	if len(r.nodes) < pruneAbove || r.added < pruneAbove/2 {
		return
	}
	r.added = 0
	select {
	case r.full <- struct{}{}:
	default: // a prune is under way
	}
}

// prune asks for all nodes, whenever there are many, until stop is closed.
func (r *raw) prune(stop <-chan struct{}, ask func([]uint64) fuse.Status) {
	for {
		select {
		case <-stop:
			return
		case <-r.full:
		}
		ids := r.numbers()
		for len(ids) > 0 {
			n := min(pruneBatch, len(ids))
			if st := ask(ids[:n]); !st.Ok() {
				r.log.Debug("kernel does not prune", "status", st.String())
				break
			}
			ids = ids[n:]
		}
	}
}

// numbers returns the kernel's numbers of all nodes but the root.
func (r *raw) numbers() []uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	ids := make([]uint64, 0, len(r.nodes))
	for id := range r.nodes {
		if id != uint64(fs.RootID) {
			ids = append(ids, id)
		}
	}
	return ids
}
