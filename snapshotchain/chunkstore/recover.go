package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"path"

	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// Recovery is what Recover found and did.
type Recovery struct {
	Changed []State       // states to record: containers that were sealed now
	Cleared []ContainerID // that were gone, and whose files are removed now
	Damage  []string      // committed bytes that are missing or bad, for people
	Unknown []string      // files that nobody committed and nobody is known to have left; they are kept
	Removed int           // containers of drafts that were never committed
}

// Known is what the caller's journal and tables say.
type Known struct {
	States []State
	// Drafts began and were never committed: what they wrote goes.
	Drafts map[DraftID]bool
	// Trusted says that States is complete. When it is not, nothing is cut or removed.
	Trusted bool
}

// Recover brings the containers to their committed state: what a crash left behind it is cut away, and
// what was open is sealed, for a container that a crash has seen is never appended to again.
func (s *Store) Recover(ctx context.Context, known Known) (*Recovery, error) {
	rec := &Recovery{}
	states := map[ContainerID]State{}
	for _, st := range known.States {
		s.ReserveIDs(st.ID + 1)
		if !st.Gone {
			states[st.ID] = st
			continue
		}
		if !known.Trusted {
			continue
		}
		if err := s.clear(st.ID); err != nil {
			return rec, fmt.Errorf("remove container %s: %w", st.ID, err)
		}
		rec.Cleared = append(rec.Cleared, st.ID)
	}
	for _, name := range s.unfinished {
		if err := s.opts.FS.Remove(name); err != nil {
			return rec, err
		}
	}
	s.unfinished = nil
	if err := s.settleGenerations(states, known, rec); err != nil {
		return rec, err
	}
	for _, class := range []Class{ClassData, ClassMap} {
		for _, c := range s.sorted(class) {
			st, ok := states[c.id]
			delete(states, c.id)
			if err := s.recoverOne(ctx, c, st, ok, known, rec); err != nil {
				return rec, fmt.Errorf("recover container %s: %w", c.id, err)
			}
		}
	}
	for id := range states {
		rec.Damage = append(rec.Damage, fmt.Sprintf("container %s is missing", id))
	}
	// A removed name must not come back after the drafts that it belonged to have ended.
	if err := s.syncNames(); err != nil {
		return rec, err
	}
	dedup, err := openDedup(ctx, s)
	if err != nil {
		return rec, err
	}
	s.dedup = dedup
	return rec, nil
}

func (s *Store) recoverOne(ctx context.Context, c *container, st State, committed bool, known Known, rec *Recovery) error {
	switch {
	case committed && st.Sealed:
		c.state = st
		return nil
	case committed:
		c.state = st
		return s.finish(ctx, c, known.Trusted, rec)
	}
	h, err := s.containerHeader(ctx, c)
	if errs.Is(err, errs.Newer) {
		return err
	}
	// A header that was never written is an empty container of a draft that a crash interrupted.
	empty := false
	if err != nil {
		info, serr := s.opts.FS.Stat(c.path)
		empty = serr == nil && info.SizeBytes < headerBytes
	}
	if known.Trusted && (empty || (err == nil && known.Drafts[h.draft])) {
		rec.Removed++
		return s.remove(c)
	}
	rec.Unknown = append(rec.Unknown, c.path)
	return nil
}

func (s *Store) remove(c *container) error {
	s.mu.Lock()
	delete(s.containers, c.id)
	s.mu.Unlock()
	s.files.cache.Remove(c.path)
	return s.opts.FS.Remove(c.path)
}

// finish cuts a committed container at its committed end and seals it.
func (s *Store) finish(ctx context.Context, c *container, mayCut bool, rec *Recovery) error {
	s.files.cache.Remove(c.path)
	f, err := s.opts.FS.OpenRW(c.path)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return err
	}
	if t, err := readTrailer(f, size); err == nil && t.off == c.state.Bytes && t.id == c.id {
		if err := f.Sync(); err != nil {
			return err
		}
		c.state.Sealed = true
		rec.Changed = append(rec.Changed, c.state)
		return nil
	}
	if size < c.state.Bytes {
		rec.Damage = append(rec.Damage, fmt.Sprintf("container %s ends at %d, not at %d", c.id, size, c.state.Bytes))
		return nil
	}
	if !mayCut {
		return nil
	}
	return s.cutAndSeal(ctx, c, f, rec)
}

