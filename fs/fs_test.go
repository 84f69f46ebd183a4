package fs_test

import (
	"strings"
	"testing"
	"time"

	"livemount/blockdev"
	"livemount/blockdev/blocktest"
	"livemount/fs"
	"livemount/internal/clock"
	"livemount/internal/errs"
)

// noClose lets a File pass as a Device in the suite.
type noClose struct{ *fs.File }

func (noClose) Close() error { return nil }

func add(t *testing.T, tree *fs.Tree, d fs.Disk) *fs.File {
	t.Helper()
	f, err := tree.AddDisk(d)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFileConforms(t *testing.T) {
	const size = 100_001
	blocktest.TestDevice(t, func() blockdev.Device {
		return noClose{add(t, fs.New(fs.Options{}), fs.Disk{ID: 2, Name: "a.raw", Data: blockdev.NewMem(size)})}
	}, size)
}

func TestNamesAreChecked(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "a\x00b", strings.Repeat("x", 256)} {
		_, err := fs.New(fs.Options{}).AddDisk(fs.Disk{ID: 2, Name: name, Data: blockdev.NewMem(1)})
		if !errs.Is(err, errs.Invalid) {
			t.Errorf("name %.10q: got %v, want Invalid", name, err)
		}
	}
	add(t, fs.New(fs.Options{}), fs.Disk{ID: 2, Name: strings.Repeat("x", 255), Data: blockdev.NewMem(1)})
}

func TestIDsAndNamesAreUnique(t *testing.T) {
	tree := fs.New(fs.Options{})
	f := add(t, tree, fs.Disk{ID: 7, Name: "a", Data: blockdev.NewMem(1)})
	for _, c := range []struct {
		id   fs.NodeID
		name string
		want errs.Kind
	}{{7, "b", errs.Exists}, {8, "a", errs.Exists}, {0, "c", errs.Invalid}, {fs.RootID, "c", errs.Invalid}, {1 << 63, "c", errs.Invalid}} {
		if _, err := tree.AddDisk(fs.Disk{ID: c.id, Name: c.name, Data: blockdev.NewMem(1)}); !errs.Is(err, c.want) {
			t.Errorf("id %d name %s: got %v, want %v", c.id, c.name, err, c.want)
		}
	}
	if n, err := tree.Root().Lookup(t.Context(), "a"); err != nil || n != fs.Node(f) {
		t.Errorf("file a: %v, %v", n, err)
	}
	if _, err := tree.Root().Lookup(t.Context(), "b"); !errs.Is(err, errs.NotFound) {
		t.Errorf("lookup of what was refused: %v", err)
	}
}

func TestListContinuesBehindAnID(t *testing.T) {
	tree := fs.New(fs.Options{})
	for _, id := range []fs.NodeID{9, 3, 5} {
		add(t, tree, fs.Disk{ID: id, Name: "disk" + string(rune('0'+id)), Data: blockdev.NewMem(1)})
	}
	var seen []fs.NodeID
	for behind := fs.Cookie(0); ; {
		list, err := tree.Root().List(t.Context(), behind, 1)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 {
			break
		}
		behind = list[0].Cookie
		seen = append(seen, list[0].ID)
		if list[0].ID == 3 {
			add(t, tree, fs.Disk{ID: 4, Name: "new", Data: blockdev.NewMem(1)})
		}
	}
	if len(seen) != 4 || seen[0] != 3 || seen[1] != 4 || seen[3] != 9 {
		t.Errorf("listed %v", seen)
	}
}

func TestWritesSetTimes(t *testing.T) {
	c := &clock.Fixed{T: time.Unix(100, 0)}
	f := add(t, fs.New(fs.Options{Clock: c}), fs.Disk{ID: 2, Name: "a", Data: blockdev.NewMem(8)})
	c.Advance(time.Second)
	if err := f.WriteAt(t.Context(), []byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	if a := f.Attr(); a.Modified.Unix() != 101 || a.Changed.Unix() != 101 || a.Accessed.Unix() != 100 {
		t.Errorf("after a write: %+v", a)
	}
}

func TestReadOnlyFileIsNeverWritten(t *testing.T) {
	dev := blockdev.NewMem(8)
	f := add(t, fs.New(fs.Options{}), fs.Disk{ID: 2, Name: "a", Data: dev, ReadOnly: true})
	for _, err := range []error{f.WriteAt(t.Context(), []byte{1}, 0), f.Zero(t.Context(), 0, 1)} {
		if !errs.Is(err, errs.Denied) {
			t.Errorf("got %v, want Denied", err)
		}
	}
	if err := f.Sync(t.Context()); err != nil || f.Writable() {
		t.Errorf("sync: %v, writable %v", err, f.Writable())
	}
}

func TestSpaceWithoutAStoreIsTheSizes(t *testing.T) {
	tree := fs.New(fs.Options{})
	add(t, tree, fs.Disk{ID: 2, Name: "a", Data: blockdev.NewMem(8)})
	if s, err := tree.Space(t.Context()); err != nil || s.TotalBytes != 8 || s.FreeBytes != 0 {
		t.Errorf("%+v, %v", s, err)
	}
}
