package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"

	"livemount/fs"
)

// Offsets in a listing: 1 is behind ".", 2 behind "..", a node's id plus 1 behind that node (ids start at
// 2). So an offset means the same however much is added or removed between two calls.
const (
	behindDot    = 1
	behindDotDot = 2
	listMax      = 256 // nodes that one request looks at
)

// OpenDir implements fuse.RawFileSystem.
func (r *raw) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	_, st := r.dir(in.NodeId)
	return st
}

// ReadDir implements fuse.RawFileSystem.
func (r *raw) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	dir, st := r.dir(in.NodeId)
	if !st.Ok() {
		return st
	}
	if !addDots(dir, in.Offset, out) {
		return fuse.OK
	}
	after := fs.NodeID(max(in.Offset, behindDotDot) - 1)
	for _, n := range dir.List(after, listMax) {
		var a fuse.Attr
		r.fill(n, &a)
		if !out.AddDirEntry(fuse.DirEntry{Name: n.Name(), Ino: a.Ino, Mode: a.Mode, Off: a.Ino + 1}) {
			break
		}
	}
	return fuse.OK
}

// addDots says whether there is room for more. All folders are the root so far, its own parent.
func addDots(dir *fs.Dir, off uint64, out *fuse.DirEntryList) bool {
	for _, e := range []fuse.DirEntry{{Name: ".", Off: behindDot}, {Name: "..", Off: behindDotDot}} {
		if off >= e.Off {
			continue
		}
		e.Ino, e.Mode = uint64(dir.ID()), fuse.S_IFDIR
		if !out.AddDirEntry(e) {
			return false
		}
	}
	return true
}

// FsyncDir implements fuse.RawFileSystem: names are not made or removed here.
func (r *raw) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	_, st := r.dir(in.NodeId)
	return st
}
