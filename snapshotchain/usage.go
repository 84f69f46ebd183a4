package snapshotchain

import (
	"context"
	"slices"

	"livemount/internal/errs"
	"livemount/snapshotchain/chunkstore"
)

// owners finds out which slots only one point shows: what would come back if it went. It is for one goroutine.
type owners struct {
	set     *slotSet
	of      []uint32          // by slot: 0 nobody, n+1 the n-th point, several
	viewers map[diskAt]uint32 // who shows a disk: n+1, or several

	dirs  map[Seq]uint32            // who sees a version of the directory page that is marked now
	seen  [dirLeaves]map[Seq]uint32 // who sees a version of its leaves
	pages [LeafPages]chunkstore.Ptr // of the leaf that is marked now
	since [LeafPages]int            // how several seen versions there were when the page came to be where it is
	by    []uint32                  // who sees these
}

const several = ^uint32(0)

// maxOwned bounds the slots of which it is kept who shows them, at 4 bytes each.
const maxOwned = 64 << 20

func newOwners(set *slotSet, k *keeping) *owners {
	o := &owners{set: set, of: make([]uint32, len(set.words)*64), viewers: map[diskAt]uint32{}, dirs: map[Seq]uint32{}}
	for key, n := range k.viewers {
		o.viewers[key] = n
	}
	for key := range k.bases {
		o.viewers[key] = several
	}
	return o
}

// join is who sees something that both see.
func join(a, b uint32) uint32 {
	if a == 0 || a == b {
		return b
	}
	return several
}

// dir begins a directory page.
func (o *owners) dir() {
	if o == nil {
		return
	}
	clear(o.dirs)
	for i := range o.seen {
		clear(o.seen[i])
	}
}

// sees notes that a kept disk sees a version of the directory page.
func (o *owners) sees(key diskAt, version Seq) {
	if o == nil || version == 0 {
		return
	}
	who, ok := o.viewers[key]
	if !ok {
		who = several // pinned, and no point any more
	}
	o.dirs[version] = join(o.dirs[version], who)
}

// leaves notes which versions of leaves a version of the directory page names.
func (o *owners) leaves(version Seq, dp *dirPage) {
	if o == nil {
		return
	}
	for i, v := range dp {
		if v == 0 {
			continue
		}
		if o.seen[i] == nil {
			o.seen[i] = map[Seq]uint32{}
		}
		o.seen[i][v] = join(o.seen[i][v], o.dirs[version])
	}
}

// leaf goes through the needed versions of a leaf, newest first.
func (o *owners) leaf(n uint32, needed []version, forked bool) {
	if o == nil {
		return
	}
	clear(o.pages[:])
	o.by = o.by[:0]
	for i, v := range slices.Backward(needed) {
		if i == len(needed)-1 || !forked || v.full || v.prev == needed[i+1].seq {
			o.lay(v.leaf)
		} else {
			o.show(flatten(chainOf(needed, i)))
		}
		if who := o.seen[n%dirLeaves][v.seq]; who != 0 {
			o.by = append(o.by, who)
		}
	}
	for i := range o.pages {
		o.put(i, chunkstore.Ptr{})
	}
}

// chainOf returns the i-th of the needed versions, which are newest first, and those that it builds upon.
func chainOf(needed []version, i int) (list []*leaf) {
	for ; ; i++ {
		list = append(list, needed[i].leaf)
		if needed[i].full {
			return list
		}
		for prev := needed[i].prev; needed[i+1].seq != prev; {
			i++
		}
	}
}

// show makes the leaf what these runs say.
func (o *owners) show(runs []Run) {
	o.lay(&leaf{full: true, runs: runs})
}

func (o *owners) lay(v *leaf) {
	page := 0
	for _, r := range v.runs {
		for ; v.full && page < int(r.Page); page++ {
			o.put(page, chunkstore.Ptr{})
		}
		for page = int(r.Page); page < r.end(); page++ {
			o.put(page, r.Ptr)
		}
	}
	for ; v.full && page < LeafPages; page++ {
		o.put(page, chunkstore.Ptr{})
	}
}

// put says where a page is from now on, and counts who saw where it was.
func (o *owners) put(page int, p chunkstore.Ptr) {
	old := o.pages[page]
	if old == p {
		return
	}
	if old.Container != 0 {
		switch from := o.since[page]; len(o.by) - from {
		case 0:
		case 1:
			o.add(old, o.by[from])
		default: // a point sees one version, so these are several
			o.add(old, several)
		}
	}
	o.pages[page], o.since[page] = p, len(o.by)
}

func (o *owners) add(p chunkstore.Ptr, who uint32) {
	if i := o.set.find(p.Container); i >= 0 && p.Slot < o.set.states[i].Slots {
		at := o.set.start[i]*64 + int(p.Slot)
		o.of[at] = join(o.of[at], who)
	}
}

// Usage is how several stored bytes only one point shows, by point.
type Usage struct {
	Unique  map[PointID]int64
	applied uint64
}

// UniqueBytes returns how several stored bytes would come back if only this point went, as of the last Measure, and
// whether that is known. Containers of which little is unused are not written anew at once.
func (s *Store) UniqueBytes(p *Point) (int64, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n, ok := s.usage.Unique[p.ID]
	return n, ok
}

// Measure finds out what each point has for itself, unless that is known: it goes through the whole map. Invalid for
// a store with too several chunks.
func (s *Store) Measure(ctx context.Context) error {
	if err := s.packing.take(ctx); err != nil {
		return err
	}
	defer s.packing.leave()
	s.mu.RLock()
	applied := s.cat.root.Applied
	known := s.usage.applied == applied && s.usage.Unique != nil
	var states []chunkstore.State
	for _, st := range s.cat.containers {
		if !st.Gone && st.Class == chunkstore.ClassData {
			states = append(states, st)
		}
	}
	s.mu.RUnlock()
	if known {
		return nil
	}
	set := newSlotSet(states)
	if len(set.words)*64 > maxOwned {
		return errs.New(errs.Invalid, "the store has more than %d chunks: what each point has for itself is not counted", maxOwned)
	}
	keep, err := s.whatIsKept(ctx)
	if err != nil {
		return err
	}
	m := &marker{s: s, keep: keep, live: set, own: newOwners(set, keep)}
	if err := m.mark(ctx, nil); err != nil {
		return err
	}
	unique, err := s.addUp(ctx, m.own, keep)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.usage = Usage{Unique: unique, applied: applied}
	return nil
}

// addUp adds up the stored bytes of the slots that one point has for itself.
func (s *Store) addUp(ctx context.Context, o *owners, k *keeping) (map[PointID]int64, error) {
	unique := map[PointID]int64{}
	for _, id := range k.ids {
		unique[id] = 0
	}
	for i, st := range o.set.states {
		of := o.of[o.set.start[i]*64:]
		err := s.chunks.EachSlot(ctx, st.ID, func(n uint32, bytes int64) {
			if n < st.Slots && of[n] != 0 && of[n] != several {
				unique[k.ids[of[n]-1]] += bytes
			}
		})
		if err != nil && !errs.Is(err, errs.Corrupt) {
			return nil, err
		}
	}
	return unique, nil
}
