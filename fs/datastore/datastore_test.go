package datastore_test

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"math/rand/v2"
	"testing"
	"time"

	"livemount/blockdev"
	"livemount/fs"
	"livemount/fs/datastore"
	"livemount/fs/datastore/dstest"
	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
)

func open(t testing.TB, o dstest.Options) *dstest.Opened {
	t.Helper()
	ds, err := dstest.Open(context.Background(), o)
	must(t, err)
	return ds
}

func wantKind(t testing.TB, err error, want errs.Kind) {
	t.Helper()
	if !errs.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

func makeFile(t testing.TB, s fs.Mutable, dir fs.NodeID, name string) fs.Writable {
	t.Helper()
	o, err := s.Make(t.Context(), dir, name, fs.Make{}, nil)
	must(t, err)
	n, err := s.Node(o.Node.ID)
	must(t, err)
	return n.(fs.Writable)
}

func TestSpaceOfRemovedFilesComesBack(t *testing.T) {
	mem := vfs.NewMem()
	o := dstest.Options{FS: mem}
	ds := open(t, o)
	empty := ds.Log.Stats().LiveBytes
	for _, crash := range []bool{false, true} {
		f := makeFile(t, ds, fs.RootID, "f")
		must(t, f.WriteAt(t.Context(), make([]byte, 1<<20), 5000))
		if a := f.Attr(); a.SizeBytes != 1<<20+5000 || a.AllocatedBytes != 1<<20 {
			t.Errorf("%+v", a)
		}
		_, err := ds.Remove(t.Context(), fs.RootID, "f", false, nil)
		must(t, err)
		_, err = ds.Node(f.ID())
		wantKind(t, err, errs.NotFound)
		wantKind(t, f.WriteAt(t.Context(), []byte("x"), 0), errs.NotFound)
		if now := ds.Log.Stats().LiveBytes; now != empty {
			t.Errorf("%d bytes are live, %d before", now, empty)
		}
		if crash {
			must(t, ds.Sync(t.Context()))
			o.FS = mem.CrashClone(rand.New(rand.NewPCG(1, 1)))
			ds = open(t, o)
			if now := ds.Log.Stats().LiveBytes; now != empty {
				t.Errorf("after a crash: %d bytes are live, %d before", now, empty)
			}
		}
	}
}

func TestWhatIsHeldStaysUsable(t *testing.T) {
	mem := vfs.NewMem()
	ds := open(t, dstest.Options{FS: mem})
	f := makeFile(t, ds, fs.RootID, "f")
	must(t, f.WriteAt(t.Context(), []byte("hello"), 0))
	ds.Hold(f)
	ds.Hold(f)
	_, err := ds.Remove(t.Context(), fs.RootID, "f", false, nil)
	must(t, err)
	ds.Release(f)
	must(t, f.WriteAt(t.Context(), []byte("J"), 0))
	size := int64(3)
	_, err = ds.SetAttr(t.Context(), f.ID(), fs.SetAttr{SizeBytes: &size}, time.Time{}, nil)
	must(t, err)
	p := make([]byte, 3)
	if err := f.ReadAt(t.Context(), p, 0); err != nil || string(p) != "Jel" || f.Attr().Links != 0 {
		t.Errorf("%q, %v, %+v", p, err, f.Attr())
	}
	_, err = ds.Link(t.Context(), f.ID(), fs.RootID, "back", nil)
	wantKind(t, err, errs.NotFound)
	must(t, ds.Log.Clean(t.Context())) // the snapshot holds it
	must(t, ds.Sync(t.Context()))
	again := open(t, dstest.Options{FS: mem.CrashClone(rand.New(rand.NewPCG(1, 1)))})
	if n := again.Log.DataBytes(uint64(f.ID())); n != 0 {
		t.Errorf("after a crash %d bytes of a file without a name are there", n)
	}
	ds.Release(f)
	wantKind(t, f.ReadAt(t.Context(), p, 0), errs.NotFound)
	if n := ds.Log.DataBytes(uint64(f.ID())); n != 0 {
		t.Errorf("%d bytes are there", n)
	}
}

func TestTimesOfWritesAreKeptToTheSecond(t *testing.T) {
	mem, c := vfs.NewMem(), &clock.Fixed{T: time.Unix(1000, 0)}
	ds := open(t, dstest.Options{FS: mem, Clock: c})
	f := makeFile(t, ds, fs.RootID, "f")
	var last time.Time
	for range 50 {
		c.Advance(130 * time.Millisecond)
		must(t, f.WriteAt(t.Context(), []byte("x"), 0))
		if a := f.Attr(); !a.Modified.After(last) || !a.Modified.Equal(c.T) || !a.Changed.Equal(c.T) {
			t.Fatalf("a write at %v: %+v", c.T, a)
		}
		last = f.Attr().Modified
	}
	must(t, ds.Sync(t.Context()))
	timeOf := func(fsys vfs.FS) time.Time {
		n, err := open(t, dstest.Options{FS: fsys, Clock: c}).Node(f.ID())
		must(t, err)
		return n.Attr().Modified
	}
	if got := timeOf(mem.CrashClone(rand.New(rand.NewPCG(1, 1)))); last.Sub(got) >= time.Second || got.After(last) {
		t.Errorf("after a crash %v, not within a second before %v", got, last)
	}
	must(t, ds.Close(t.Context()))
	if got := timeOf(mem); !got.Equal(last) {
		t.Errorf("after a close %v, not %v", got, last)
	}
}

func TestEachChangeHasALaterTime(t *testing.T) {
	c := &clock.Fixed{T: time.Unix(1000, 0)} // it stands still
	ds := open(t, dstest.Options{FS: vfs.NewMem(), Clock: c})
	last := ds.Root().Attr().Changed
	for i := range 10 {
		makeFile(t, ds, fs.RootID, fmt.Sprint(i))
		if now := ds.Root().Attr().Changed; !now.After(last) {
			t.Fatalf("%v is not after %v", now, last)
		}
		last = ds.Root().Attr().Changed
	}
	guard := last.Add(1)
	_, err := ds.SetAttr(t.Context(), fs.RootID, fs.SetAttr{ModifiedNow: true}, guard, nil)
	if !errors.Is(err, fs.OutOfSync) {
		t.Errorf("a wrong guard: %v", err)
	}
	_, err = ds.SetAttr(t.Context(), fs.RootID, fs.SetAttr{ModifiedNow: true}, last, nil)
	must(t, err)
}

func TestAReadOnlyDatastoreHasTheSameIDsEachTime(t *testing.T) {
	disk := blockdev.NewMem(8192)
	var before string
	for range 2 {
		s := datastore.New(datastore.Options{Clock: &clock.Fixed{T: time.Unix(5, 0)}})
		must(t, s.Start(t.Context(), nil, []datastore.Disk{{ID: 2, Data: disk, Allocated: 4096}}))
		must(t, s.Lay(t.Context(), []datastore.First{
			{Path: "a/b/x.vmx", Content: []byte("x"), Perm: 0o644}, {Path: "a/b/disk", Disk: 2, Perm: 0o600}, {Path: "a/y", Perm: 0o600},
		}))
		now := dump(t, s)
		if before != "" && now != before {
			t.Errorf("%s\nnot\n%s", now, before)
		}
		before = now
		_, err := s.Make(t.Context(), fs.RootID, "x", fs.Make{}, nil)
		if !errors.Is(err, fs.ReadOnly) {
			t.Errorf("made in a read-only datastore: %v", err)
		}
		n, err := s.Node(2)
		must(t, err)
		if err := n.(fs.Writable).WriteAt(t.Context(), []byte("x"), 0); !errors.Is(err, fs.ReadOnly) {
			t.Errorf("written to a read-only disk: %v", err)
		}
		if p := s.PathOf(2); p != "a/b/disk" {
			t.Errorf("the disk is at %q", p)
		}
	}
}

func TestAListingHasWhatStaysOnce(t *testing.T) {
	ds := open(t, dstest.Options{FS: vfs.NewMem()})
	rng := rand.New(rand.NewPCG(1, 1))
	stays := map[string]int{}
	for i := range 2000 {
		name := fmt.Sprintf("f%04d", i)
		makeFile(t, ds, fs.RootID, name)
		if i%3 == 0 {
			stays[name] = 0
		}
	}
	for at, i := fs.Cookie(0), 0; ; i++ {
		list, err := ds.Root().List(t.Context(), at, 7)
		must(t, err)
		if len(list) == 0 {
			break
		}
		for _, e := range list {
			if _, ok := stays[e.Name]; ok {
				stays[e.Name]++
			}
			at = e.Cookie
		}
		for range 12 { // remove more than is listed, so that the list is packed again meanwhile
			name := fmt.Sprintf("f%04d", rng.IntN(2000))
			if _, ok := stays[name]; !ok {
				_, _ = ds.Remove(t.Context(), fs.RootID, name, false, nil)
			}
		}
		if i < 20 {
			makeFile(t, ds, fs.RootID, fmt.Sprintf("new%d", i))
		}
	}
	for name, n := range stays {
		if n != 1 {
			t.Errorf("%s was listed %d times", name, n)
		}
	}
}

func TestBoundsOfADatastore(t *testing.T) {
	ds := open(t, dstest.Options{FS: vfs.NewMem(), MaxNodes: 10})
	var err error
	for i := 0; err == nil && i < 20; i++ {
		_, err = ds.Make(t.Context(), fs.RootID, fmt.Sprint(i), fs.Make{Type: iofs.ModeDir}, nil)
	}
	if !errs.Is(err, errs.NoSpace) || ds.Len() != 10 {
		t.Errorf("%d nodes, %v", ds.Len(), err)
	}
	_, err = ds.Remove(t.Context(), fs.RootID, "0", true, nil)
	must(t, err)
	f := makeFile(t, ds, fs.RootID, "f")
	if err := f.WriteAt(t.Context(), []byte("x"), fs.MaxFileBytes); !errors.Is(err, fs.TooLarge) {
		t.Errorf("written behind the greatest size: %v", err)
	}
	must(t, f.WriteAt(t.Context(), []byte("x"), fs.MaxFileBytes-1))
	size := int64(fs.MaxFileBytes + 1)
	_, err = ds.SetAttr(t.Context(), f.ID(), fs.SetAttr{SizeBytes: &size}, time.Time{}, nil)
	if !errors.Is(err, fs.TooLarge) {
		t.Errorf("set to more than the greatest size: %v", err)
	}
	if a := f.Attr(); a.AllocatedBytes > 1<<20 || a.SizeBytes != fs.MaxFileBytes {
		t.Errorf("a sparse file: %+v", a)
	}
}

func TestFoldersAreNeverLost(t *testing.T) {
	ds := open(t, dstest.Options{FS: vfs.NewMem()})
	dir := func(in fs.NodeID, name string) fs.NodeID {
		o, err := ds.Make(t.Context(), in, name, fs.Make{Type: iofs.ModeDir}, nil)
		must(t, err)
		return o.Node.ID
	}
	a := dir(fs.RootID, "a")
	b := dir(a, "b")
	for _, into := range []fs.NodeID{a, b} {
		_, err := ds.Rename(t.Context(), fs.RootID, "a", into, "x", nil)
		wantKind(t, err, errs.Invalid)
	}
	_, err := ds.Remove(t.Context(), fs.RootID, "a", true, nil)
	if !errors.Is(err, fs.NotEmpty) {
		t.Errorf("removed a full folder: %v", err)
	}
	_, err = ds.Link(t.Context(), b, fs.RootID, "x", nil)
	if !errors.Is(err, fs.IsFolder) {
		t.Errorf("linked a folder: %v", err)
	}
	c := dir(fs.RootID, "c")
	o, err := ds.Rename(t.Context(), a, "b", fs.RootID, "c", nil)
	must(t, err)
	if o.Dir.After.Links != 2 || o.Other.After.Links != ds.Root().Attr().Links || o.Other.After.Links != 5 {
		t.Errorf("links %d and %d; the root has %d", o.Dir.After.Links, o.Other.After.Links, ds.Root().Attr().Links)
	}
	_, err = ds.Node(c)
	wantKind(t, err, errs.NotFound)
	_, err = ds.Make(t.Context(), c, "in a folder that is gone", fs.Make{}, nil)
	wantKind(t, err, errs.NotFound)
}

func TestAnswersAreNotPushedOutByRefusals(t *testing.T) {
	ds := open(t, dstest.Options{FS: vfs.NewMem()})
	call := func(i int) *fs.Call {
		return &fs.Call{Key: fs.CallKey{byte(i), byte(i >> 8), byte(i >> 16)}, Reply: func(_ *fs.Outcome, err error) []byte {
			return fmt.Appendf(nil, "%d %v", i, err)
		}}
	}
	_, err := ds.Make(t.Context(), fs.RootID, "d", fs.Make{Type: iofs.ModeDir}, call(0))
	must(t, err)
	for i := 1; i < 20_000; i++ {
		_, err := ds.Make(t.Context(), fs.RootID, "d", fs.Make{Type: iofs.ModeDir}, call(i))
		wantKind(t, err, errs.Exists)
	}
	if b, ok := ds.Reply(call(0).Key); !ok || string(b) != "0 <nil>" {
		t.Errorf("the first answer: %q, %v", b, ok)
	}
	if b, ok := ds.Reply(call(19_999).Key); !ok || string(b) == "" {
		t.Errorf("the last refusal: %q, %v", b, ok)
	}
	if _, ok := ds.Reply(call(1).Key); ok {
		t.Error("refusals are kept without a bound")
	}
}

func TestNamesAreBounded(t *testing.T) {
	ds := open(t, dstest.Options{FS: vfs.NewMem()})
	target := string(make([]byte, fs.MaxTargetBytes))
	made := 0
	var err error
	for ; err == nil && made < 100_000; made++ {
		_, err = ds.Make(t.Context(), fs.RootID, fmt.Sprint(made), fs.Make{Type: iofs.ModeSymlink, Target: target}, nil)
	}
	if !errs.Is(err, errs.NoSpace) {
		t.Fatalf("%d links of %d bytes: %v", made, len(target), err)
	}
	if b, err := ds.Snapshot(); err != nil || len(b) > 160<<20 {
		t.Errorf("a snapshot of %d bytes, %v", len(b), err)
	}
	must(t, ds.Log.Clean(t.Context()))
	for i := range 10 {
		_, err := ds.Remove(t.Context(), fs.RootID, fmt.Sprint(i), false, nil)
		must(t, err)
	}
	_, err = ds.Make(t.Context(), fs.RootID, "room", fs.Make{}, nil)
	must(t, err)
}

// TestRefusalsDoNotTakeTheRoomForRemoving: on a full disk refusals are not logged, and removing goes on.
func TestRefusalsDoNotTakeTheRoomForRemoving(t *testing.T) {
	full := false
	ds := open(t, dstest.Options{FS: vfs.NewMem(), Admit: func(int64) error {
		if full {
			return errs.New(errs.NoSpace, "full")
		}
		return nil
	}, AdmitFreeing: func(int64) error { return nil }})
	makeFile(t, ds, fs.RootID, "f")
	full = true
	before := ds.Log.Stats().LogBytes
	for i := range 100 {
		c := &fs.Call{Key: fs.CallKey{byte(i), 1}, Reply: func(*fs.Outcome, error) []byte { return []byte("no") }}
		_, err := ds.Make(t.Context(), fs.RootID, "f", fs.Make{}, c)
		wantKind(t, err, errs.Exists)
	}
	if now := ds.Log.Stats().LogBytes; now != before {
		t.Errorf("refusals took %d bytes", now-before)
	}
	_, err := ds.Make(t.Context(), fs.RootID, "g", fs.Make{}, nil)
	wantKind(t, err, errs.NoSpace)
	_, err = ds.Remove(t.Context(), fs.RootID, "f", false, nil)
	must(t, err)
}

func TestPathsOfAnyDepth(t *testing.T) {
	ds := open(t, dstest.Options{FS: vfs.NewMem()})
	at := fs.RootID
	for i := range 10_000 {
		o, err := ds.Make(t.Context(), at, "n", fs.Make{Type: iofs.ModeDir}, nil)
		must(t, err)
		if at = o.Node.ID; i == 2 && ds.PathOf(at) != "n/n/n" {
			t.Errorf("at %q", ds.PathOf(at))
		}
	}
	if p := ds.PathOf(at); p != "" {
		t.Errorf("a path of %d bytes", len(p))
	}
}

// TestAFullDiskKeepsNothingFromClosingOrOpening: what was removed while not even removing had room is dropped later; the
// datastore closes, opens and is read.
func TestAFullDiskKeepsNothingFromClosingOrOpening(t *testing.T) {
	mem, full := vfs.NewMem(), false
	admit := func(int64) error {
		if full {
			return errs.New(errs.NoSpace, "full")
		}
		return nil
	}
	calls := 0
	o := dstest.Options{FS: mem, Admit: admit, AdmitFreeing: func(int64) error {
		if calls++; full && calls > 1 { // the removal itself goes in, and nothing after it
			return errs.New(errs.NoSpace, "full")
		}
		return nil
	}}
	ds := open(t, o)
	f := makeFile(t, ds, fs.RootID, "f")
	kept := makeFile(t, ds, fs.RootID, "kept")
	must(t, f.WriteAt(t.Context(), make([]byte, 1<<20), 0))
	must(t, kept.WriteAt(t.Context(), []byte("kept"), 0))
	full, calls = true, 0
	_, err := ds.Remove(t.Context(), fs.RootID, "f", false, nil)
	must(t, err)
	if n := ds.Log.DataBytes(uint64(f.ID())); n == 0 {
		t.Fatal("the test has tested nothing")
	}
	must(t, ds.Close(t.Context()))
	ds = open(t, o)
	n, err := ds.Node(kept.ID())
	must(t, err)
	p := make([]byte, 4)
	if err := n.(fs.Regular).ReadAt(t.Context(), p, 0); err != nil || string(p) != "kept" {
		t.Errorf("%q, %v", p, err)
	}
	full = false
	makeFile(t, ds, fs.RootID, "g")
	if n := ds.Log.DataBytes(uint64(f.ID())); n != 0 {
		t.Errorf("%d bytes of a removed file are there", n)
	}
}

func TestExplicitTimesAreKept(t *testing.T) {
	mem, c := vfs.NewMem(), &clock.Fixed{T: time.Unix(1000, 0)}
	ds := open(t, dstest.Options{FS: mem, Clock: c})
	f := makeFile(t, ds, fs.RootID, "f")
	c.Advance(5 * time.Second)
	must(t, f.WriteAt(t.Context(), []byte("x"), 0))
	c.Advance(time.Second)
	past := time.Unix(77, 5)
	_, err := ds.SetAttr(t.Context(), f.ID(), fs.SetAttr{Accessed: &past, Modified: &past}, time.Time{}, nil)
	must(t, err)
	must(t, ds.Sync(t.Context()))
	n, err := open(t, dstest.Options{FS: mem.CrashClone(rand.New(rand.NewPCG(1, 1))), Clock: c}).Node(f.ID())
	must(t, err)
	if a := n.Attr(); !a.Modified.Equal(past) || !a.Accessed.Equal(past) || !a.Changed.Equal(f.Attr().Changed) {
		t.Errorf("%+v", a)
	}
}
