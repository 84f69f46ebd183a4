package snapshotchain

import (
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
