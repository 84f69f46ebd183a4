package main

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"

	"livemount/internal/clock"
	"livemount/internal/vfs"
	"livemount/snapshotchain"
	"livemount/snapshotchain/chunkstore"
)

// shape is a made chain: disks that are mapped all over, and points that each change a few pages in some leaves. Its
// chunks are few and small, because only the map is wanted; the pointers are as many and as long as real ones.
type shape struct {
	name    string
	disks   int
	leaves  int64 // of each disk
	points  int
	changed int // leaves that a point changes in each disk
}

// shapes are the chains that are measured.
func shapes() []shape {
	return []shape{
		{name: "tebibyte", disks: 1, leaves: tebibyte / snapshotchain.LeafBytes, points: 1000, changed: tebibyte / snapshotchain.LeafBytes / 100},
		{name: "wide", disks: 6, leaves: tebibyte / snapshotchain.LeafBytes, points: 1},
		{name: "deep", disks: 1, leaves: 8192, points: 1000, changed: 2048},
	}
}

const (
	chunkPages  = 32
	firstChunks = 8192 // that the first point points to, again and again
	nextChunks  = 32   // that each later one points to
)

func openStore(ctx context.Context, dir string) (*snapshotchain.Store, error) {
	return snapshotchain.Open(ctx, snapshotchain.Options{Dir: dir, FS: vfs.OS{}, Clock: clock.System{}})
}

// grow adds points until there are as many as there should be: a store that lost one to an earlier run is whole again.
func (h *shape) grow(ctx context.Context, s *snapshotchain.Store) error {
	vm, err := s.VM(h.name)
	ordinal, points := uint64(1), 0
	if err == nil {
		ordinal, points = vm.Next, int(vm.Points)
	}
	for ; points < h.points; points++ {
		if points%100 == 0 {
			progress("made chain %q: point %d of %d", h.name, points+1, h.points)
		}
		if err := h.add(ctx, s, ordinal); err != nil {
			return err
		}
		ordinal++
	}
	return nil
}

func (h *shape) add(ctx context.Context, s *snapshotchain.Store, ordinal uint64) error {
	var specs []snapshotchain.DiskSpec
	for i := range h.disks {
		specs = append(specs, snapshotchain.DiskSpec{Name: fmt.Sprintf("sd%c", 'a'+i), SizeBytes: h.leaves * snapshotchain.LeafBytes})
	}
	d, err := s.Begin(ctx, h.name, specs)
	if err != nil {
		return err
	}
	for i, k := range d.Disks() {
		set := h.next
		if k.Parent() == nil {
			set = h.first
		}
		if err := set(ctx, s, k, rand.New(rand.NewPCG(ordinal, uint64(i)))); err != nil {
			return err
		}
	}
	_, err = d.Seal(ctx, snapshotchain.SealInfo{})
	return err
}

// first maps all of the disk, in runs of 1 to 31 pages, 16 on average: mostly to one chunk after the other, and one in eight
// to a chunk that was stored before.
func (h *shape) first(ctx context.Context, s *snapshotchain.Store, k *snapshotchain.DraftDisk, rng *rand.Rand) error {
	ptrs, err := store(ctx, s, k, rng.Uint64(), firstChunks)
	if err != nil {
		return err
	}
	at := 0
	var runs []snapshotchain.Run
	for n := range h.leaves {
		runs = runs[:0]
		for page := 0; page < snapshotchain.LeafPages; {
			random := rng.Uint32()
			r := snapshotchain.Run{Page: uint16(page), Len: uint16(min(1+int(random%31), snapshotchain.LeafPages-page))}
			if random>>5%8 == 0 {
				r.Ptr = ptrs[random>>8%firstChunks]
			} else {
				r.Ptr = ptrs[at%firstChunks]
				at++
			}
			page += int(r.Len)
			runs = append(runs, r)
		}
		if err := k.SetLeaf(ctx, uint32(n), runs); err != nil {
			return err
		}
	}
	k.Account(chunkstore.Sum{}, h.leaves*snapshotchain.LeafPages)
	return nil
}

// next changes 4 to 16 pages of some leaves, half of them anywhere and half in a tenth of the disk.
func (h *shape) next(ctx context.Context, s *snapshotchain.Store, k *snapshotchain.DraftDisk, rng *rand.Rand) error {
	ptrs, err := store(ctx, s, k, rng.Uint64(), nextChunks)
	if err != nil {
		return err
	}
	chosen := map[int64]bool{}
	for i := 0; len(chosen) < h.changed; i++ {
		chosen[rng.Int64N([]int64{h.leaves, h.leaves / 10}[i%2])] = true
	}
	at := 0
	for _, n := range sorted(chosen) {
		var runs []snapshotchain.Run
		for _, r := range pieces(rng) {
			r.Ptr, r.First = ptrs[at/chunkPages%nextChunks], uint16(at%chunkPages)
			r.Len = min(r.Len, chunkPages-r.First)
			at += int(r.Len)
			runs = append(runs, r)
		}
		if err := k.SetLeaf(ctx, uint32(n), runs); err != nil {
			return err
		}
	}
	return nil
}

// pieces are one to four places of a leaf, of 4 to 16 pages together.
func pieces(rng *rand.Rand) []snapshotchain.Run {
	n := 1 + rng.IntN(4)
	runs := make([]snapshotchain.Run, n)
	for i := range runs {
		part := snapshotchain.LeafPages / n
		length := 4/n + rng.IntN(16/n-4/n+1)
		runs[i] = snapshotchain.Run{Page: uint16(i*part + rng.IntN(part-length)), Len: uint16(length)}
	}
	return runs
}

func sorted[K cmp.Ordered](set map[K]bool) []K {
	list := make([]K, 0, len(set))
	for k := range set {
		list = append(list, k)
	}
	slices.Sort(list)
	return list
}

// store puts n chunks that compress to almost nothing.
func store(ctx context.Context, s *snapshotchain.Store, k *snapshotchain.DraftDisk, seed uint64, n int) ([]chunkstore.Ptr, error) {
	h := s.Hasher()
	raw := make([]byte, chunkPages*chunkstore.PageSize)
	ptrs := make([]chunkstore.Ptr, 0, n)
	for i := range n {
		e := chunkstore.Encoded{}
		for page := range chunkPages {
			p := raw[page*chunkstore.PageSize:][:chunkstore.PageSize]
			binary.LittleEndian.PutUint64(p, seed)
			binary.LittleEndian.PutUint64(p[8:], uint64(i*chunkPages+page+1))
			e.Hashes = append(e.Hashes, h.Page(p))
		}
		e.ID = h.Chunk(e.Hashes)
		e, err := s.Encode(chunkstore.LevelFast, e, raw, nil)
		if err != nil {
			return nil, err
		}
		p, _, err := k.Put(ctx, e)
		if err != nil {
			return nil, err
		}
		ptrs = append(ptrs, p)
	}
	return ptrs, nil
}
