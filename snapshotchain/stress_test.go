package snapshotchain

import (
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// turns lets somebody wait for collections to come.
type turns struct {
	mu      sync.Mutex // guards what is below
	n       int
	over    bool
	waiting map[int][]chan struct{}
}

// after returns what is closed when n more collections have ended, or no more come.
func (u *turns) after(n int) <-chan struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	c := make(chan struct{})
	if u.over {
		close(c)
		return c
	}
	if u.waiting == nil {
		u.waiting = map[int][]chan struct{}{}
	}
	u.waiting[u.n+n] = append(u.waiting[u.n+n], c)
	return c
}

func (u *turns) next() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.n++
	for _, c := range u.waiting[u.n] {
		close(c)
	}
	delete(u.waiting, u.n)
}

func (u *turns) end() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.over = true
	for _, list := range u.waiting {
		for _, c := range list {
			close(c)
		}
	}
	u.waiting = nil
}

// TestStressedCollectionLosesNothing makes points, branches and disks that are open come and go as fast as it can beside
// collections, for a few seconds.
func TestStressedCollectionLosesNothing(t *testing.T) {
	secs, _ := strconv.Atoi(os.Getenv("LIVEMOUNT_SECONDS"))
	if secs == 0 {
		secs = 8
	}
	seed, _ := strconv.ParseUint(os.Getenv("LIVEMOUNT_SEED"), 10, 64)
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("replay with LIVEMOUNT_SEED=%d", seed)
	s, err := Open(t.Context(), Options{Dir: t.TempDir(), FS: vfs.OS{}, Clock: clock.System{}, ContainerBytes: 300 << 10, ChunkCache: 1 << 20, LeafCache: 1 << 16})
	if err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(time.Duration(secs) * time.Second)
	var stop atomic.Bool
	bad := func(what string, args ...any) {
		stop.Store(true)
		t.Errorf(what, args...)
	}
	run := func() bool { return !stop.Load() && time.Now().Before(end) }
	var wg, vms sync.WaitGroup
	var n, gcs, freed atomic.Int64
	turn := &turns{}
	defer turn.end()
	for v := range 3 {
		vms.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(v)))
			vm := "vm" + strconv.Itoa(v)
			branch := 0
			for run() {
				name := vm
				c := make([]uint64, 3+rng.IntN(12))
				for i := range c {
					if rng.IntN(3) > 0 {
						c[i] = 1 + rng.Uint64N(80)
						if rng.IntN(4) > 0 {
							c[i] = rng.Uint64N(1 << 40)
						}
					}
				}
				p := putPages(t, s, name, rng.IntN(12) == 0, c...)
				n.Add(1)
				x, err := s.VM(name)
				if err != nil {
					bad("%v", err)
					return
				}
				_, pts, err := s.PointsOf(t.Context(), x.ID)
				if err != nil {
					bad("%v", err)
					return
				}
				if rng.IntN(6) == 0 { // a branch
					b := &pts[rng.IntN(len(pts))]
					branch++
					d, err := s.BeginBranch(t.Context(), Branch{VM: x.ID, Name: vm + ":b" + strconv.Itoa(branch%4), Parent: b.ID}, []DiskSpec{{Name: "sda", SizeBytes: 64 << 20, Base: &b.Disks[0]}})
					if err == nil {
						if _, err := d.Seal(t.Context(), SealInfo{}); err != nil {
							bad("%v", err)
						}
					} else if !errs.Is(err, errs.Exists) {
						bad("branch: %v", err)
					}
				}
				if rng.IntN(5) == 0 { // read later
					q := &pts[rng.IntN(len(pts))]
					d, err := s.OpenDisk(t.Context(), &q.Disks[0])
					if err != nil {
						bad("open %v", err)
						return
					}
					later := turn.after(1 + rng.IntN(3))
					wg.Go(func() {
						<-later
						buf := make([]byte, 8<<20)
						if err := d.ReadAt(t.Context(), buf, 0); err != nil {
							bad("READ %v", err)
						}
						d.Close()
					})
				}
				var ids []PointID
				for i := range pts {
					if pts[i].ID == p.ID && rng.IntN(3) > 0 {
						continue
					}
					if rng.IntN(3) == 0 {
						ids = append(ids, pts[i].ID)
					}
				}
				if len(ids) > 0 {
					if err := s.Expire(t.Context(), name, ids...); err != nil && !errs.Is(err, errs.Busy) {
						bad("expire: %v", err)
					}
				}
				if rng.IntN(40) == 0 {
					if err := s.Remove(t.Context(), vm+":b"+strconv.Itoa(rng.IntN(4))); err != nil && !errs.Is(err, errs.NotFound) && !errs.Is(err, errs.Busy) {
						bad("remove: %v", err)
					}
				}
				if rng.IntN(3) == 0 {
					for _, w := range s.VMs() {
						if w.Name != vm && w.Of != x.ID {
							continue
						}
						_, pts, err := s.PointsOf(t.Context(), w.ID)
						if err != nil {
							bad("%v", err)
							return
						}
						for i := range pts {
							pr, err := s.Verify(t.Context(), &pts[i].Disks[0], nil)
							if err != nil || len(pr.Bad) > 0 {
								bad("LOST %s seq %d of %d points: %v %v", w.Name, pts[i].Disks[0].Seq, len(pts), pr, err)
							}
						}
					}
				}
			}
		})
	}
	wg.Go(func() {
		for run() {
			c, err := s.Collect(t.Context(), CollectOptions{})
			if err != nil {
				bad("collect: %v", err)
			}
			if c.Damaged > 0 {
				bad("damaged %+v", c)
			}
			gcs.Add(1)
			turn.next()
			freed.Add(c.FreedBytes)
			if _, err := s.Pack(t.Context()); err != nil {
				bad("pack %v", err)
			}
			if _, err := s.Touched(t.Context()); err != nil {
				bad("touched %v", err)
			}
			s.DropCaches()
		}
		turn.end()
	})
	vms.Wait()
	wg.Wait()
	proveAll(t, s)
	d, broken := s.Health()
	t.Logf("%d points, %d collections, %d freed, damage %v %v", n.Load(), gcs.Load(), freed.Load(), d, broken)
	if s.BadRecords() > 0 {
		t.Errorf("bad records: %v", d)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
