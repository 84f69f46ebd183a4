package fusefs

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"

	"livemount/fs"
)

// Offsets in a listing: 1 is behind ".", 2 behind "..", the folder's cookie plus 2 behind a node. So an offset
// means the same however much is added or removed between two calls.
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
	list, err := dir.List(context.Background(), fs.Cookie(max(in.Offset, behindDotDot)-behindDotDot), listMax)
	if err != nil {
		return r.status("readdir", in.NodeId, err)
	}
	for _, e := range list {
		off := uint64(e.Cookie) + behindDotDot
		if !out.AddDirEntry(fuse.DirEntry{Name: e.Name, Ino: uint64(e.ID), Mode: typeBits(e.Type), Off: off}) {
			break
		}
	}
	return fuse.OK
}

// addDots says whether there is room for more.
func addDots(dir fs.Folder, off uint64, out *fuse.DirEntryList) bool {
	for _, e := range []fuse.DirEntry{
		{Name: ".", Off: behindDot, Ino: uint64(dir.ID())}, {Name: "..", Off: behindDotDot, Ino: uint64(dir.Parent())},
	} {
		if off >= e.Off {
			continue
		}
		e.Mode = fuse.S_IFDIR
		if !out.AddDirEntry(e) {
			return false
		}
	}
	return true
}

// FsyncDir implements fuse.RawFileSystem. Only in a Mutable tree are names made or removed.
func (r *raw) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	_, st := r.dir(in.NodeId)
	if !st.Ok() || r.mutable == nil {
		return st
	}
	return r.status("fsyncdir", in.NodeId, r.mutable.Sync(context.Background())) // see call
}