type truncater interface {
	Truncate(int64) error
	Sync() error
	ReadAt([]byte, int64) (int, error)
	WriteAt([]byte, int64) (int, error)
}

func (s *Store) cutAndSeal(ctx context.Context, c *container, f truncater, rec *Recovery) error {
	if err := f.Truncate(c.state.Bytes); err != nil {
		return err
	}
	b := make([]byte, c.state.Bytes)
	if err := readFull(f, b, 0); err != nil {
		return err
	}
	h, err := parseContainerHeader(b)
	if err != nil && s.opts.Keys != nil { // without its salt nothing in it can be read
		rec.Damage = append(rec.Damage, fmt.Sprintf("container %s: %v", c.id, err))
		return nil
	}
	if err != nil {
		h = &header{class: c.class, store: s.opts.Store, id: c.id, gen: c.gen}
	}
	res := scan(newSeed(s.opts.Store, c.id), b)
	if res.bad > 0 || len(res.slots) != int(c.state.Slots) {
		rec.Damage = append(rec.Damage, fmt.Sprintf("container %s holds %d of %d records", c.id, len(res.slots), c.state.Slots))
	}
	if _, err := f.WriteAt(encodeFooter(h, c.state.Bytes, res.slots, res.ids), c.state.Bytes); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	c.state.Sealed = true
	rec.Changed = append(rec.Changed, c.state)
	return ctx.Err()
}

// syncNames makes the names of all containers durable, and that others are gone.
func (s *Store) syncNames() error {
	data := path.Join(s.opts.Dir, ClassData.String())
	names, err := s.opts.FS.List(data)
	if err != nil {
		return err
	}
	dirs := []string{data, path.Join(s.opts.Dir, ClassMap.String()), path.Join(s.opts.Dir, ClassJournal.String()), s.opts.Dir, path.Dir(s.opts.Dir)}
	for _, n := range names {
		dirs = append(dirs, path.Join(data, n))
	}
	for _, d := range dirs {
		if err := s.opts.FS.SyncDir(d); err != nil {
			return err
		}
	}
	return nil
}

// eachID calls fn with the id and place of every committed chunk, from the footers.
func (s *Store) eachID(ctx context.Context, fn func(ChunkID, Ptr) error) error {
	for _, c := range s.sorted(ClassData) {
		if err := ctx.Err(); err != nil {
			return err
		}
		ids, n, err := s.idsOf(ctx, c)
		if errs.Is(err, errs.Corrupt) {
			continue // its chunks are not found again; nothing depends on it
		}
		if err != nil {
			return err
		}
		for i := range min(len(ids), int(n)) {
			if err := fn(ids[i], Ptr{c.id, uint32(i)}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Store) idsOf(ctx context.Context, c *container) ([][32]byte, uint32, error) {
	c.mu.Lock()
	app, n := c.app, c.state.Slots
	c.mu.Unlock()
	if app != nil {
		return nil, 0, nil // written now, indexed now
	}
	f, err := s.files.acquire(ctx, c.path)
	if err != nil {
		return nil, 0, errors.Join(missing(c, err))
	}
	defer f.release()
	_, ids, err := readFooter(f, c.id, true)
	return ids, n, err
}

// FindStore returns the store that the containers below dir belong to, and whether it is encrypted, from the first good
// header. NotFound when there are no containers.
func FindStore(fsys vfs.FS, dir string) (id StoreID, encrypted bool, err error) {
	found := errs.New(errs.NotFound, "no containers below %s", dir)
	for _, class := range []Class{ClassJournal, ClassMap} {
		sub := path.Join(dir, class.String())
		names, err := fsys.List(sub)
		if err != nil && !errs.Is(err, errs.NotFound) {
			return StoreID{}, false, err
		}
		for _, name := range names {
			h, err := readHeaderFile(fsys, path.Join(sub, name))
			if err == nil {
				return h.store, h.keyID != 0, nil
			}
			found = errs.New(errs.Corrupt, "%s: %w", path.Join(sub, name), err)
		}
	}
	return StoreID{}, false, found
}

func readHeaderFile(fsys vfs.FS, name string) (*header, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, headerBytes)
	if err := readFull(f, b, 0); err != nil {
		return nil, err
	}
	return parseContainerHeader(b)
}
