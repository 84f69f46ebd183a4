package snapshotchain

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"livemount/internal/errs"
	"livemount/snapshotchain/chunkstore"
)

// badRecord is a record whose bytes were found to be bad.
type badRecord struct {
	cause   string
	known   bool // touches was found out
	touches []Touch
	more    bool // there are more than are listed
	points  map[PointID]bool
}

// Touch is a range of a disk of a point that a bad record spoils.
type Touch struct {
	VM     string
	Point  PointID
	Disk   string
	Offset int64 // in bytes
	Length int64
}

func (t *Touch) String() string {
	return fmt.Sprintf("%s@id:%s disk %s, %d bytes at %d", t.VM, t.Point, t.Disk, t.Length, t.Offset)
}

// maxTouches bounds what is listed of one bad record.
const maxTouches = 1000

// recordBad remembers a bad record across restarts, so that nothing is deduplicated against it.
func (s *Store) recordBad(p chunkstore.Ptr, cause error) {
	s.opts.Log.Error("damage found", "record", p.String(), "err", cause)
	s.noteBad(p, cause.Error())
	list := &puts{}
	list.add(keyBad(p), []byte(cause.Error()))
	if err := s.writeSpare(list); err != nil {
		s.opts.Log.Warn("bad chunk was not recorded", "chunk", p.String(), "err", err)
	}
}

func (s *Store) noteBad(p chunkstore.Ptr, cause string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bad[p] == nil {
		s.bad[p] = &badRecord{cause: cause}
	}
}

// loadBad tells the chunk store which records are known to be bad.
func (s *Store) loadBad() error {
	return s.db.Each([]byte("b"), func(key, val []byte, _ error) error {
		if len(key) != 13 {
			return nil
		}
		p := chunkstore.Ptr{
			Container: chunkstore.ContainerID(binary.BigEndian.Uint64(key[1:])), Slot: binary.BigEndian.Uint32(key[9:]),
		}
		if s.chunks.MarkBad(p) {
			s.noteBad(p, "found before: "+string(val))
		}
		return nil
	})
}

// badTextsLocked says what is bad, for people. The caller holds mu.
func (s *Store) badTextsLocked() []string {
	var list []string
	for _, p := range slices.SortedFunc(maps.Keys(s.bad), comparePtrs) {
		b := s.bad[p]
		text := fmt.Sprintf("record %s: %s", p, b.cause)
		switch {
		case s.cat.containers[p.Container].Class == 0:
			text += "; it is a part of the journal, or its container is missing"
		case s.cat.containers[p.Container].Class == chunkstore.ClassMap:
			text += "; it is a part of the map, which the metadata has as well, or a configuration"
		case b.known && len(b.touches) == 0:
			text += "; no point needs it"
		case b.known:
			text += "; it spoils " + b.touches[0].String()
			if n := len(b.touches) - 1; n > 0 || b.more {
				text += fmt.Sprintf(" and %d more ranges", n)
			}
		}
		if list = append(list, text); len(list) == 1000 {
			break
		}
	}
	return list
}

func comparePtrs(a, b chunkstore.Ptr) int {
	return cmp.Or(cmp.Compare(a.Container, b.Container), cmp.Compare(a.Slot, b.Slot))
}

// dropBad forgets bad records that are not there any more.
func (s *Store) dropBad(gone func(chunkstore.Ptr) bool) {
	list := &puts{}
	s.mu.Lock()
	for p := range s.bad {
		if gone(p) {
			delete(s.bad, p)
			s.chunks.UnmarkBad(p)
			list.add(keyBad(p), nil)
		}
	}
	s.mu.Unlock()
	if len(list.keys) == 0 {
		return
	}
	if err := s.writeSpare(list); err != nil {
		s.opts.Log.Warn("list of bad records was not changed", "err", err)
	}
}

// Damaged reports whether a point is known to be spoiled by bad records, as of the last Touched.
func (s *Store) Damaged(p *Point) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, b := range s.bad {
		if b.points[p.ID] {
			return true
		}
	}
	return false
}

// badDead returns the containers that have bad records which nobody needs: they are written anew without.
func (s *Store) badDead(live *slotSet) map[chunkstore.ContainerID]bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	found := map[chunkstore.ContainerID]bool{}
	for p := range s.bad {
		if !live.has(p) {
			found[p.Container] = true
		}
	}
	return found
}

// BadRecords returns how many records are known to be bad.
func (s *Store) BadRecords() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.bad)
}

