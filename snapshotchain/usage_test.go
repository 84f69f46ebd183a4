package snapshotchain

import (
	"math/rand/v2"
	"testing"
	"time"

	"livemount/internal/clock"
	"livemount/internal/vfs"
)

// What Measure says of each point is what a brute-force look at all views says: the stored bytes of chunks that no other point,
// and nothing that others stand on, shows.
func TestUniqueBytesAreWhatOnlyOnePointShows(t *testing.T) {
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 4))
		s, err := Open(t.Context(), Options{
			Dir: t.TempDir(), FS: vfs.OS{}, Clock: &clock.Fixed{T: time.Unix(1_800_000_000, 0)}, ContainerBytes: 256 << 10,
		})
		if err != nil {
			t.Fatal(err)
		}
		for range 30 {
			var contents []uint64
			for range 1 + rng.IntN(6) {
				contents = append(contents, rng.Uint64N(40)) // 0 is as before
			}
			putPages(t, s, []string{"web", "db"}[rng.IntN(2)], rng.IntN(8) == 0, contents...)
		}
		for range 8 {
			vms := s.VMs()
			vm := vms[rng.IntN(len(vms))]
			points, err := s.Points(t.Context(), &vm)
			if err == nil && len(points) > 1 {
				err = s.Expire(t.Context(), vm.Name, points[rng.IntN(len(points))].ID)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Measure(t.Context()); err != nil {
			t.Fatal(err)
		}
		for id, want := range uniqueByHand(t, s) {
			if got, ok := s.UniqueBytes(&Point{ID: id}); !ok || got != want {
				t.Errorf("seed %d: point %s has %d bytes for itself, want %d", seed, id, got, want)
			}
		}
		s.Close(t.Context())
	}
}

func uniqueByHand(t *testing.T, s *Store) map[PointID]int64 {
	t.Helper()
	type slot struct {
		container uint64
		slot      uint32
	}
	seen := map[slot]map[PointID]bool{}
	unique := map[PointID]int64{}
	for _, vm := range s.VMs() {
		points, err := s.Points(t.Context(), &vm)
		if err != nil {
			t.Fatal(err)
		}
		for i := range points {
			unique[points[i].ID] = 0
			d, err := s.OpenDisk(t.Context(), &points[i].Disks[0])
			if err != nil {
				t.Fatal(err)
			}
			runs, err := d.leaf(t.Context(), 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range runs {
				k := slot{uint64(r.Ptr.Container), r.Ptr.Slot}
				if seen[k] == nil {
					seen[k] = map[PointID]bool{}
				}
				seen[k][points[i].ID] = true
			}
			d.Close()
		}
	}
	for _, st := range s.cat.containers {
		err := s.chunks.EachSlot(t.Context(), st.ID, func(n uint32, bytes int64) {
			if who := seen[slot{uint64(st.ID), n}]; len(who) == 1 {
				for id := range who {
					unique[id] += bytes
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return unique
}
