package vfs

import (
	"math/rand/v2"
	"path/filepath"
	"testing"

	"livemount/internal/errs"
)

func TestALinkIsTheSameFileUntilItsLastNameGoes(t *testing.T) {
	dir := filepath.ToSlash(t.TempDir())
	mem := NewMem()
	for _, fsys := range []FS{OS{}, mem, &Faulty{FS: NewMem(), Fail: func(Op, string) error { return nil }}} {
		sub := dir + "/sub"
		if err := fsys.MkdirAll(sub); err != nil {
			t.Fatal(err)
		}
		f := create(t, fsys, dir+"/a", []byte("one"))
		if err := fsys.Link(dir+"/a", sub+"/b"); err != nil {
			t.Fatal(err)
		}
		if err := fsys.Link(dir+"/a", sub+"/b"); !errs.Is(err, errs.Exists) {
			t.Fatal(err)
		}
		if err := fsys.Link(dir+"/none", sub+"/c"); !errs.Is(err, errs.NotFound) {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("two"), 0); err != nil {
			t.Fatal(err)
		}
		if err := fsys.Remove(dir + "/a"); err != nil {
			t.Fatal(err)
		}
		if b, err := ReadFile(fsys, sub+"/b", 100); err != nil || string(b) != "two" {
			t.Fatalf("%q, %v", b, err)
		}
		if err := fsys.Remove(sub + "/b"); err != nil {
			t.Fatal(err)
		}
	}
	if mem.used != 0 {
		t.Fatalf("%d bytes are left", mem.used)
	}
}

func TestACrashKeepsALinkWhoseFolderWasSynced(t *testing.T) {
	kept, one := 0, 0
	for seed := range uint64(100) {
		m := NewMem()
		if err := m.MkdirAll("/x"); err != nil {
			t.Fatal(err)
		}
		f := create(t, m, "/a", []byte("content"))
		for _, err := range []error{f.Sync(), m.SyncDir("/"), m.Link("/a", "/x/a"), m.Link("/a", "/x/b"), m.Remove("/a")} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if seed%2 == 0 {
			if err := m.SyncDir("/x"); err != nil {
				t.Fatal(err)
			}
		}
		c := m.CrashClone(rand.New(rand.NewPCG(seed, 0)))
		b, err := ReadFile(c, "/x/b", 100)
		if err == nil && string(b) != "content" || seed%2 == 0 && err != nil {
			t.Fatalf("seed %d: %q, %v", seed, b, err)
		}
		names, _ := c.List("/x")
		if seed%2 == 1 && err == nil {
			kept++
		}
		if len(names) == 1 {
			one++
		}
		if c.used != 0 && c.used != 7 {
			t.Fatalf("seed %d: %d bytes used", seed, c.used)
		}
	}
	if kept == 0 || one == 0 {
		t.Fatalf("kept %d, one of two %d", kept, one)
	}
}

func TestALinkToAnotherFileSystemIsInvalid(t *testing.T) {
	here, there := filepath.ToSlash(t.TempDir()), "/dev/shm"
	create(t, OS{}, here+"/a", nil)
	err := OS{}.Link(here+"/a", there+"/livemount-link-test")
	if err == nil {
		_ = OS{}.Remove(there + "/livemount-link-test")
		t.Log("the folder for temporary files is in memory: not tried")
		return
	}
	if !errs.Is(err, errs.Invalid) {
		t.Fatal(err)
	}
}
