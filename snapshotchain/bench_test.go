package snapshotchain

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"livemount/internal/cache"
	"livemount/internal/clock"
	"livemount/internal/vfs"
	"livemount/snapshotchain/chunkstore"
)

// history is a generated chain: a full backup and increments that each change a part of the disk in extents,
// half of them anywhere, half of them in a tenth of the disk. The chunks are not there.
type history struct {
	bytes, increments int64
	perMille          int64 // of the disk that an increment changes
	extent            int64 // pages
}

func (h history) leaves() int64 { return h.bytes / LeafBytes }

func (h history) grow(b *testing.B, s *Store) []PointDisk {
	b.Helper()
	rng := rand.New(rand.NewPCG(1, 1))
	var list []PointDisk
	for i := range h.increments + 1 {
		d, err := s.Begin(b.Context(), "vm", []DiskSpec{{Name: "sda", SizeBytes: h.bytes}})
		if err != nil {
			b.Fatal(err)
		}
		if err := h.set(b, d.Disks()[0], rng, i); err != nil {
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

// set maps the extents of an increment, ascending, to chunks of 17 pages that are cut without regard to them.
func (h history) set(b *testing.B, k *DraftDisk, rng *rand.Rand, inc int64) error {
	var leaf int64
	var runs []Run
	pos := int64(0)
	flush := func() error {
		if len(runs) == 0 {
			return nil
		}
		err := k.SetLeaf(b.Context(), uint32(leaf), runs)
		runs = nil
		return err
	}
	for _, e := range h.extents(rng, inc) {
		for page := e; page < e+h.extent; page++ {
			if page/LeafPages != leaf {
				if err := flush(); err != nil {
					return err
				}
				leaf = page / LeafPages
			}
			p := chunkstore.Ptr{Container: chunkstore.ContainerID(1 + inc*1000 + pos/17/3000), Slot: uint32(pos / 17 % 3000)}
			if n := len(runs); n > 0 && runs[n-1].Ptr == p && runs[n-1].end() == int(page%LeafPages) {
				runs[n-1].Len++
			} else {
				runs = append(runs, Run{Page: uint16(page % LeafPages), Len: 1, First: uint16(pos % 17), Ptr: p})
			}
			pos++
		}
	}
	return flush()
}

func (h history) extents(rng *rand.Rand, inc int64) []int64 {
	slots := h.bytes / 4096 / h.extent
	n := slots * h.perMille / 1000
	if inc == 0 {
		n = slots
	}
	chosen := map[int64]bool{}
	for i := int64(0); int64(len(chosen)) < n; i++ {
		switch {
		case inc == 0:
			chosen[i] = true
		case i%2 == 0:
			chosen[rng.Int64N(slots)] = true
		default:
			chosen[rng.Int64N(slots/10)] = true
		}
	}
	list := make([]int64, 0, n)
	for s := range chosen {
		list = append(list, s*h.extent)
	}
	slices.Sort(list)
	return list
}

// BenchmarkChain measures what depth costs: the time of an increment, of opening a disk and of a lookup of
// a leaf that is in no cache, at the first and at the newest point, and the size of the tables. They grow
// with the disk: at 1 TiB all is 16 times as much.
func BenchmarkChain(b *testing.B) {
	for _, extent := range []int64{16, 256} {
		h := history{bytes: 64 << 30, increments: 1000, perMille: 5, extent: extent}
		b.Run(fmt.Sprintf("extents of %d KiB", extent*4), h.bench)
	}
}

func (h history) bench(b *testing.B) {
	dir := b.TempDir()
	o := Options{Dir: dir, FS: vfs.OS{}, Clock: clock.System{}, LeafCache: 4096}
	s, err := Open(b.Context(), o)
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	list := h.grow(b, s)
	changed := h.bytes / 65536 * h.perMille / 1000 * h.increments
	perBlock := float64(time.Since(began).Nanoseconds()) / 1000 / float64(changed)
	if err := s.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
	if s, err = Open(b.Context(), o); err != nil {
		b.Fatal(err)
	}
	defer s.Close(b.Context())
	// Leaves are in no cache; directory pages are, as in a server: those of 1 TiB take half a megabyte.
	s.dirs = cache.New(8<<20, func(*dirPage) int64 { return 1024 }, func(leafKey, *dirPage) {})
	for _, at := range []int{0, len(list) - 1} {
		b.Run(fmt.Sprintf("lookup at depth %d", at+1), func(b *testing.B) {
			disk, err := s.OpenDisk(b.Context(), &list[at])
			if err != nil {
				b.Fatal(err)
			}
			rng := rand.New(rand.NewPCG(2, 2))
			cpu := cpuTime(b)
			for b.Loop() {
				if _, err := disk.leaf(b.Context(), uint32(rng.Int64N(h.leaves()))); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((cpuTime(b)-cpu).Microseconds())/float64(b.N), "cpu-µs/op")
			b.ReportMetric(perBlock, "µs/changed-64K")
			b.ReportMetric(float64(dirSize(b, dir+"/meta"))/(1<<20), "MB-tables")
		})
		b.Run(fmt.Sprintf("open at depth %d", at+1), func(b *testing.B) {
			for b.Loop() {
				if _, err := s.OpenDisk(b.Context(), &list[at]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
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
