package snapshotchain

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"livemount/internal/kv"
	"livemount/snapshotchain/chunkstore"
)

// markedContainer is one that the chain of these tests points into; only the marker looks for it.
const markedContainer = 1000

// markChain makes points of a disk of a few leaves, most of them in the first, and expires some.
func markChain(t *testing.T, s *Store, rng *rand.Rand) {
	t.Helper()
	const points = 150 // the chains of deltas begin anew in between
	for i := range points {
		d, err := s.Begin(t.Context(), "vm", []DiskSpec{{Name: "sda", SizeBytes: 2 * dirLeaves * LeafBytes, Full: i == 100}})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []uint32{0, 1, 2, dirLeaves - 1, dirLeaves, dirLeaves + 7} {
			if n > 0 && rng.IntN(5) > 0 {
				continue
			}
			if err := d.Disks()[0].SetLeaf(t.Context(), n, scatteredRuns(rng)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := d.Seal(t.Context(), SealInfo{}); err != nil {
			t.Fatal(err)
		}
	}
	vm := s.VMs()[0]
	list, err := s.Points(t.Context(), &vm)
	if err != nil {
		t.Fatal(err)
	}
	var gone []PointID
	for i := range list {
		if rng.IntN(3) > 0 {
			gone = append(gone, list[i].ID)
		}
	}
	if err := s.Expire(t.Context(), "vm", gone...); err != nil {
		t.Fatal(err)
	}
}

func scatteredRuns(rng *rand.Rand) []Run {
	var runs []Run
	for page := rng.IntN(300); page < LeafPages; page += 1 + rng.IntN(600) {
		r := Run{Page: uint16(page), Len: uint16(min(1+rng.IntN(40), LeafPages-page))}
		if rng.IntN(6) > 0 {
			r.Ptr, r.First = chunkstore.Ptr{Container: markedContainer, Slot: rng.Uint32N(3000)}, uint16(rng.IntN(20))
		}
		runs = append(runs, r)
		page += int(r.Len)
	}
	return runs
}

// shown is what the points that are left show, looked up leaf by leaf.
func shown(t *testing.T, s *Store) map[uint32]bool {
	t.Helper()
	set := map[uint32]bool{}
	vm := s.VMs()[0]
	list, err := s.Points(t.Context(), &vm)
	if err != nil {
		t.Fatal(err)
	}
	s.DropCaches()
	for i := range list {
		d, err := s.OpenDisk(t.Context(), &list[i].Disks[0])
		if err != nil {
			t.Fatal(err)
		}
		for n := range uint32(2 * dirLeaves) {
			runs, err := d.leaf(t.Context(), n)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range runs {
				set[r.Ptr.Slot] = true
			}
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return set
}

// marked is what a collection marks, and takes the rest out of Badger.
func marked(t *testing.T, s *Store) map[uint32]bool {
	t.Helper()
	keep, err := s.whatIsKept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	live := newSlotSet([]chunkstore.State{{ID: markedContainer, Slots: 3000}})
	m := &marker{s: s, keep: keep, live: live, purge: &purger{db: s.db, admit: s.opts.AdmitCommit}}
	if err := m.mark(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	set := map[uint32]bool{}
	for slot := range uint32(3000) {
		if live.has(chunkstore.Ptr{Container: markedContainer, Slot: slot}) {
			set[slot] = true
		}
	}
	return set
}

// loseEntries takes entries of the map out of Badger, or spoils them.
func loseEntries(t *testing.T, s *Store, rng *rand.Rand, oneIn int) {
	t.Helper()
	var keys [][]byte
	for _, prefix := range []string{"d", "l"} {
		err := s.db.Each([]byte(prefix), func(key, _ []byte, _ error) error {
			if rng.IntN(oneIn) == 0 {
				keys = append(keys, key)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	err := s.db.Update(func(tx kv.Tx) error {
		for _, key := range keys {
			err := tx.Delete(key)
			if rng.IntN(2) == 0 {
				err = tx.Put(key, []byte("spoiled"))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Exactly what the kept points show is marked, whatever of the map Badger lost, and what is purged is missed by nobody.
func TestMarkedIsExactlyWhatPointsShow(t *testing.T) {
	for seed, oneIn := range []int{0, 0, 20, 3, 1} { // 0: nothing is lost
		t.Run(fmt.Sprintf("seed %d, one in %d lost", seed, oneIn), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(uint64(seed), 11))
			s := openAt(t, t.TempDir())
			defer s.Close(t.Context())
			markChain(t, s, rng)
			want := shown(t, s)
			for range 2 {
				if oneIn > 0 {
					loseEntries(t, s, rng, oneIn)
				}
				if got := marked(t, s); !maps.Equal(got, want) {
					t.Fatalf("%d slots are marked, points show %d: %v", len(got), len(want), differing(got, want))
				}
			}
			if got := shown(t, s); !maps.Equal(got, want) {
				t.Fatalf("points show %d slots, before %d", len(got), len(want))
			}
		})
	}
}

func differing(a, b map[uint32]bool) []uint32 {
	var list []uint32
	for n := range uint32(3000) {
		if a[n] != b[n] {
			list = append(list, n)
		}
	}
	return slices.Clip(list[:min(len(list), 20)])
}
