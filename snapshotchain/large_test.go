package snapshotchain

import (
	"bytes"
	"testing"
	"time"

	"livemount/internal/clock"
	"livemount/internal/vfs"
	"livemount/snapshotchain/chunkstore"
)

// A point of many terabytes names more containers than one transaction of Badger holds.
func TestASealOfManyContainersIsApplied(t *testing.T) {
	dir := t.TempDir()
	open := func() *Store {
		s, err := Open(t.Context(), Options{Dir: dir, FS: vfs.OS{}, Clock: &clock.Fixed{T: time.Unix(1_800_000_000, 0)}})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	d, err := s.Begin(t.Context(), "big", []DiskSpec{{Name: "sda", SizeBytes: 1 << 40}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := d.prepare(t.Context(), SealInfo{})
	if err != nil {
		t.Fatal(err)
	}
	const containers = 30_000
	for i := range containers {
		c.Containers = append(c.Containers, chunkstore.State{
			ID: chunkstore.ContainerID(1000 + i), Class: chunkstore.ClassData, Bytes: 64 << 20, Slots: 2000, Raw: 128 << 20, Sealed: true,
		})
	}
	if _, err := s.record(t.Context(), &change{Seal: c}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = open()
	defer s.Close(t.Context())
	if s.distrusted || len(s.cat.containers) < containers || len(s.VMs()) != 1 {
		t.Fatalf("distrusted %v, %d containers, %d VMs", s.distrusted, len(s.cat.containers), len(s.VMs()))
	}
	if damage, _ := s.Health(); len(damage) != 1000 { // the files are not there; the list is bounded
		t.Fatalf("%d damages", len(damage))
	}
}

// What a spoiled journal does not name is kept for good, not only until the store is opened again.
func TestNothingIsRemovedOnceTheJournalHadAGap(t *testing.T) {
	dir := t.TempDir()
	m := vfs.NewMem()
	if err := m.MkdirAll("/c"); err != nil {
		t.Fatal(err)
	}
	open := func() *Store {
		s, err := Open(t.Context(), Options{Dir: dir, FS: m, Containers: "/c", Clock: &clock.Fixed{T: time.Unix(1_800_000_000, 0)}})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	for _, vm := range []string{"a", "b"} {
		d, err := s.Begin(t.Context(), vm, []DiskSpec{{Name: "sda", SizeBytes: 1 << 20}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Seal(t.Context(), SealInfo{Config: []byte("configuration of " + vm)}); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		s = open()
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	containers := func() []string {
		names, err := m.List("/c/map")
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	before := containers()
	spoilNewestJournal(t, m)
	if err := vfs.RemoveAll(vfs.OS{}, dir+"/meta"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		s := open()
		if damage, _ := s.Health(); len(damage) == 0 {
			t.Fatal("nothing was reported")
		}
		if got := containers(); len(got) < len(before) {
			t.Fatalf("containers were removed: %v, then %v", before, got)
		}
		if vms := s.VMs(); len(vms) != 1 || vms[0].Name != "a" {
			t.Fatalf("%+v", vms)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// spoilNewestJournal flips a byte of the last record of the newest journal container, and of its twin.
func spoilNewestJournal(t *testing.T, m *vfs.Mem) {
	t.Helper()
	names, err := m.List("/c/journal")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	name := "/c/journal/" + names[len(names)-1]
	b, err := vfs.ReadFile(m, name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	f, err := m.OpenRW(name)
	if err != nil {
		t.Fatal(err)
	}
	end := len(b)
	for range 2 {
		end = bytes.LastIndex(b[:end], []byte("LMR1"))
		if _, err := f.WriteAt([]byte{b[end+100] ^ 0x10}, int64(end+100)); err != nil {
			t.Fatal(err)
		}
	}
}
