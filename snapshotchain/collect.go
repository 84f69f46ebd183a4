package snapshotchain

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"livemount/internal/errs"
	"livemount/internal/gate"
	"livemount/snapshotchain/chunkstore"
)

// CollectOptions say how much a collection does.
type CollectOptions struct {
	DryRun bool
	// Pace is asked before n bytes are read or written; it waits, or ends the collection with an error. nil never waits.
	Pace func(ctx context.Context, n int64) error
}

// Collection is what a collection found and did. Bytes are of records as stored, unless they say otherwise.
type Collection struct {
	Points     uint64 // that are kept
	Pointers   int64  // looked at
	Containers int    // sealed ones, that were looked at

	LiveBytes   int64 // of the records of sealed containers that somebody needs
	DeadBytes   int64 // of the others
	Gone        int   // containers that were removed, or would be
	Rewritten   int   // containers that were written anew, or would be
	FreedBytes  int64 // on disk, or what would be
	PurgedKeys  int64 // removed from Badger
	Held        int   // containers left for the next time, because a backup found chunks there
	Damaged     int   // containers left, because a record that is needed is bad
	MarkSeconds float64
}

// sparse is the share of a container, in percent, that must be needed for it to be left as it is.
const sparse = 60

// Collect takes away what no point, mount or reader needs: entries of the map, and records of containers. It runs
// beside everything else, one at a time; a crash leaves nothing half done. Corrupt, and nothing is taken away, when it
// cannot be told what a point needs.
func (s *Store) Collect(ctx context.Context, o CollectOptions) (Collection, error) {
	if o.Pace == nil {
		o.Pace = func(ctx context.Context, _ int64) error { return ctx.Err() }
	}
	if s.distrusted {
		return Collection{}, errs.New(errs.Denied, "the journal has gaps: what seems to be unused may belong to a point that it lost")
	}
	if err := s.packing.take(ctx); err != nil {
		return Collection{}, err
	}
	defer s.packing.leave()
	c := &collector{s: s, o: o}
	err := c.run(ctx)
	if err != nil {
		err = fmt.Errorf("collect what is unused: %w", err)
	}
	return c.report, err
}

// collector is a collection that runs.
type collector struct {
	s      *Store
	o      CollectOptions
	live   *slotSet
	keep   *keeping
	report Collection
}

func (c *collector) run(ctx context.Context) error {
	if err := c.s.writable(); err != nil {
		return err
	}
	began := c.s.opts.Clock.Ran()
	c.live = newSlotSet(c.s.sealedStates())
	var err error
	if c.keep, err = c.s.whatIsKept(ctx); err != nil {
		return err
	}
	m := &marker{s: c.s, keep: c.keep, live: c.live}
	var forget func(forgotten) error
	if !c.o.DryRun {
		m.purge = &purger{db: c.s.db, admit: c.s.opts.AdmitFreeingCommit}
		forget = func(f forgotten) error { return firstError(m.purge.flush(), c.forget(ctx, f)) }
	}
	if err := m.mark(ctx, forget); err != nil {
		return err
	}
	c.report.Points, c.report.Pointers, c.report.Containers = c.keep.points, m.pointers, len(c.live.states)
	c.report.MarkSeconds = (c.s.opts.Clock.Ran() - began).Seconds()
	if m.purge != nil {
		c.report.PurgedKeys = m.purge.purged
	}
	list, err := c.candidates(ctx)
	if err != nil || c.o.DryRun || len(list) == 0 {
		return err
	}
	return c.sweep(ctx, list)
}

// sealedStates returns the containers that nothing is added to any more, but those of the journal.
func (s *Store) sealedStates() []chunkstore.State {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var list []chunkstore.State
	for _, st := range s.cat.containers {
		if st.Sealed && !st.Gone && st.Class != chunkstore.ClassJournal {
			list = append(list, st)
		}
	}
	return list
}

// forget records that seals are not needed, and the lineage neither when nothing can come back to it.
func (c *collector) forget(ctx context.Context, f forgotten) error {
	f.Whole = c.s.isOver(f.Lineage)
	for len(f.Seqs) > forgetAtOnce {
		part := forgotten{Lineage: f.Lineage, Seqs: f.Seqs[:forgetAtOnce]}
		if _, err := c.s.record(ctx, &change{Sweep: &sweepChange{Forgotten: []forgotten{part}}}); err != nil {
			return err
		}
		f.Seqs = f.Seqs[forgetAtOnce:]
	}
	if len(f.Seqs) == 0 && !f.Whole {
		return nil
	}
	_, err := c.s.record(ctx, &change{Sweep: &sweepChange{Forgotten: []forgotten{f}}})
	return err
}

