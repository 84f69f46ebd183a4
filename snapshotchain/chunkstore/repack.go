package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"path"

	"livemount/internal/errs"
)

// Repacked is a sealed container written anew under the same id, with the same slots, as the next generation.
// It is nobody's until Swap.
type Repacked struct {
	Old, State State
	c          *container
	freed      map[ChunkID]Ptr // what it does not hold any more
}

// Wanted says what of a container Repack writes.
type Wanted struct {
	// Live says which slots are wanted; nil is all.
	Live func(slot uint32) bool
	// Instead are records with the same content as those of slots that are bad.
	Instead map[uint32]Ptr
	// Enter is asked before each record that is read and written; it returns what is called behind it. nil is not asked.
	Enter func(context.Context) (leave func(), err error)
	// Map are parts of the map that slots of bad ones held.
	Map map[uint32][]byte
}

// Repack writes a sealed container anew with what LevelFast compressed compressed as LevelDefault does, and
// without the records that are not wanted: their slots stay, and hold nothing. The
// new file is on disk when it returns. Corrupt when a record that is wanted is bad: then nothing is written,
// because the old file is all that could ever be saved of it.
func (s *Store) Repack(ctx context.Context, id ContainerID, want Wanted) (*Repacked, error) {
	old, err := s.container(id)
	if err != nil {
		return nil, err
	}
	old.mu.Lock()
	st := old.state
	old.mu.Unlock()
	if !st.Sealed || old.class == ClassJournal {
		return nil, errs.New(errs.Invalid, "container %s cannot be packed", id)
	}
	slots, err := s.slots(ctx, old)
	if err != nil {
		return nil, err
	}
	if len(slots) != int(st.Slots) {
		return nil, errs.New(errs.Corrupt, "container %s has %d of %d slots", id, len(slots), st.Slots)
	}
	admit := s.opts.Admit
	if want.Live != nil {
		admit = s.opts.AdmitFreeing
	}
	if err := admit(st.Bytes); err != nil {
		return nil, err
	}
	// What an earlier try may have left has one of these names, and nobody else: the state would say so.
	next := path.Join(s.opts.Dir, fileName(old.class, id, st.Gen+1))
	for _, name := range []string{next, next + newSuffix} {
		if err := s.opts.FS.Remove(name); err != nil && !errs.Is(err, errs.NotFound) {
			return nil, err
		}
	}
	c, err := s.createContainer(fileName(old.class, id, st.Gen+1)+newSuffix, header{
		class: old.class, store: s.opts.Store, id: id, gen: st.Gen + 1, created: s.opts.Clock.Now().UnixNano(),
	})
	if err != nil {
		return nil, fmt.Errorf("pack container %s: %w", id, err)
	}
	freed, err := s.copyRecords(ctx, c.app, old, slots, want)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pack container %s: %w", id, err), c.app.file.Close(), s.opts.FS.Remove(c.path))
	}
	c.state = c.app.snapshot(true)
	app := c.app
	c.app, c.owner = nil, 0
	err = app.file.Close()
	if err == nil {
		err = s.opts.FS.Rename(c.path, next)
	}
	if err != nil {
		return nil, errors.Join(err, s.opts.FS.Remove(c.path))
	}
	c.path = next
	if err := s.opts.FS.SyncDir(path.Dir(next)); err != nil {
		return nil, errors.Join(err, s.opts.FS.Remove(c.path))
	}
	return &Repacked{Old: st, State: c.state, c: c, freed: freed}, nil
}

// newSuffix is behind the name of a file that is being written: until it is whole nobody must read it, and which
// generations were committed is not known before the journal was read.
const newSuffix = ".new"

// copyRecords writes the records of a container that are wanted, makes them durable, and returns the chunks that it
// left out.
func (s *Store) copyRecords(ctx context.Context, to *appender, from *container, slots []slot, want Wanted) (map[ChunkID]Ptr, error) {
	var bad error
	freed, skipped := map[ChunkID]Ptr{}, 0
	for n := range slots {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if slots[n].kind == KindFreed || (want.Live != nil && !want.Live(uint32(n))) {
			skipped++
			s.noteFreed(ctx, freed, from, uint32(n), slots[n])
			continue
		}
		err := s.copySlot(ctx, to, from, uint32(n), slots[n], skipped, want, bad != nil)
		skipped = 0
		if errs.Is(err, errs.Corrupt) {
			s.noteBad(Ptr{from.id, uint32(n)}, err)
			bad = err // nothing is written any more, but all that is bad is found
		} else if err != nil {
			return nil, err
		}
	}
	if bad != nil {
		return nil, bad
	}
	return freed, firstError(to.skip(skipped), to.seal())
}

// copySlot reads a record, and writes it behind skipped slots unless it is only to be proved.
func (s *Store) copySlot(ctx context.Context, to *appender, from *container, n uint32, sl slot, skipped int, want Wanted, only bool) error {
	if want.Enter != nil {
		leave, err := want.Enter(ctx)
		if err != nil {
			return err
		}
		defer leave()
	}
	r, raw, err := s.recordOf(ctx, from, n, sl)
	if err != nil {
		r, raw, err = s.instead(ctx, want, n, err)
	}
	if err != nil || only {
		return err
	}
	return s.copyRecord(to, r, raw, skipped)
}

// instead finds what takes the place of a record that cannot be read.
func (s *Store) instead(ctx context.Context, want Wanted, n uint32, cause error) (*record, []byte, error) {
	if p, ok := want.Instead[n]; ok {
		return s.recordAt(ctx, p)
	}
	if raw, ok := want.Map[n]; ok {
		return &record{kind: KindMap, codec: CodecRaw, rawLen: len(raw), payload: raw}, raw, nil
	}
	return nil, nil, cause
}

