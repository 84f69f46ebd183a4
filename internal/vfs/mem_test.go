package vfs

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"livemount/internal/errs"
)

func create(t *testing.T, m FS, name string, content []byte) File {
	t.Helper()
	f, err := m.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestACrashKeepsWhatWasSynced(t *testing.T) {
	for seed := range uint64(200) {
		m := NewMem()
		f := create(t, m, "/a", bytes.Repeat([]byte{1}, 3000))
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		if err := m.SyncDir("/"); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(bytes.Repeat([]byte{2}, 4000), 1024); err != nil {
			t.Fatal(err)
		}
		b, err := ReadFile(m.CrashClone(rand.New(rand.NewPCG(seed, 0))), "/a", 1<<20)
		if err != nil || len(b) < 3000 {
			t.Fatal(len(b), err)
		}
		for i, v := range b {
			if i < 1024 && v != 1 || i < 3000 && v == 0 {
				t.Fatalf("seed %d: byte %d is %d", seed, i, v)
			}
		}
	}
}

func TestACrashMayLoseANameThatWasNotSynced(t *testing.T) {
	lost := 0
	for seed := range uint64(100) {
		m := NewMem()
		f := create(t, m, "/a", []byte("x"))
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		if _, err := m.CrashClone(rand.New(rand.NewPCG(seed, 0))).Open("/a"); errs.Is(err, errs.NotFound) {
			lost++
		}
	}
	if lost == 0 || lost == 100 {
		t.Fatalf("lost %d of 100", lost)
	}
}

func TestWriteFileIsOldOrNewAfterACrash(t *testing.T) {
	for seed := range uint64(200) {
		m := NewMem()
		if err := WriteFile(m, "/a", []byte("old content")); err != nil {
			t.Fatal(err)
		}
		left := int(seed % 7)
		stop := errs.New(errs.Other, "stopped")
		f := &Faulty{FS: m, Fail: func(op Op, _ string) error {
			if left--; left < 0 {
				return stop
			}
			return nil
		}}
		err := WriteFile(f, "/a", []byte("the new content"))
		b, rerr := ReadFile(m.CrashClone(rand.New(rand.NewPCG(seed, 0))), "/a", 100)
		if rerr != nil || (string(b) != "old content" && string(b) != "the new content") || (err == nil && string(b) != "the new content") {
			t.Fatalf("seed %d: %q, %v, %v", seed, b, err, rerr)
		}
	}
}

func TestAFullMemSaysSo(t *testing.T) {
	m := NewMem()
	m.SetLimit(1000)
	f := create(t, m, "/a", make([]byte, 900))
	if _, err := f.WriteAt(make([]byte, 200), 900); !errs.Is(err, errs.NoSpace) {
		t.Fatal(err)
	}
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 200), 0); err != nil {
		t.Fatal(err)
	}
}

func TestReadFileRefusesWhatIsTooLarge(t *testing.T) {
	m := NewMem()
	create(t, m, "/a", make([]byte, 100))
	if _, err := ReadFile(m, "/a", 99); !errs.Is(err, errs.Invalid) {
		t.Fatal(err)
	}
}