// forgetAtOnce bounds a transaction.
const forgetAtOnce = 5000

// isOver reports whether a lineage is nobody's any more: its VM is gone, no draft continues it and nothing stands on
// it.
func (s *Store) isOver(id LineageID) bool {
	s.mu.RLock()
	l := s.cat.lineages[id]
	over := l != nil && s.cat.vms[l.VM] == nil
	for _, o := range s.cat.drafts {
		for _, d := range o.Disks {
			over = over && d.Lineage != id
		}
	}
	s.mu.RUnlock()
	s.pins.mu.Lock()
	defer s.pins.mu.Unlock()
	left := s.pins.kept[id]
	return over && left != nil && len(left.seqs) == 0 && l.Latest == left.upTo
}

// candidate is a container with records that nobody needs.
type candidate struct {
	i    int // in the set
	dead bool
}

// candidates finds the containers that are to go or to be written anew.
func (c *collector) candidates(ctx context.Context) ([]candidate, error) {
	var list []candidate
	rotten := c.s.badDead(c.live)
	for i, st := range c.live.states {
		if n := c.live.count(i); n == int(st.Slots-st.Freed) && !rotten[st.ID] {
			c.report.LiveBytes += st.Bytes
			continue
		} else if n == 0 {
			c.report.DeadBytes += st.Bytes
			c.report.FreedBytes += st.Bytes
			c.report.Gone++
			list = append(list, candidate{i, true})
			continue
		}
		u, err := c.s.chunks.Usage(ctx, st.ID, c.isLive(i))
		if errs.Is(err, errs.Corrupt) {
			c.report.Damaged++
			continue
		}
		if err != nil {
			return nil, err
		}
		c.report.LiveBytes += u.Live
		c.report.DeadBytes += u.Total - u.Live
		if u.Live*100 < u.Total*sparse || rotten[st.ID] {
			c.report.Rewritten++
			c.report.FreedBytes += u.Total - u.Live
			list = append(list, candidate{i, false})
		}
	}
	return list, nil
}

func (c *collector) isLive(i int) func(uint32) bool {
	id := c.live.states[i].ID
	return func(slot uint32) bool { return c.live.has(chunkstore.Ptr{Container: id, Slot: slot}) }
}

