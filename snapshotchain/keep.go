package snapshotchain

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"livemount/snapshotchain/chunkstore"
)

// kept is what is needed of a lineage: of its points up to upTo only seqs, ascending; all that are newer.
type kept struct {
	upTo   Seq
	seqs   []Seq
	forked bool // not every point builds upon the one before
}

func (k *kept) has(seq Seq) bool {
	if seq > k.upTo {
		return true
	}
	_, ok := slices.BinarySearch(k.seqs, seq)
	return ok
}

func (k *kept) add(seq Seq) {
	if i, ok := slices.BinarySearch(k.seqs, seq); !ok {
		k.seqs = slices.Insert(k.seqs, i, seq)
	}
}

// keeping is what a collection must leave.
type keeping struct {
	lineages map[LineageID]*kept
	configs  []chunkstore.Ptr // of points
	points   uint64
	ids      []PointID
	viewers  map[diskAt]uint32 // which point has a disk, counted from 1
	bases    map[diskAt]bool   // what others stand on
}

// whatIsKept finds out what is needed: what points have, what is pinned or open, and what those stand on. From when
// it returns nothing else can be opened any more. Points that are made meanwhile are newer than upTo; those that are
// expired meanwhile are kept, or were not in use when it looked.
func (s *Store) whatIsKept(ctx context.Context) (*keeping, error) {
	for _, vm := range s.VMs() { // so that there is little to read while no change can be made
		if _, _, err := s.PointsOf(ctx, vm.ID); err != nil && !s.isGone(vm.ID) {
			return nil, err
		}
	}
	k, err := s.keepPoints(ctx)
	if err != nil {
		return nil, err
	}
	for {
		// Pins come last: a point is there, or pinned, or nobody can have it open.
		if done, err := s.keepPins(ctx, k); done || err != nil {
			return k, err
		}
	}
}

// keepPoints keeps what points have, as of one moment: a point that is made meanwhile may build upon one that is expired
// meanwhile.
func (s *Store) keepPoints(ctx context.Context) (*keeping, error) {
	s.commit.Lock()
	defer s.commit.Unlock()
	k := &keeping{lineages: map[LineageID]*kept{}, viewers: map[diskAt]uint32{}, bases: map[diskAt]bool{}}
	vms := s.startKeeping(k)
	for _, id := range vms {
		_, points, err := s.PointsOf(ctx, id)
		if err != nil && !s.isGone(id) {
			return nil, err
		}
		for i := range points {
			k.point(&points[i])
		}
	}
	return k, nil
}

// startKeeping notes how far each lineage goes now.
func (s *Store) startKeeping(k *keeping) []VMID {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for id, l := range s.cat.lineages {
		k.lineages[id] = &kept{upTo: l.Latest, forked: l.Forked}
	}
	return slices.Collect(maps.Keys(s.cat.vms))
}

func (s *Store) isGone(id VMID) bool {
	_, err := s.VMByID(id)
	return err != nil
}

func (k *keeping) point(p *Point) {
	k.ids = append(k.ids, p.ID)
	for _, key := range disksAt(p) {
		k.keep(key.lineage, key.seq)
		k.viewers[key] = uint32(len(k.ids))
	}
	if p.Config != nil {
		k.configs = append(k.configs, p.Config.Ptr)
	}
	k.points++
}

// keep keeps a disk as of a point, unless it is too new to be looked at. It reports whether that is news.
func (k *keeping) keep(l LineageID, seq Seq) bool {
	left := k.lineages[l]
	if left == nil || left.has(seq) {
		return false
	}
	left.add(seq)
	return true
}

// keepPins adds what is pinned or open, and publishes all when what that stands on is in as well.
func (s *Store) keepPins(ctx context.Context, k *keeping) (done bool, err error) {
	if err := s.keepBases(ctx, k); err != nil {
		return false, err
	}
	s.pins.mu.Lock()
	defer s.pins.mu.Unlock()
	news := false
	for key := range s.pins.open {
		news = k.keep(key.lineage, key.seq) || news
	}
	for key := range s.pins.held {
		news = k.keep(key.lineage, key.seq) || news
	}
	if !news {
		s.pins.kept = k.lineages
	}
	return !news, nil
}

// keepBases adds what lineages stand on. A lineage stands only on ones with smaller numbers.
func (s *Store) keepBases(ctx context.Context, k *keeping) error {
	ids := slices.SortedFunc(maps.Keys(k.lineages), func(a, b LineageID) int { return cmp.Compare(b, a) })
	for _, id := range ids {
		for _, seq := range k.lineages[id].seqs {
			sl, err := s.sealOf(ctx, id, seq)
			if err != nil {
				return err
			}
			if sl.Base != nil {
				k.keep(sl.Base.Lineage, sl.Base.Seq)
				k.bases[diskAt{sl.Base.Lineage, sl.Base.Seq}] = true
			}
		}
	}
	return nil
}
