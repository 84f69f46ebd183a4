package fusefs

import (
	"context"
	"log/slog"
	"runtime"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"livemount/blockdev"
	"livemount/fs"
	"livemount/fs/datastore/dstest"
	"livemount/internal/vfs"
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
	anyRequest(r)
	ds, r := unmountedStore(t, Options{})
	lookup(t, r, lookup(t, r, 1, "web"), "web.vmx")
	anyRequest(r)
	if err := ds.Sync(t.Context()); err != nil {
		t.Error(err)
	}
}

func anyRequest(r *raw) {
	for _, node := range []uint64{0, 1, 2, 3, 1<<16 + 1, 1<<64 - 1} {
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
			r.Rename(cancel, &fuse.RenameIn{InHeader: h, Newdir: v, Flags: uint32(v)}, "web", "x/y")
			r.Link(cancel, &fuse.LinkIn{InHeader: h, Oldnodeid: v}, "l", &fuse.EntryOut{})
			r.Mknod(cancel, &fuse.MknodIn{InHeader: h, Mode: uint32(v)}, "..", &fuse.EntryOut{})
			r.Mkdir(cancel, &fuse.MkdirIn{InHeader: h, Mode: uint32(v)}, "d\x00", &fuse.EntryOut{})
			r.Symlink(cancel, &h, "", "s", &fuse.EntryOut{})
			r.Unlink(cancel, &h, "")
			r.Rmdir(cancel, &h, "web")
			r.Lookup(cancel, &h, "", &fuse.EntryOut{})
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

// unmountedStore returns the translator of a datastore, without a kernel.
func unmountedStore(t *testing.T, o Options) (*dstest.Opened, *raw) {
	t.Helper()
	ds, err := dstest.Open(t.Context(), dstest.Options{FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ds.Close(context.Background()) })
	o.Log = slog.New(slog.DiscardHandler)
	return ds, newRaw(ds, o)
}

func root() fuse.InHeader { return fuse.InHeader{NodeId: 1} }

// TestCreateOfWhatAppearedMakesTheKernelLookAgain is what happens when another protocol was faster.
func TestCreateOfWhatAppearedMakesTheKernelLookAgain(t *testing.T) {
	ds, r := unmountedStore(t, Options{DirectIO: true})
	before := ds.Len()
	var out fuse.CreateOut
	for flags, want := range map[uint32]syscall.Errno{
		syscall.O_RDWR: syscall.ESTALE, syscall.O_RDWR | syscall.O_EXCL: syscall.EEXIST,
	} {
		in := fuse.CreateIn{InHeader: root(), Flags: flags | syscall.O_CREAT, Mode: 0o644}
		if st := r.Create(nil, &in, "web", &out); st != fuse.Status(want) {
			t.Errorf("flags %#x: %v", flags, st)
		}
	}
	if ds.Len() != before || r.known() != 1 {
		t.Errorf("%d nodes, %d known", ds.Len(), r.known())
	}
}

func TestWhatTheKernelKnowsIsHeld(t *testing.T) {
	ds, r := unmountedStore(t, Options{})
	before := ds.Len()
	create := func(name string) uint64 {
		t.Helper()
		var out fuse.CreateOut
		in := fuse.CreateIn{InHeader: root(), Flags: syscall.O_RDWR, Mode: 0o600}
		if st := r.Create(nil, &in, name, &out); !st.Ok() {
			t.Fatal(st)
		}
		return out.NodeId
	}
	a, b := create("a"), create("b")
	lookup(t, r, 1, "a")
	h := root()
	for _, name := range []string{"a", "b"} {
		if st := r.Unlink(nil, &h, name); !st.Ok() {
			t.Fatal(st)
		}
	}
	r.Forget(a, 1)
	if n, st := r.Write(nil, &fuse.WriteIn{InHeader: fuse.InHeader{NodeId: a}}, []byte("abc")); n != 3 || !st.Ok() || ds.Len() != before+2 {
		t.Errorf("write: %d, %v, %d nodes", n, st, ds.Len())
	}
	r.Forget(a, 1)
	if ds.Len() != before+1 {
		t.Errorf("%d nodes after the last reference, %d before", ds.Len(), before)
	}
	r.forgetAll()
	if ds.Len() != before || r.known() != 1 {
		t.Errorf("%d nodes after the mount, %d before; node %d", ds.Len(), before, b)
	}
}

// TestNamesAreRememberedOnlyAlone looks at how long the kernel may believe what it is told.
func TestNamesAreRememberedOnlyAlone(t *testing.T) {
	for _, direct := range []bool{false, true} {
		_, r := unmountedStore(t, Options{DirectIO: direct})
		var there, nothing fuse.EntryOut
		h := root()
		r.Lookup(nil, &h, "web", &there)
		st := r.Lookup(nil, &h, "nothing", &nothing)
		if alone := there.EntryTimeout() > 0; alone == direct {
			t.Errorf("direct %v: a name is valid for %v", direct, there.EntryTimeout())
		}
		if remembered := st.Ok() && nothing.NodeId == 0 && nothing.EntryTimeout() > 0; remembered == direct {
			t.Errorf("direct %v: nothing: %v, %v", direct, st, nothing.EntryTimeout())
		}
	}
}
