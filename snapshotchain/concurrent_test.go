package snapshotchain_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"livemount/ingest"
	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/snapshotchain"
)

// crowd is a store that several goroutines use, with what its points must hold.
type crowd struct {
	s *snapshotchain.Store

	mu   sync.Mutex // guards what is below
	want map[snapshotchain.PointID]*sparse
}

// backups makes n points of a VM. Contents are few, and come and go, so that chunks which nobody needs any more are
// found again.
func (c *crowd) backups(ctx context.Context, vm string, n int, seed uint64) error {
	rng := rand.New(rand.NewPCG(seed, 5))
	disk := &sparse{size: 20 << 20, pages: map[int64]*[page]byte{}}
	for round := range n {
		start, kind := rng.Int64N(300), (uint64(round)/8%5*3+rng.Uint64N(4))*1000
		for i := range rng.Int64N(120) {
			v := uint64(0)
			if kind > 0 {
				v = kind + uint64(i)
			}
			disk.set(start+i, v)
		}
		copied := disk.clone()
		var count ingest.Counters
		p, err := ingest.Run(ctx, c.s, ingest.Request{VM: vm, Disks: []ingest.Disk{{Name: "sda", Source: copied}}}, &count, func(string) {})
		if err != nil {
			return fmt.Errorf("backup of %s: %w", vm, err)
		}
		c.mu.Lock()
		c.want[p.ID] = copied
		c.mu.Unlock()
	}
	return nil
}

// anyPoint picks a point of a VM.
func (c *crowd) anyPoint(ctx context.Context, rng *rand.Rand) (snapshotchain.VM, snapshotchain.Point, bool) {
	vms := c.s.VMs()
	if len(vms) == 0 {
		return snapshotchain.VM{}, snapshotchain.Point{}, false
	}
	vm, points, err := c.s.PointsOf(ctx, vms[rng.IntN(len(vms))].ID)
	if err != nil || len(points) == 0 {
		return snapshotchain.VM{}, snapshotchain.Point{}, false
	}
	return vm, points[rng.IntN(len(points))], true
}

func (c *crowd) expire(ctx context.Context, rng *rand.Rand) error {
	vm, p, ok := c.anyPoint(ctx, rng)
	if !ok || vm.Points < 4 {
		return nil
	}
	err := c.s.Expire(ctx, vm.Name, p.ID)
	if errs.Is(err, errs.Busy) || errs.Is(err, errs.NotFound) { // a backup compares with it
		return nil
	}
	return err
}

// read reads a disk, slowly enough for its point to be expired meanwhile.
func (c *crowd) read(ctx context.Context, rng *rand.Rand) error {
	_, p, ok := c.anyPoint(ctx, rng)
	if !ok {
		return nil
	}
	d, err := c.s.OpenDisk(ctx, &p.Disks[0])
	if errs.Is(err, errs.NotFound) {
		return nil // it was expired just now
	}
	if err != nil {
		return err
	}
	defer d.Close()
	c.mu.Lock()
	want := c.want[p.ID]
	c.mu.Unlock()
	if want == nil {
		return nil // sealed, and not noted yet
	}
	got, exp := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < d.Size(); off += int64(len(got)) {
		if err := d.ReadAt(ctx, got, off); err != nil {
			return fmt.Errorf("point %s: %w", p.ID, err)
		}
		if err := want.ReadAt(ctx, exp, off); err != nil || string(got) != string(exp) {
			return fmt.Errorf("point %s differs behind %d: %v", p.ID, off, err)
		}
		if rng.IntN(8) == 0 {
			c.s.DropCaches()
		}
	}
	return nil
}

// Backups, expiry, collections and readers run at once; nobody reads anything wrong, and in the end every point is
// what it was.
func TestCollectionRunsBesideEverything(t *testing.T) {
	rounds := 60
	if os.Getenv("LIVEMOUNT_SOAK") != "" {
		rounds = 3000
	}
	dir := t.TempDir()
	open := func() *snapshotchain.Store {
		s, err := snapshotchain.Open(t.Context(), snapshotchain.Options{
			Dir: dir, FS: vfs.OS{}, Clock: clock.System{}, ContainerBytes: 128 << 10, ChunkCache: 1 << 20, LeafCache: 1 << 20,
		})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	c := &crowd{s: open(), want: map[snapshotchain.PointID]*sparse{}}
	ctx, cancel := context.WithCancel(t.Context())
	var work, rest sync.WaitGroup
	run := func(g *sync.WaitGroup, fn func() error) {
		g.Go(func() {
			if err := fn(); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		})
	}
	for i := range 2 {
		run(&work, func() error { return c.backups(ctx, fmt.Sprintf("vm%d", i), rounds, seed+uint64(i)) })
	}
	freed, held := int64(0), 0
	loop := func(n uint64, fn func(*rand.Rand) error) {
		rng := rand.New(rand.NewPCG(seed, n))
		run(&rest, func() error {
			for ctx.Err() == nil {
				if err := fn(rng); err != nil {
					return err
				}
			}
			return nil
		})
	}
	loop(11, func(*rand.Rand) error {
		r, err := c.s.Collect(ctx, snapshotchain.CollectOptions{})
		held += r.Held
		freed += r.FreedBytes
		return err
	})
	loop(12, func(rng *rand.Rand) error { return c.expire(ctx, rng) })
	loop(13, func(rng *rand.Rand) error { return c.read(ctx, rng) })
	work.Wait()
	cancel()
	rest.Wait()
	t.Logf("%d bytes freed meanwhile, %d containers held by backups", freed, held)
	last, err := c.s.Collect(t.Context(), snapshotchain.CollectOptions{})
	if err != nil || freed+last.FreedBytes == 0 {
		t.Errorf("nothing was freed: %+v: %v", last, err)
	}
	if again, err := c.s.Collect(t.Context(), snapshotchain.CollectOptions{}); err != nil || again.FreedBytes > 0 || again.PurgedKeys > 0 {
		t.Errorf("a second collection found more: %+v: %v", again, err)
	}
	for _, lost := range []string{"nothing", "meta"} {
		if err := c.s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(dir, lost)); err != nil {
			t.Fatal(err)
		}
		c.s = open()
		for _, d := range first(c.s.Health()) {
			if !strings.Contains(d, "was made again") {
				t.Error(d)
			}
		}
		c.readAll(t)
	}
	if err := c.s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func first(damage []string, _ error) []string { return damage }

func (c *crowd) readAll(t *testing.T) {
	t.Helper()
	for _, vm := range c.s.VMs() {
		points, err := c.s.Points(t.Context(), &vm)
		if err != nil {
			t.Fatal(err)
		}
		for i := range points {
			d, err := c.s.OpenDisk(t.Context(), &points[i].Disks[0])
			if err != nil {
				t.Fatal(err)
			}
			got, exp := make([]byte, d.Size()), make([]byte, d.Size())
			err = d.ReadAt(t.Context(), got, 0)
			if err == nil {
				err = c.want[points[i].ID].ReadAt(t.Context(), exp, 0)
			}
			if err != nil || string(got) != string(exp) {
				t.Fatalf("%s, point %s differs: %v", vm.Name, points[i].ID, err)
			}
			d.Close()
		}
	}
}
