package fusefs

import (
	"log/slog"
	"runtime"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"livemount/blockdev"
	"livemount/fs"
)

// unmounted returns the translator of a tree with one disk of size bytes, without a kernel.
func unmounted(t *testing.T, size int64) *raw {
	t.Helper()
	_, r := unmountedTree(t, size)
	return r
}

func unmountedTree(t *testing.T, size int64) (*fs.Tree, *raw) {
	t.Helper()
	tree := fs.New(fs.Options{})
	if _, err := tree.AddDisk(fs.Disk{ID: 2, Name: "disk.raw", Data: blockdev.NewMem(size)}); err != nil {
		t.Fatal(err)
	}
	return tree, newRaw(tree, Options{Log: slog.New(slog.DiscardHandler)})
}

func lookup(t *testing.T, r *raw, dir uint64, name string) uint64 {
	t.Helper()
	var out fuse.EntryOut
	if st := r.Lookup(nil, &fuse.InHeader{NodeId: dir}, name, &out); !st.Ok() {
		t.Fatalf("lookup %s: %v", name, st)
	}
	return out.NodeId
}

func TestInterruptEndsReadsAndNeverWrites(t *testing.T) {
	r := unmounted(t, 4096)
	interrupted := make(chan struct{})
	close(interrupted)
	h := fuse.InHeader{NodeId: lookup(t, r, 1, "disk.raw")}
	if _, st := r.Read(interrupted, &fuse.ReadIn{InHeader: h, Size: 10}, make([]byte, 10)); st != fuse.EINTR {
		t.Errorf("read: %v", st)
	}
	if n, st := r.Write(interrupted, &fuse.WriteIn{InHeader: h, Flags: 0o10000}, []byte("abc")); n != 3 || !st.Ok() {
		t.Errorf("write: %d, %v", n, st)
	}
	if st := r.Fsync(interrupted, &fuse.FsyncIn{InHeader: h}); !st.Ok() {
		t.Errorf("fsync: %v", st)
	}
}

func TestLookupsAreCounted(t *testing.T) {
	r := unmounted(t, 4096)
	for range 3 {
		lookup(t, r, 1, "disk.raw")
	}
	r.Forget(2, 2)
	if r.nodes[2].refs != 1 {
		t.Errorf("%d references", r.nodes[2].refs)
	}
	r.Forget(2, 9) // more than there are must not wrap around
	r.Forget(1, 1) // the root stays
	if r.known() != 1 {
		t.Errorf("left: %v", r.nodes)
	}
}

// TestAnyRequestIsAnswered sends numbers that no sane kernel sends.
func TestAnyRequestIsAnswered(t *testing.T) {
	r := unmounted(t, 4097)
	lookup(t, r, 1, "disk.raw")
	for _, node := range []uint64{0, 1, 2, 3, 1<<64 - 1} {
		for _, v := range []uint64{0, 1, 4096, 4097, 1<<63 - 1, 1 << 63, 1<<64 - 1} {
			h := fuse.InHeader{NodeId: node}
			var cancel chan struct{}
			r.Read(cancel, &fuse.ReadIn{InHeader: h, Offset: v, Size: uint32(v)}, make([]byte, 16))
			r.Write(cancel, &fuse.WriteIn{InHeader: h, Offset: v, Size: uint32(v)}, make([]byte, 16))
			r.Fallocate(cancel, &fuse.FallocateIn{InHeader: h, Offset: v, Length: v, Mode: 3})
			r.Fallocate(cancel, &fuse.FallocateIn{InHeader: h, Offset: 1, Length: v, Mode: uint32(v)})
			r.Lseek(cancel, &fuse.LseekIn{InHeader: h, Offset: v, Whence: 3}, &fuse.LseekOut{})
			r.SetAttr(cancel, &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: h, Valid: uint32(v), Size: v}}, &fuse.AttrOut{})
			r.Open(cancel, &fuse.OpenIn{InHeader: h, Flags: uint32(v)}, &fuse.OpenOut{})
			r.ReadDir(cancel, &fuse.ReadIn{InHeader: h, Offset: v}, fuse.NewDirEntryList(make([]byte, 256), v))
			r.Readlink(cancel, &h)
			r.Forget(3, v)
		}
	}
}

func TestListingContinuesAnywhere(t *testing.T) {
	tree, r := unmountedTree(t, 1)
	for id := fs.NodeID(3); id < 700; id++ {
		name := "disk" + string(rune('a'+id%26)) + string(rune('a'+id/26))
		if _, err := tree.AddDisk(fs.Disk{ID: id, Name: name, Data: blockdev.NewMem(1)}); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[uint64]int{}
	for off := uint64(0); ; {
		list := fuse.NewDirEntryList(make([]byte, 200), off)
		if st := r.ReadDir(nil, &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: 1}, Offset: off}, list); !st.Ok() {
			t.Fatal(st)
		}
		got, err := fuse.ParseDirEntries(list.Bytes())
		if err != nil || len(got) == 0 {
			break
		}
		for _, e := range got {
			seen[e.Ino]++
			off = e.Off
		}
	}
	if len(seen) != 699 || seen[1] != 2 || seen[2] != 1 || seen[699] != 1 {
		t.Errorf("%d nodes, root %d times", len(seen), seen[1])
	}
}

// twin is a node whose id another has as well.
type twin struct{ name string }

func (twin) ID() fs.NodeID { return 7 }

func (twin) Attr() fs.Attr { return fs.Attr{ID: 7} }

func TestNodesOfOneIDAreToldApart(t *testing.T) {
	r := unmounted(t, 1)
	a, b := r.hold(twin{"a"}), r.hold(twin{"b"})
	if a != 7 || b != 8 || r.hold(twin{"b"}) != b || r.hold(twin{"a"}) != a {
		t.Errorf("numbers %d and %d", a, b)
	}
	r.Forget(a, 2)
	if n, st := r.node(b); n != fs.Node(twin{"b"}) || !st.Ok() || r.hold(twin{"b"}) != a {
		t.Errorf("node %d is %v, %v", b, n, st)
	}
}

func TestManyNodesArePruned(t *testing.T) {
	r := unmounted(t, 1)
	stop, done := make(chan struct{}), make(chan struct{})
	ask := func(ids []uint64) fuse.Status {
		for _, id := range ids {
			r.Forget(id, 1)
		}
		return fuse.OK
	}
	go func() { defer close(done); r.prune(stop, ask) }()
	for id := range 10 * pruneAbove {
		r.hold(&numbered{id: fs.NodeID(id + 2)})
	}
	for r.known() > 2*pruneAbove {
		runtime.Gosched()
	}
	close(stop)
	<-done
}

type numbered struct {
	twin
	id fs.NodeID
}

func (n *numbered) ID() fs.NodeID { return n.id }
