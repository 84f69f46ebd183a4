package snapshotchain

import (
	"testing"
	"time"

	"livemount/blockdev"
	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/snapshotchain/chunkstore"
)

// mapped seals a point whose leaves map a page each to a chunk that is not there, one slot further each time.
func mapped(t *testing.T, s *Store, vm string, slot uint32, leaves ...uint32) *Disk {
	t.Helper()
	d, err := s.Begin(t.Context(), vm, []DiskSpec{{Name: "sda", SizeBytes: 1 << 40}})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range leaves {
		run := Run{Page: 7, Len: 1, Ptr: chunkstore.Ptr{Container: 1_000_000, Slot: slot}}
		if err := d.Disks()[0].SetLeaf(t.Context(), n, []Run{run}); err != nil {
			t.Fatal(err)
		}
	}
	p, err := d.Seal(t.Context(), SealInfo{})
	if err != nil {
		t.Fatal(err)
	}
	disk, err := s.OpenDisk(t.Context(), &p.Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	return disk
}

// The chunks are not there, so whatever looks at a hash fails: what two points share is not looked at, and what
// must be looked at and cannot is never taken for equal or for different.
func TestDiffReadsOnlyWhatIsNotShared(t *testing.T) {
	s, err := Open(t.Context(), Options{Dir: t.TempDir(), FS: vfs.OS{}, Clock: &clock.Fixed{T: time.Unix(1_800_000_000, 0)}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context())
	a := mapped(t, s, "web", 1, 3, 4, 300, 100_000)
	b := mapped(t, s, "web", 1, 5, 301) // leaves in the same directory pages as others
	c := mapped(t, s, "web", 2, 300)
	var got []int64
	for e, err := range Diff(t.Context(), a, b) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Off/LeafBytes)
	}
	if len(got) != 2 || got[0] != 5 || got[1] != 301 {
		t.Fatalf("leaves %v differ", got)
	}
	var last error
	for e, err := range Diff(t.Context(), b, c) {
		if last = err; err == nil {
			t.Fatalf("%+v without its hash", e)
		}
	}
	if !errs.Is(last, errs.Corrupt) {
		t.Fatalf("got %v, want Corrupt", last)
	}
	for e, err := range DiffFrom(t.Context(), b, c, 301*LeafBytes+blockdev.PageSize) {
		t.Fatal(e, err)
	}
}