// sweep takes the candidates away. From now on nothing new points into them; what writers found there before, and
// points that were made since, are looked at once more.
func (c *collector) sweep(ctx context.Context, list []candidate) error {
	c.report.Gone, c.report.Rewritten, c.report.FreedBytes = 0, 0, 0
	var ids []chunkstore.ContainerID
	for _, k := range list {
		ids = append(ids, c.live.states[k.i].ID)
	}
	held := c.s.chunks.Condemn(ids)
	defer c.s.chunks.Absolve(ids)
	if err := c.markNewer(ctx); err != nil {
		return err
	}
	var dead []candidate
	var thin []candidate
	for _, k := range list {
		switch {
		case held[c.live.states[k.i].ID]:
			c.report.Held++
		case c.live.count(k.i) == 0:
			dead = append(dead, k)
		default:
			thin = append(thin, k)
		}
	}
	if err := c.remove(ctx, dead); err != nil {
		return err
	}
	for _, k := range thin {
		if err := c.rewrite(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

// markNewer marks what points show that were made after it was found out what is kept: all that their map segments
// point to. What they took over from the point before is marked by that.
func (c *collector) markNewer(ctx context.Context) error {
	newer, err := c.s.newerSeals(ctx, c.keep)
	if err != nil {
		return err
	}
	for _, key := range newer {
		sl, err := c.s.sealOf(ctx, key.lineage, key.seq)
		if err != nil {
			return err
		}
		for _, part := range sl.Parts {
			if part.Kind != PartLeaves {
				continue
			}
			if err := c.markPart(ctx, sl, part); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *collector) markPart(ctx context.Context, sl *seal, part Part) error {
	return c.s.eachInPart(ctx, sl, part, func(_ uint32, val []byte) error {
		v, err := decodeLeaf(val)
		if err != nil {
			return err
		}
		for _, r := range v.runs {
			if !r.IsZero() {
				c.live.add(r.Ptr)
			}
		}
		return nil
	})
}

// newerSeals lists the disks of points that are newer than what k has. Those of points that went meanwhile are among them:
// later ones may build upon them.
func (s *Store) newerSeals(ctx context.Context, k *keeping) ([]diskAt, error) {
	s.mu.RLock()
	latest := map[LineageID]Seq{}
	for id, l := range s.cat.lineages {
		latest[id] = l.Latest
	}
	s.mu.RUnlock()
	list, err := s.newerPoints(ctx, k)
	if err != nil {
		return nil, err
	}
	for id, last := range latest {
		from := Seq(1)
		if left := k.lineages[id]; left != nil {
			from = left.upTo + 1
		}
		err := s.db.Scan(keySeal(id, from), keySeal(id, last+1), func(key, _ []byte, _ error) error {
			if len(key) == 13 {
				list = append(list, diskAt{id, Seq(binary.BigEndian.Uint32(key[9:]))})
			}
			return ctx.Err()
		})
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

// newerPoints lists those of points that are there, whose seals must exist.
func (s *Store) newerPoints(ctx context.Context, k *keeping) ([]diskAt, error) {
	var list []diskAt
	for _, vm := range s.VMs() {
		_, points, err := s.PointsOf(ctx, vm.ID)
		if err != nil && !s.isGone(vm.ID) {
			return nil, err
		}
		for i := range points {
			for _, key := range disksAt(&points[i]) {
				if left := k.lineages[key.lineage]; left == nil || key.seq > left.upTo {
					list = append(list, key)
				}
			}
		}
	}
	return list, nil
}

// removeAtOnce bounds a transaction.
const removeAtOnce = 2000

// remove takes whole containers away.
func (c *collector) remove(ctx context.Context, list []candidate) error {
	for len(list) > 0 {
		n := min(len(list), removeAtOnce)
		w := &sweepChange{}
		for _, k := range list[:n] {
			st := c.live.states[k.i]
			w.Gone = append(w.Gone, st.ID)
			w.Freed += max(0, st.Bytes-chunkstore.HeaderBytes)
			w.FreedRaw += st.Raw
		}
		list = list[n:]
		if _, err := c.s.record(ctx, &change{Sweep: w}); err != nil {
			return err
		}
		if err := c.s.chunks.Discard(ctx, w.Gone); err != nil {
			return err
		}
		if err := c.s.clearGone(w.Gone); err != nil {
			return err
		}
		gone := map[chunkstore.ContainerID]bool{}
		for _, id := range w.Gone {
			gone[id] = true
		}
		c.s.dropBad(func(p chunkstore.Ptr) bool { return gone[p.Container] })
		c.report.Gone += n
		c.report.FreedBytes += w.Freed
	}
	return nil
}

// clearGone forgets containers whose files are removed for good.
func (s *Store) clearGone(ids []chunkstore.ContainerID) error {
	s.commit.Lock()
	defer s.commit.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.write(s.cat.dropContainers(ids)); err != nil {
		return fmt.Errorf("forget removed containers: %w", err)
	}
	return nil
}

// rewrite writes a container anew without what nobody needs. One with a bad record that is needed stays.
func (c *collector) rewrite(ctx context.Context, k candidate) error {
	st := c.live.states[k.i]
	if err := c.o.Pace(ctx, st.Bytes); err != nil {
		return err
	}
	r, err := c.s.chunks.Repack(ctx, st.ID, chunkstore.Wanted{Live: c.isLive(k.i), Enter: c.s.enter(gate.Collect)})
	if errs.Is(err, errs.Corrupt) {
		c.report.Damaged++
		return nil
	}
	if err != nil {
		return err
	}
	w := &sweepChange{State: &r.State, Freed: r.Old.Bytes - r.State.Bytes, FreedRaw: r.Old.Raw - r.State.Raw}
	if _, err := c.s.record(ctx, &change{Sweep: w}); err != nil {
		if c.s.writable() == nil { // the journal refused: the old file stays
			err = errors.Join(err, c.s.chunks.Drop(r))
		}
		return err
	}
	if err := c.s.chunks.Swap(r); err != nil {
		return err
	}
	c.report.Rewritten++
	c.report.FreedBytes += w.Freed
	isLive := c.isLive(k.i)
	c.s.dropBad(func(p chunkstore.Ptr) bool { return p.Container == st.ID && !isLive(p.Slot) })
	return nil
}
