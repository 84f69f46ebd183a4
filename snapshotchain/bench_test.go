package snapshotchain

import (
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"livemount/internal/clock"
	"livemount/internal/vfs"
	"livemount/snapshotchain/chunkstore"
)

// grow makes a disk of 32 GiB with a full and increments of random pages; the chunks are not there.
func grow(b *testing.B, s *Store, increments, pages int) []PointDisk {
	b.Helper()
	const size = 32 << 30
	rng := rand.New(rand.NewPCG(1, 1))
	var list []PointDisk
	for i := range increments + 1 {
		d, err := s.Begin(b.Context(), "vm", []DiskSpec{{Name: "sda", SizeBytes: size}})
		if err != nil {
			b.Fatal(err)
		}
		if err := setPages(b, d.Disks()[0], rng, i, pages); err != nil {
			b.Fatal(err)
		}
		p, err := d.Seal(b.Context(), SealInfo{})
		if err != nil {
			b.Fatal(err)
		}
		list = append(list, p.Disks[0])
	}
	return list
}

func setPages(b *testing.B, k *DraftDisk, rng *rand.Rand, inc, pages int) error {
	const leaves = 32 << 30 / LeafBytes
	runs := make(map[int][]Run)
	if inc == 0 {
		for n := range leaves {
			for p := 0; p < LeafPages; p += 16 {
				runs[n] = append(runs[n], Run{Page: uint16(p), Len: 16, Ptr: chunkstore.Ptr{Container: chunkstore.ContainerID(1 + n/8), Slot: uint32(n%8*128 + p/16)}})
			}
		}
	}
	for i := 0; inc > 0 && i < pages; i++ {
		n := rng.IntN(leaves)
		last := -1
		if r := runs[n]; len(r) > 0 {
			last = int(r[len(r)-1].Page)
		}
		if p := last + 1 + rng.IntN(300); p < LeafPages {
			runs[n] = append(runs[n], Run{Page: uint16(p), Len: 1, First: uint16(i % 16), Ptr: chunkstore.Ptr{Container: chunkstore.ContainerID(100000 + inc), Slot: uint32(i / 16)}})
		}
	}
	for n := range leaves {
		if runs[n] == nil {
			continue
		}
		if err := k.SetLeaf(b.Context(), uint32(n), runs[n]); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkChain measures what depth costs: the time of an increment, of opening a disk and of a lookup of
// a leaf that is in no cache, at the newest and at the first point.
func BenchmarkChain(b *testing.B) {
	const increments, pages = 300, 8192
	dir := b.TempDir()
	s, err := Open(b.Context(), Options{Dir: dir, FS: vfs.OS{}, Clock: clock.System{}, LeafCache: 4096})
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	list := grow(b, s, increments, pages)
	perPage := float64(time.Since(began).Microseconds()) / (increments * pages)
	if err := s.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
	if s, err = Open(b.Context(), Options{Dir: dir, FS: vfs.OS{}, Clock: clock.System{}, LeafCache: 4096}); err != nil {
		b.Fatal(err)
	}
	defer s.Close(b.Context())
	for name, d := range map[string]*PointDisk{"depth 1": &list[0], "depth 301": &list[increments]} {
		b.Run("lookup/"+name, func(b *testing.B) {
			disk, err := s.OpenDisk(b.Context(), d)
			if err != nil {
				b.Fatal(err)
			}
			rng := rand.New(rand.NewPCG(2, 2))
			for b.Loop() {
				if _, err := disk.leaf(b.Context(), uint32(rng.IntN(4096))); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(perPage, "µs/changed-page")
			b.ReportMetric(float64(dirSize(b, dir+"/meta"))/(1<<20), "MB-tables")
		})
		b.Run("open/"+name, func(b *testing.B) {
			for b.Loop() {
				if _, err := s.OpenDisk(b.Context(), d); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func dirSize(b *testing.B, dir string) (n int64) {
	b.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		b.Fatal(err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Size() < 32<<20 { // the logs are sparse
			n += info.Size()
		}
	}
	return n
}