// copyRecord writes a record behind skipped slots that hold nothing.
func (s *Store) copyRecord(to *appender, r *record, raw []byte, skipped int) error {
	if err := to.skip(skipped); err != nil {
		return err
	}
	if r.codec != CodecZstd {
		var err error
		if r.codec, r.payload, err = s.codecs.encode(LevelDefault, raw, nil); err != nil {
			return err
		}
	}
	_, err := to.append(r)
	return err
}

// noteFreed remembers which chunk a slot held. One whose header is bad is not known: what says where it was is
// only a hint.
func (s *Store) noteFreed(ctx context.Context, freed map[ChunkID]Ptr, c *container, n uint32, sl slot) {
	if sl.kind != KindChunk || sl.len < recordHeader {
		return
	}
	if r, err := s.readHeaderOf(ctx, c, Ptr{c.id, n}); err == nil {
		freed[r.id] = Ptr{c.id, n}
	}
}

// recordOf reads a record and proves it by decoding it.
func (s *Store) recordOf(ctx context.Context, c *container, n uint32, sl slot) (*record, []byte, error) {
	if sl.len < recordHeader {
		return nil, nil, errs.New(errs.Corrupt, "slot %d was lost", n)
	}
	buf := make([]byte, sl.len)
	if err := s.readAt(ctx, c, buf, int64(sl.off)); err != nil {
		return nil, nil, err
	}
	r, err := parseRecord(newSeed(s.opts.Store, c.id), buf)
	if err != nil {
		return nil, nil, err
	}
	if r.slot != n {
		return nil, nil, errs.New(errs.Corrupt, "record of slot %d in the place of slot %d", r.slot, n)
	}
	if err := s.unseal(ctx, c, r, true); err != nil {
		return nil, nil, err
	}
	r.flags &^= flagEncrypted
	raw, err := s.codecs.decode(r.codec, r.payload, r.rawLen)
	return r, raw, err
}

// recordAt reads the record that p points to, and proves it.
func (s *Store) recordAt(ctx context.Context, p Ptr) (*record, []byte, error) {
	c, err := s.container(p.Container)
	if err != nil {
		return nil, nil, err
	}
	sl, err := s.slot(ctx, c, p.Slot)
	if err != nil {
		return nil, nil, err
	}
	return s.recordOf(ctx, c, p.Slot, sl)
}

// Copy finds another good record with the chunk that a bad one held.
func (s *Store) Copy(ctx context.Context, bad Ptr) (Ptr, bool) {
	id, ok := s.chunkID(ctx, bad)
	if !ok {
		return Ptr{}, false
	}
	p, ok := s.dedup.get(id)
	if !ok || p == bad || s.IsBad(p) {
		return Ptr{}, false
	}
	c, err := s.container(p.Container)
	if err != nil {
		return Ptr{}, false
	}
	c.mu.Lock()
	committed := p.Slot < c.state.Slots
	c.mu.Unlock()
	if !committed {
		return Ptr{}, false
	}
	r, _, err := s.recordAt(ctx, p)
	return p, err == nil && r.kind == KindChunk && r.id == id
}

// chunkID returns the id of a chunk, from the footer of its container, or from its own header.
func (s *Store) chunkID(ctx context.Context, p Ptr) (ChunkID, bool) {
	c, err := s.container(p.Container)
	if err != nil || c.class != ClassData {
		return ChunkID{}, false
	}
	if ids, n, err := s.idsOf(ctx, c); err == nil && p.Slot < n && int(p.Slot) < len(ids) && ids[p.Slot] != (ChunkID{}) {
		return ids[p.Slot], true
	}
	r, err := s.readHeader(ctx, p)
	if err != nil || r.kind != KindChunk {
		return ChunkID{}, false
	}
	return r.id, true
}

// Swap lets everybody read the new file, whose state was recorded durably, and removes the old one. Who is
// reading the old one at this moment looks again.
func (s *Store) Swap(r *Repacked) error {
	s.mu.Lock()
	old := s.containers[r.c.id]
	s.containers[r.c.id] = r.c
	s.mu.Unlock()
	s.ids.Remove(r.c.id)
	s.dedup.forget(r.freed)
	return s.removeFile(old)
}

// Drop removes the new file instead.
func (s *Store) Drop(r *Repacked) error { return s.removeFile(r.c) }

func (s *Store) removeFile(c *container) error {
	err := s.opts.FS.Remove(c.path)
	s.files.cache.Remove(c.path) // afterwards: nobody can open it again
	s.tables.Remove(tableKey{c.id, c.gen})
	return err
}

// replaced reports whether a container has a new file since c was looked up.
func (s *Store) replaced(c *container) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.containers[c.id]
	return now != nil && now != c
}

// settleGenerations leaves of the files of one container the one that was committed. The others hold the same
// chunks; a crash came between writing one and removing the other.
func (s *Store) settleGenerations(states map[ContainerID]State, known Known, rec *Recovery) error {
	s.mu.Lock()
	spare := s.spare
	s.spare = nil
	s.mu.Unlock()
	for _, c := range spare {
		if st, ok := states[c.id]; ok && st.Gen == c.gen {
			s.mu.Lock()
			c, s.containers[c.id] = s.containers[c.id], c
			s.mu.Unlock()
		}
		if !known.Trusted {
			rec.Unknown = append(rec.Unknown, c.path)
			continue
		}
		rec.Removed++
		if err := s.removeFile(c); err != nil {
			return err
		}
	}
	return nil
}
