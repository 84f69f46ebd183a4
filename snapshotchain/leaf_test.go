package snapshotchain

import (
	"math/rand/v2"
	"testing"

	"livemount/snapshotchain/chunkstore"
)

// randomRuns returns runs by page that do not overlap.
func randomRuns(rng *rand.Rand, version int) []Run {
	var runs []Run
	for page := rng.IntN(200); page < LeafPages; page += rng.IntN(300) {
		n := min(1+rng.IntN(64), LeafPages-page)
		r := Run{Page: uint16(page), Len: uint16(n)}
		if rng.IntN(4) > 0 {
			r.First, r.Ptr = uint16(rng.IntN(65-min(n, 64))), chunkstore.Ptr{Container: chunkstore.ContainerID(version), Slot: uint32(page)}
		}
		runs = append(runs, r)
		page += n
	}
	return runs
}

// TestResolvedVersionsSayWhatTheNewestSaysOfEachPage compares merging and flattening with a look at each page.
func TestResolvedVersionsSayWhatTheNewestSaysOfEachPage(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	for range 2000 {
		var versions []*leaf
		for v := range 1 + rng.IntN(6) {
			versions = append(versions, &leaf{runs: randomRuns(rng, v+1)})
		}
		want := map[int]Run{} // one page each
		for i := len(versions) - 1; i >= 0; i-- {
			for _, r := range versions[i].runs {
				for p := int(r.Page); p < r.end(); p++ {
					want[p] = r.cut(uint16(p), uint16(p+1))
				}
			}
		}
		compareRuns(t, merge(versions), want)
		for p, r := range want {
			if r.IsZero() {
				delete(want, p)
			}
		}
		compareRuns(t, flatten(versions), want)
	}
}

func compareRuns(t *testing.T, runs []Run, want map[int]Run) {
	t.Helper()
	next, pages := 0, 0
	for _, r := range runs {
		if int(r.Page) < next || r.Len == 0 {
			t.Fatalf("run %+v behind page %d", r, next)
		}
		next = r.end()
		for p := int(r.Page); p < r.end(); p++ {
			if got := r.cut(uint16(p), uint16(p+1)); got != want[p] {
				t.Fatalf("page %d: %+v, want %+v", p, got, want[p])
			}
			pages++
		}
	}
	if pages != len(want) {
		t.Fatalf("%d pages, want %d", pages, len(want))
	}
}