// Touched finds out which ranges of which points bad records spoil, and remembers it for Health. It goes through the
// whole map.
func (s *Store) Touched(ctx context.Context) ([]Touch, error) {
	s.mu.RLock()
	bad := map[chunkstore.Ptr]*badRecord{}
	for p := range s.bad {
		bad[p] = &badRecord{known: true, points: map[PointID]bool{}}
	}
	s.mu.RUnlock()
	if len(bad) == 0 {
		return nil, nil
	}
	leaves, err := s.leavesWith(ctx, bad)
	if err != nil {
		return nil, err
	}
	var all []Touch
	for _, vm := range s.VMs() {
		_, points, err := s.PointsOf(ctx, vm.ID)
		if err != nil {
			return nil, err
		}
		for i := range points {
			list, err := s.touchedPoint(ctx, vm.Name, &points[i], leaves, bad)
			if err != nil {
				return nil, err
			}
			all = append(all, list...)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, b := range bad {
		if now := s.bad[p]; now != nil {
			now.known, now.touches, now.more, now.points = true, b.touches, b.more, b.points
		}
	}
	return all, nil
}

// leavesWith finds the leaves of which some version points to a bad record.
func (s *Store) leavesWith(ctx context.Context, bad map[chunkstore.Ptr]*badRecord) (map[LineageID][]uint32, error) {
	found := map[LineageID][]uint32{}
	err := s.db.Scan([]byte("l"), []byte("m"), func(key, val []byte, err error) error {
		if err != nil || len(key) != 17 {
			return ctx.Err() // a spoiled value is read from its segment by whoever needs it
		}
		l, n := LineageID(binary.BigEndian.Uint64(key[1:])), binary.BigEndian.Uint32(key[9:])
		if list := found[l]; len(list) > 0 && list[len(list)-1] == n {
			return nil
		}
		v, err := decodeLeaf(val)
		if err != nil {
			return ctx.Err()
		}
		if slices.ContainsFunc(v.runs, func(r Run) bool { return bad[r.Ptr] != nil }) {
			found[l] = append(found[l], n)
		}
		return ctx.Err()
	})
	return found, err
}

func (s *Store) touchedPoint(ctx context.Context, vm string, p *Point, leaves map[LineageID][]uint32, bad map[chunkstore.Ptr]*badRecord) ([]Touch, error) {
	var all []Touch
	for i := range p.Disks {
		d, err := s.OpenDisk(ctx, &p.Disks[i])
		if errs.Is(err, errs.NotFound) {
			continue // it was expired meanwhile
		}
		if err != nil {
			return nil, err
		}
		err = d.eachLeafOf(leaves, func(n uint32) error {
			return d.badRuns(ctx, n, bad, func(b *badRecord, off, length int64) {
				t := Touch{VM: vm, Point: p.ID, Disk: p.Disks[i].Name, Offset: off, Length: length}
				all = append(all, t)
				b.points[p.ID] = true
				if len(b.touches) < maxTouches {
					b.touches = append(b.touches, t)
				} else {
					b.more = true
				}
			})
		})
		d.Close()
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// eachLeafOf calls fn with the leaves that are listed of the lineages that the disk stands on.
func (d *Disk) eachLeafOf(leaves map[LineageID][]uint32, fn func(n uint32) error) error {
	done := map[uint32]bool{}
	for b := d; b != nil; b = b.base {
		for _, n := range leaves[b.seal.Lineage] {
			if done[n] || int64(n)*LeafBytes >= d.Size() {
				continue
			}
			done[n] = true
			if err := fn(n); err != nil {
				return err
			}
		}
	}
	return nil
}

// badRuns calls fn with the ranges of a leaf that bad records hold.
func (d *Disk) badRuns(ctx context.Context, n uint32, bad map[chunkstore.Ptr]*badRecord, fn func(b *badRecord, off, length int64)) error {
	runs, err := d.leaf(ctx, n)
	if err != nil {
		return err
	}
	for _, r := range runs {
		if b := bad[r.Ptr]; b != nil {
			off := int64(n)*LeafBytes + int64(r.Page)*chunkstore.PageSize
			fn(b, off, min(d.Size()-off, int64(r.Len)*chunkstore.PageSize))
		}
	}
	return nil
}

// Heal writes bad records again that came in once more, in other backups, and returns how many are good now. Pointers
// stay what they are.
func (s *Store) Heal(ctx context.Context) (healed int, err error) {
	if s.BadRecords() == 0 {
		return 0, nil
	}
	if err := s.packing.take(ctx); err != nil {
		return 0, err
	}
	defer s.packing.leave()
	healed, failed := s.mendJournal(ctx)
	if ctx.Err() != nil || s.distrusted {
		return healed, failed
	}
	wanted, err := s.copies(ctx)
	if err != nil {
		return healed, errors.Join(failed, err)
	}
	for id, want := range wanted {
		if _, err := s.writeAnew(ctx, id, *want); err != nil {
			// Another record there is bad, and did not come again; or things are still added to it.
			if errs.Is(err, errs.Corrupt) || errs.Is(err, errs.Invalid) {
				continue
			}
			return healed, errors.Join(failed, fmt.Errorf("heal container %s: %w", id, err))
		}
		s.dropBad(func(p chunkstore.Ptr) bool { return p.Container == id })
		healed += len(want.Instead) + len(want.Map)
		s.opts.Log.Info("bad records healed", "container", id, "records", len(want.Instead)+len(want.Map))
	}
	return healed, failed
}

// mendJournal writes bad records of the journal again that have a good twin. One that cannot be written keeps none of the
// others.
func (s *Store) mendJournal(ctx context.Context) (mended int, failed error) {
	s.mu.RLock()
	var list []chunkstore.Ptr
	for p := range s.bad {
		if s.cat.containers[p.Container].Class == 0 { // the journal's are in no seal
			list = append(list, p)
		}
	}
	s.mu.RUnlock()
	for _, p := range list {
		err := s.chunks.MendJournal(ctx, p)
		if errs.Is(err, errs.Corrupt) || errs.Is(err, errs.Invalid) {
			continue
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("mend journal container %s: %w", p.Container, err))
			continue
		}
		mended++
		s.dropBad(func(q chunkstore.Ptr) bool { return q == p })
		s.opts.Log.Info("bad record of the journal mended from its twin", "record", p)
	}
	return mended, failed
}

// copies finds what bad records held elsewhere, by container: chunks in other records, parts of the map in Badger.
func (s *Store) copies(ctx context.Context) (map[chunkstore.ContainerID]*chunkstore.Wanted, error) {
	s.mu.RLock()
	list := slices.SortedFunc(maps.Keys(s.bad), comparePtrs)
	s.mu.RUnlock()
	parts, err := s.badParts(ctx, list)
	if err != nil {
		return nil, err
	}
	found := map[chunkstore.ContainerID]*chunkstore.Wanted{}
	of := func(p chunkstore.Ptr) *chunkstore.Wanted {
		if found[p.Container] == nil {
			found[p.Container] = &chunkstore.Wanted{Instead: map[uint32]chunkstore.Ptr{}, Map: map[uint32][]byte{}}
		}
		return found[p.Container]
	}
	for _, p := range list {
		if c, ok := s.chunks.Copy(ctx, p); ok {
			of(p).Instead[p.Slot] = c
		}
		if raw := parts[p]; raw != nil {
			of(p).Map[p.Slot] = raw
		}
	}
	return found, nil
}

// badParts makes parts of the map again of what Badger has.
func (s *Store) badParts(ctx context.Context, list []chunkstore.Ptr) (map[chunkstore.Ptr][]byte, error) {
	s.mu.RLock()
	wanted := map[chunkstore.Ptr]bool{}
	for _, p := range list {
		if s.cat.containers[p.Container].Class == chunkstore.ClassMap {
			wanted[p] = true
		}
	}
	s.mu.RUnlock()
	parts := map[chunkstore.Ptr][]byte{}
	if len(wanted) == 0 {
		return parts, nil
	}
	err := s.db.Scan([]byte("s"), []byte("t"), func(_, val []byte, err error) error {
		var sl seal
		if err == nil {
			err = decode(val, &sl)
		}
		if err != nil {
			return ctx.Err() // read from the journal by whoever needs it
		}
		for _, part := range sl.Parts {
			if wanted[part.Ptr] {
				if raw, err := s.partFromBadger(&sl, part); err == nil {
					parts[part.Ptr] = raw
				}
			}
		}
		return ctx.Err()
	})
	return parts, err
}

// partFromBadger makes a part of the entries that Badger has of it: those that somebody needs. One that is spoiled is
// an error.
func (s *Store) partFromBadger(sl *seal, part Part) ([]byte, error) {
	var w partWriter
	w.begin(sl.Lineage, sl.Seq, part.Kind)
	from, to := partKey(part.Kind, sl.Lineage, part.First, 0), partKey(part.Kind, sl.Lineage, part.Last+1, 0)
	err := s.db.Scan(from, to, func(key, val []byte, err error) error {
		if len(key) == 17 && Seq(binary.BigEndian.Uint32(key[13:])) == sl.Seq && err == nil {
			w.add(sl.Lineage, sl.Seq, part.Kind, binary.BigEndian.Uint32(key[9:]), val)
			return nil
		}
		if len(key) == 17 && Seq(binary.BigEndian.Uint32(key[13:])) == sl.Seq {
			return err
		}
		return nil
	})
	if err == nil && len(w.buf) == partHead {
		err = errs.New(errs.Corrupt, "the metadata has nothing of this part either")
	}
	return w.buf, err
}
