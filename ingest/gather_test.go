package ingest

import (
	"context"
	"iter"
	"math/rand/v2"
	"testing"
	"time"

	"livemount/blockdev"
	"livemount/internal/clock"
	"livemount/internal/vfs"
	"livemount/snapshotchain"
)

// memory is a disk in memory.
type memory []byte

func (m memory) Size() int64                 { return int64(len(m)) }
func (m memory) Close() error                { return nil }
func (m memory) Check(context.Context) error { return nil }
func (m memory) Changed() string             { return "" }

func (m memory) ReadAt(_ context.Context, p []byte, off int64) error {
	copy(p, m[off:])
	return nil
}

func (m memory) Extents(_ context.Context, off, n int64) iter.Seq2[blockdev.Extent, error] {
	return func(yield func(blockdev.Extent, error) bool) {
		yield(blockdev.Extent{Off: off, Len: n, Kind: blockdev.Data}, nil)
	}
}

// After hundreds of small increments a disk still lies in few chunks (it would be in 600), reads as it is, and gathering took
// less than a second copy.
func TestScatteredDiskIsGathered(t *testing.T) {
	s, err := snapshotchain.Open(t.Context(), snapshotchain.Options{
		Dir: t.TempDir(), FS: vfs.OS{}, Clock: &clock.Fixed{T: time.Unix(1_800_000_000, 0)}, ScatterLimit: 200,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context())
	rng := rand.New(rand.NewPCG(1, 2))
	disk := make(memory, 8<<20)
	for i := range disk {
		disk[i] = byte(rng.Uint32())
	}
	stored, changed := int64(0), 0
	for i := range 250 {
		d := Disk{Name: "sda", Source: disk}
		if i > 0 {
			page := rng.Int64N(int64(len(disk)) / blockdev.PageSize)
			disk[page*blockdev.PageSize+5] ^= byte(1 + rng.IntN(255))
			d.Listed, d.Changed = true, []snapshotchain.ByteRange{{Offset: page * blockdev.PageSize, Length: blockdev.PageSize}}
			changed++
		}
		var c Counters
		if _, err := Run(t.Context(), s, Request{VM: "web", Disks: []Disk{d}}, &c, func(string) {}); err != nil {
			t.Fatal(err)
		}
		stored += c.Stored.Load()
	}
	vm := s.VMs()[0]
	points, err := s.Points(t.Context(), &vm)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{0, 100, 249} {
		proof, err := s.Verify(t.Context(), &points[at].Disks[0], nil)
		if err != nil || len(proof.Bad) > 0 {
			t.Fatalf("point %d: %+v: %v", at, proof, err)
		}
		if at == 249 && proof.Chunks > 300 {
			t.Errorf("8 MiB lie in %d runs", proof.Chunks)
		}
	}
	got := make([]byte, len(disk))
	d, err := s.OpenDisk(t.Context(), &points[249].Disks[0])
	if err == nil {
		err = d.ReadAt(t.Context(), got, 0)
	}
	if err != nil || string(got) != string(disk) {
		t.Errorf("it reads as something else: %v", err)
	}
	if most := int64(len(disk)) * 2; stored > most { // what did not change is found where it was first stored
		t.Errorf("%d MiB were stored for %d MiB and %d changed pages", stored>>20, len(disk)>>20, changed)
	}
}
