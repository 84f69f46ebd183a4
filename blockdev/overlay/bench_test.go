package overlay

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"

	"livemount/internal/vfs"
)

const benchSize = 1 << 30

func benchLog(b *testing.B, o Options) *Log {
	o.FS, o.Dir, o.Keys = vfs.OS{}, filepath.Join(b.TempDir(), "log"), testKeys
	l, err := Create(bg(), o, []Node{{ID: 1, Size: benchSize}})
	must(b, err)
	b.Cleanup(func() { _ = l.Close() })
	return l
}

// BenchmarkWrite4K measures random 4 KiB writes without a sync.
func BenchmarkWrite4K(b *testing.B) {
	d := mustDevice(b, benchLog(b, Options{}), 1)
	rng, p := rand.New(rand.NewPCG(1, 1)), stamp(4096, 1)
	b.ReportAllocs()
	for b.Loop() {
		must(b, d.WriteAt(bg(), p, rng.Int64N(benchSize/4096)*4096))
	}
}

// BenchmarkRead4K measures random 4 KiB reads of cached data, written as 4 KiB and as 1 MiB records.
func BenchmarkRead4K(b *testing.B) {
	for _, record := range []int64{4096, 1 << 20} {
		b.Run(fmt.Sprint("record", record), func(b *testing.B) {
			d := mustDevice(b, benchLog(b, Options{}), 1)
			const size = 128 << 20
			for off := int64(0); off < size; off += record {
				must(b, d.WriteAt(bg(), stamp(int(record), uint64(off))[:record], off))
			}
			rng, p := rand.New(rand.NewPCG(1, 1)), make([]byte, 4096)
			b.ReportAllocs()
			for b.Loop() {
				must(b, d.ReadAt(bg(), p, rng.Int64N(size/4096)*4096))
			}
		})
	}
}

// BenchmarkStream1M measures sequential 1 MiB writes and reads.
func BenchmarkStream1M(b *testing.B) {
	d := mustDevice(b, benchLog(b, Options{}), 1)
	p := stamp(1<<20, 1)
	b.Run("write", func(b *testing.B) {
		b.SetBytes(1 << 20)
		for off := int64(0); b.Loop(); off = (off + 1<<20) % benchSize {
			must(b, d.WriteAt(bg(), p, off))
		}
	})
	b.Run("read", func(b *testing.B) {
		b.SetBytes(1 << 20)
		for off := int64(0); b.Loop(); off = (off + 1<<20) % (8 << 20) {
			must(b, d.ReadAt(bg(), p, off))
		}
	})
}

// BenchmarkSync compares random 4 KiB writes with a sync each and each 32: the log with and without
// pre-written zeroes, and a sparse file.
func BenchmarkSync(b *testing.B) {
	for _, every := range []int{1, 32} {
		for _, pre := range []int64{-1, 1 << 20, 4 << 20, 16 << 20} {
			b.Run(fmt.Sprintf("each%d/log/prewrite%d", every, max(0, pre)), func(b *testing.B) {
				d := mustDevice(b, benchLog(b, Options{PrewriteBytes: pre}), 1)
				benchSync(b, every, func(p []byte, off int64) error { return d.WriteAt(bg(), p, off) },
					func() error { return d.Sync(bg()) })
			})
		}
		b.Run(fmt.Sprintf("each%d/sparse", every), func(b *testing.B) {
			f, err := vfs.OS{}.Create(filepath.Join(b.TempDir(), "sparse"))
			must(b, err)
			must(b, f.Truncate(benchSize))
			benchSync(b, every, func(p []byte, off int64) error { _, err := f.WriteAt(p, off); return err }, f.Sync)
			must(b, f.Close())
		})
	}
}

func benchSync(b *testing.B, every int, write func([]byte, int64) error, sync func() error) {
	rng, p, n := rand.New(rand.NewPCG(1, 1)), stamp(4096, 1), 0
	for b.Loop() {
		must(b, write(p, rng.Int64N(benchSize/4096)*4096))
		if n++; n%every == 0 {
			must(b, sync())
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
}

// BenchmarkOpen measures a replay of 4 KiB records, from the start and from a checkpoint, and the memory
// that an extent takes.
func BenchmarkOpen(b *testing.B) {
	const records = 1 << 18
	o := Options{PrewriteBytes: -1, NoBackground: true}
	l := benchLog(b, o)
	o.FS, o.Dir, o.Keys = vfs.OS{}, l.opts.Dir, testKeys
	d, p := mustDevice(b, l, 1), stamp(4096, 1)
	for _, i := range rand.New(rand.NewPCG(1, 1)).Perm(records) {
		must(b, d.WriteAt(bg(), p, int64(i)*4096))
	}
	must(b, l.Close())
	for _, name := range []string{"replay", "checkpoint"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				l, _ := mustOpen(b, o, []Node{{ID: 1, Size: benchSize}})
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/records, "bytes/extent")
				must(b, l.Close())
			}
		})
		l, _ := mustOpen(b, o, []Node{{ID: 1, Size: benchSize}})
		must(b, l.Clean(bg()))
		must(b, l.Close())
	}
}

// BenchmarkSyncParallel measures 16 writers that sync each 4 KiB write: group commit.
func BenchmarkSyncParallel(b *testing.B) {
	l := benchLog(b, Options{})
	d := mustDevice(b, l, 1)
	b.SetParallelism(8)
	var seed atomic.Uint64
	before := l.Stats().Syncs
	b.RunParallel(func(pb *testing.PB) {
		rng, p := rand.New(rand.NewPCG(seed.Add(1), 1)), stamp(4096, 1)
		for pb.Next() {
			must(b, d.WriteAt(bg(), p, rng.Int64N(benchSize/4096)*4096))
			must(b, d.Sync(bg()))
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
	b.ReportMetric(float64(b.N)/float64(l.Stats().Syncs-before), "writes/fdatasync")
}

// BenchmarkOverwrite measures random overwrites of 128 MiB with clean-up in the background: what they
// cost in records written and in space.
func BenchmarkOverwrite(b *testing.B) {
	const size = 128 << 20
	l := benchLog(b, Options{SegmentBytes: 8 << 20})
	d := mustDevice(b, l, 1)
	for off := int64(0); off < size; off += 1 << 20 {
		must(b, d.WriteAt(bg(), stamp(1<<20, uint64(off)), off))
	}
	rng, p, most := rand.New(rand.NewPCG(1, 1)), stamp(4096, 1), int64(0)
	before := l.Stats().LastSeq
	for b.Loop() {
		must(b, d.WriteAt(bg(), p, rng.Int64N(size/4096)*4096))
		most = max(most, l.logBytes.Load())
	}
	b.ReportMetric(float64(l.Stats().LastSeq-before)/float64(b.N), "records/write")
	b.ReportMetric(float64(most)/size, "log/data")
}

// BenchmarkIndex puts random pages over a million.
func BenchmarkIndex(b *testing.B) {
	const pages = 1 << 20
	for _, kind := range []string{"random", "sequential", "discard"} {
		b.Run(kind, func(b *testing.B) {
			n, live := &node{}, liveCount{segments: map[uint32]*segment{1: {}}}
			rng := rand.New(rand.NewPCG(1, 1))
			for i := range b.N {
				off := rng.Int64N(pages) * blockBytes
				if kind == "sequential" {
					off = int64(i%pages) * blockBytes
				}
				e := extent{off, blockBytes, 1, uint32(segmentHeaderBytes + i%15000*4200), blockBytes, 0}
				if kind == "discard" {
					e = extent{off: off, len: blockBytes, seg: segZero}
				}
				n.put(e, &live)
			}
		})
	}
}
