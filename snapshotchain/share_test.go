package snapshotchain_test

import (
	"context"
	"encoding/binary"
	"iter"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"livemount/blockdev"
	"livemount/ingest"
	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/gate"
	"livemount/internal/vfs"
	"livemount/snapshotchain"
)

// noise is a disk of random bytes that are cheap to make and do not come twice.
type noise struct {
	size int64
	seed uint64
	half []byte
}

func newNoise(size int64, seed uint64) *noise {
	n := &noise{size, seed << 32, make([]byte, 1<<20)}
	rng := rand.New(rand.NewPCG(seed, 3))
	for i := range n.half {
		n.half[i] = byte(rng.Uint32())
	}
	return n
}

func (n *noise) Size() int64                 { return n.size }
func (n *noise) Close() error                { return nil }
func (n *noise) Check(context.Context) error { return nil }
func (n *noise) Changed() string             { return "" }

func (n *noise) ReadAt(_ context.Context, p []byte, off int64) error {
	for i := 0; i < len(p); i += page {
		in := p[i:min(len(p), i+page)]
		clear(in[copy(in, n.half[uint64(i)%uint64(len(n.half)-page):][:page/2]):]) // half of it compresses
		binary.LittleEndian.PutUint64(in, n.seed+uint64(off)+uint64(i))
	}
	return nil
}

func (n *noise) Extents(_ context.Context, off, length int64) iter.Seq2[blockdev.Extent, error] {
	return func(yield func(blockdev.Extent, error) bool) {
		yield(blockdev.Extent{Off: off, Len: length, Kind: blockdev.Data}, nil)
	}
}

// guest reads at random for a while, on as many goroutines as there may be cores, and returns its rate in MiB/s.
func guest(t *testing.T, d *snapshotchain.Disk, window time.Duration) float64 {
	t.Helper()
	var bytes atomic.Int64
	var wg sync.WaitGroup
	stop := time.Now().Add(window)
	for i := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), uint64(stop.UnixNano())))
			p := make([]byte, 128<<10)
			for time.Now().Before(stop) {
				if err := d.ReadAt(t.Context(), p, rng.Int64N(d.Size()/int64(len(p)))*int64(len(p))); err != nil {
					t.Error(err)
					return
				}
				bytes.Add(int64(len(p)))
			}
		})
	}
	wg.Wait()
	return float64(bytes.Load()) / window.Seconds() / (1 << 20)
}

// Under ingest, scrub and collection at once a guest keeps at least half of the rate that it has alone, and each of
// them makes progress. Rates are those of short windows in turn, so that what else the machine does hits both; the
// best of eight tries counts.
func TestGuestKeepsHalfOfItsRate(t *testing.T) {
	g := gate.New(gate.Options{Clock: clock.System{}})
	s, err := snapshotchain.Open(t.Context(), snapshotchain.Options{
		Dir: t.TempDir(), FS: vfs.OS{}, Clock: clock.System{}, ContainerBytes: 4 << 20, ChunkCache: 1 << 20, Gate: g,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context())
	backup := func(ctx context.Context, vm string, seed uint64, size int64) error {
		var c ingest.Counters
		_, err := ingest.Run(ctx, s, ingest.Request{VM: vm, Disks: []ingest.Disk{{Name: "sda", Source: newNoise(size, seed), Full: true}}}, &c, func(string) {})
		return err
	}
	if err := backup(t.Context(), "guest", 1, 64<<20); err != nil {
		t.Fatal(err)
	}
	vm, err := s.VM("guest")
	if err != nil {
		t.Fatal(err)
	}
	points, err := s.Points(t.Context(), &vm)
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.OpenDisk(t.Context(), &points[0].Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for try := 1; ; try++ {
		alone, beside, had := compareRates(t, s, g, d, backup)
		t.Logf("alone %.0f MiB/s, beside all %.0f; slots held by ingest, collection, scrub: %v", alone, beside, had)
		progress := !slices.Contains(had, 0)
		if beside >= alone/2 && progress {
			return
		}
		if try == 8 {
			t.Fatalf("alone %.0f MiB/s, beside all %.0f, progress %v", alone, beside, had)
		}
	}
}

func compareRates(t *testing.T, s *snapshotchain.Store, g *gate.Gate, d *snapshotchain.Disk, backup func(context.Context, string, uint64, int64) error) (alone, beside float64, had []time.Duration) {
	var a, b []float64
	list := []gate.Class{gate.Ingest, gate.Collect, gate.Scrub}
	had = make([]time.Duration, len(list))
	for range 5 {
		a = append(a, guest(t, d, 150*time.Millisecond))
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		loop := func(fn func() error) {
			wg.Go(func() {
				for ctx.Err() == nil {
					if err := fn(); err != nil && ctx.Err() == nil && !errs.Is(err, errs.Busy) {
						t.Error(err)
						return
					}
				}
			})
		}
		for i, c := range list {
			had[i] -= g.Had(c)
		}
		seed := uint64(time.Now().UnixNano())
		loop(func() error { seed++; return backup(ctx, "other", seed, 32<<20) })
		loop(func() error {
			_, err := s.Scrub(ctx, 0, func(ctx context.Context, _ int64) error { return ctx.Err() }, nil)
			return err
		})
		loop(func() error {
			if vm, err := s.VM("other"); err == nil && vm.Points > 1 { // something to collect
				if points, err := s.Points(ctx, &vm); err == nil {
					s.Expire(ctx, "other", points[0].ID) // a backup may need it
				}
			}
			_, err := s.Collect(ctx, snapshotchain.CollectOptions{})
			return err
		})
		b = append(b, guest(t, d, 300*time.Millisecond))
		cancel()
		wg.Wait()
		for i, c := range list {
			had[i] += g.Had(c)
		}
	}
	slices.Sort(a)
	slices.Sort(b)
	return a[len(a)/2], b[len(b)/2], had
}
