package fusefs

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"

	"livemount/fs"
)

// Readlink implements fuse.RawFileSystem.
func (r *raw) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	n, st := r.node(in.NodeId)
	if !st.Ok() {
		return nil, st
	}
	l, ok := n.(fs.Link)
	if !ok {
		return nil, fuse.EINVAL
	}
	target, err := l.Target(context.Background())
	return []byte(target), r.status("readlink", in.NodeId, err)
}
