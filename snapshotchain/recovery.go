package snapshotchain

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"livemount/internal/errs"
	"livemount/internal/kv"
	"livemount/internal/vfs"
	"livemount/snapshotchain/chunkstore"
)

// openMeta opens Badger and loads the catalogue. What does not verify, or does not add up, is put aside
// and made again from the containers.
func (s *Store) openMeta(ctx context.Context) error {
	dir := filepath.Join(s.opts.Dir, "meta")
	if err := s.finishRebuild(dir); err != nil {
		return err
	}
	older, err := s.tryMetaKeys(dir)
	if err == nil {
		err = s.metaIsCurrent(ctx)
	}
	if err == nil && older {
		return s.leaveOldKey(ctx, dir)
	}
	if !errs.Is(err, errs.Corrupt) {
		return err
	}
	if s.opts.remake {
		s.opts.Log.Info("metadata is made again from the containers")
	} else {
		s.addDamage(fmt.Sprintf("metadata was bad and was made again from the containers: %v", err))
	}
	return s.rebuild(ctx, dir)
}

// tryMetaKeys is tryMeta with the newest key, or with the older one that the metadata is still under after a rotation.
func (s *Store) tryMetaKeys(dir string) (older bool, err error) {
	if err = s.tryMeta(dir); !kv.IsOtherKey(err) || s.opts.Keys == nil {
		return false, err
	}
	newest := s.metaKey
	epochs := s.opts.Keys.Epochs()
	for _, e := range slices.Backward(epochs[:max(0, len(epochs)-1)]) {
		key, kerr := s.opts.Keys.MetaKey(e)
		if kerr != nil {
			return false, kerr
		}
		s.metaKey = key
		if terr := s.tryMeta(dir); !kv.IsOtherKey(terr) {
			return terr == nil, terr
		}
	}
	s.metaKey = newest
	return false, err
}

// leaveOldKey makes metadata again that is under a key from before a rotation, and does not keep it. When the journal has
// gaps the metadata knows more than can be made of it, and stays as it is.
func (s *Store) leaveOldKey(ctx context.Context, dir string) error {
	rep, err := s.chunks.Journal().Read(ctx, 1, func(uint64, []byte) error { return nil })
	if err != nil {
		return err
	}
	if len(rep.Gaps) > 0 || rep.Last < s.cat.root.Applied {
		s.addDamage("the journal has gaps: the metadata stays under the key from before the rotation")
		return nil
	}
	if s.metaKey, err = s.opts.Keys.MetaKey(s.opts.Keys.Newest()); err != nil {
		return err
	}
	s.opts.Log.Info("keys were rotated: metadata is made again from the containers")
	s.freshMeta = true
	return s.rebuild(ctx, dir)
}

func (s *Store) tryMeta(dir string) error {
	_, err := os.Lstat(dir)
	s.freshMeta = errs.Is(err, errs.NotFound)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	db, err := kv.Open(kv.Options{Dir: dir, Sync: true, Log: s.opts.Log, Key: s.metaKey})
	if err != nil {
		return err
	}
	s.db = db
	if s.cat, err = loadCatalog(db); err != nil {
		return err
	}
	s.cat.hasPoint = s.hasPoint
	return nil
}

// hasPoint reports whether Badger has the record of a point.
func (s *Store) hasPoint(key []byte, d digest) bool {
	val, err := s.db.Get(key)
	return err == nil && entryDigest(key, val) == d
}

// metaIsCurrent notices a Badger without a root above a journal with records: it lost everything.
func (s *Store) metaIsCurrent(ctx context.Context) error {
	if s.cat.root.Applied > 0 {
		return nil
	}
	rep, err := s.chunks.Journal().Read(ctx, 1, func(uint64, []byte) error { return nil })
	if err == nil && rep.Last > 1 { // a crash may come between the first record and its commit
		return errs.New(errs.Corrupt, "metadata is empty, the journal has %d records", rep.Last)
	}
	return err
}

// finishRebuild completes or drops a rebuild that a crash interrupted. The new folder has its final name
// only when it is complete.
func (s *Store) finishRebuild(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return vfs.RemoveAll(vfs.OS{}, dir+".new")
	}
	if _, err := os.Stat(filepath.Join(dir+".new", "COMPLETE")); err == nil {
		return s.adopt(dir)
	}
	return vfs.RemoveAll(vfs.OS{}, dir+".new")
}

func (s *Store) adopt(dir string) error {
	if err := os.Rename(dir+".new", dir); err != nil {
		return err
	}
	return vfs.OS{}.SyncDir(s.opts.Dir)
}

// rebuild makes Badger again from the journal and the map segments. The old folder is kept aside.
func (s *Store) rebuild(ctx context.Context, dir string) error {
	if s.db != nil {
		if err := s.db.Close(); err != nil {
			s.opts.Log.Warn("bad metadata was not closed cleanly", "err", err)
		}
		s.db = nil
	}
	fresh := dir + ".new"
	if err := vfs.RemoveAll(vfs.OS{}, fresh); err != nil {
		return err
	}
	if err := s.fill(ctx, fresh); err != nil {
		return fmt.Errorf("make metadata again: %w", err)
	}
	if err := vfs.WriteFile(vfs.OS{}, filepath.Join(fresh, "COMPLETE"), nil); err != nil {
		return err
	}
	aside := putAside
	if s.freshMeta { // there is nothing in it that should stay
		aside = func(dir string) error { return vfs.RemoveAll(vfs.OS{}, dir) }
	}
	if err := aside(dir); err != nil {
		return err
	}
	if err := s.adopt(dir); err != nil {
		return err
	}
	return s.tryMeta(dir)
}

// keptAside is how many bad metadata folders are kept, for whoever wants to know what happened: the first, and the newest.
const keptAside = 3

// putAside renames a folder to dir.bad-N, a number that is higher than those there are, and removes those in the middle.
func putAside(dir string) error {
	old, err := asideOf(dir)
	if err != nil {
		return err
	}
	next := 1
	if len(old) > 0 {
		next = old[len(old)-1] + 1
	}
	if err := os.Rename(dir, asideName(dir, next)); err != nil {
		if errs.Is(err, errs.NotFound) {
			return nil
		}
		return err
	}
	for i := 1; i < len(old)+2-keptAside; i++ {
		if err := vfs.RemoveAll(vfs.OS{}, asideName(dir, old[i])); err != nil {
			return err
		}
	}
	return nil
}

func asideName(dir string, n int) string { return fmt.Sprintf("%s.bad-%d", dir, n) }

// asideOf returns the numbers of what was put aside, ascending.
func asideOf(dir string) (list []int, err error) {
	entries, err := os.ReadDir(filepath.Dir(dir))
	for _, e := range entries {
		n, err := strconv.Atoi(strings.TrimPrefix(e.Name(), filepath.Base(dir)+".bad-"))
		if err == nil && n > 0 && e.Name() == filepath.Base(asideName(dir, n)) {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list, err
}

// fill applies the whole journal to a new database.
func (s *Store) fill(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	db, err := kv.Open(kv.Options{Dir: dir, Sync: false, Log: s.opts.Log, Key: s.metaKey})
	if err != nil {
		return err
	}
	s.db, s.cat = db, newCatalog()
	s.cat.hasPoint = s.hasPoint
	if err := s.replay(ctx); err != nil {
		return err
	}
	s.db = nil
	return db.Close() // writes all tables and syncs them
}

// replay applies the journal records that Badger does not have yet.
func (s *Store) replay(ctx context.Context) error {
	applied := s.cat.root.Applied
	if err := s.lookAhead(ctx, applied); err != nil {
		return err
	}
	rep, err := s.chunks.Journal().Read(ctx, max(1, applied), func(n uint64, payload []byte) error {
		if n <= applied {
			return nil
		}
		ch, err := decodeChange(payload)
		if errs.Is(err, errs.Corrupt) {
			s.distrust(fmt.Sprintf("journal record %d: %v", n, err))
			return nil
		}
		if err != nil {
			return err
		}
		return s.replayOne(ctx, n, ch)
	})
	if err != nil {
		return err
	}
	s.later = later{}
	s.distrust(rep.Gaps...)
	if rep.Last < applied {
		s.distrust(fmt.Sprintf("the journal ends at record %d, metadata at %d: its end was lost; points are complete in the metadata", rep.Last, applied))
	}
	s.chunks.Journal().SetNext(max(rep.Last, applied) + 1)
	return s.keepDistrust()
}

// finishJournal completes what a crash left of the journal, unless something of it is missing: then all stays as it is.
func (s *Store) finishJournal(ctx context.Context) error {
	if whole, err := s.chunks.JournalFinished(ctx); err != nil || whole {
		return err
	}
	rep, err := s.chunks.Journal().Read(ctx, 1, func(uint64, []byte) error { return nil })
	if err != nil || len(rep.Gaps) > 0 || rep.Last < s.cat.root.Applied {
		return err
	}
	return s.chunks.FinishJournal(ctx)
}

// later is what is gone by the end of the journal: seals before that need it, and nobody needs them any more. It is
// set while the journal is replayed.
type later struct {
	containers map[chunkstore.ContainerID]bool
	lineages   map[LineageID]bool
}

func (s *Store) lookAhead(ctx context.Context, applied uint64) error {
	s.later = later{map[chunkstore.ContainerID]bool{}, map[LineageID]bool{}}
	_, err := s.chunks.Journal().Read(ctx, applied+1, func(_ uint64, payload []byte) error {
		ch, err := decodeChange(payload)
		if err != nil || ch.Sweep == nil {
			return nil
		}
		for _, id := range ch.Sweep.Gone {
			s.later.containers[id] = true
		}
		for _, f := range ch.Sweep.Forgotten {
			if f.Whole {
				s.later.lineages[f.Lineage] = true
			}
		}
		return nil
	})
	return err
}

// distrust reports damage of the journal. What it does not name may be committed all the same, so nothing
// is removed until it is whole again.
func (s *Store) distrust(list ...string) {
	if len(list) > 0 {
		s.distrusted = true
		s.addDamage(list...)
	}
}

// keepDistrust remembers for good that the journal had gaps: what it lost is not found again by reading on
// behind it, and what nobody seems to have committed may belong to a point that it lost.
func (s *Store) keepDistrust() error {
	if s.cat.root.Distrusted {
		if !s.distrusted {
			s.distrusted = true
			s.addDamage("the journal had gaps when the store was opened before: nothing is cut or removed")
		}
		return nil
	}
	if !s.distrusted {
		return nil
	}
	s.cat.root.Distrusted = true
	return s.write(s.cat.putContainers(nil))
}

// replayOne applies one record. A record that contradicts those before it, because one was lost, is
// damage and is passed over.
func (s *Store) replayOne(ctx context.Context, n uint64, ch *change) error {
	err := s.applyChange(ctx, n, ch)
	if errs.Is(err, errs.Corrupt) {
		s.distrust(fmt.Sprintf("journal record %d was not applied: %v", n, err))
		return nil
	}
	return err
}

// applyChange brings a journal record into the catalogue and Badger. The caller holds commit, or nobody
// else has the store yet.
func (s *Store) applyChange(ctx context.Context, n uint64, ch *change) error {
	if ch.Seal != nil {
		if err := s.opts.AdmitCommit(); err != nil {
			return err
		}
		if err := s.prepareSeal(ctx, ch.Seal); err != nil {
			return err
		}
	}
	// Readers wait: the catalogue must not name a point that Badger does not have yet.
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.cat.apply(n, ch)
	if err != nil {
		return err
	}
	return s.write(p)
}

// statesAtOnce bounds a transaction; Badger refuses those of more than about 2 MB.
const statesAtOnce = 2000

// prepareSeal brings what may be large into Badger before the transaction that makes the point visible.
// A crash in between does no harm: it is done again from the journal, and comes out the same.
func (s *Store) prepareSeal(ctx context.Context, c *sealChange) error {
	if err := s.indexSegments(ctx, c.Seals); err != nil {
		return err
	}
	for list := c.Containers; len(list) > statesAtOnce; list = list[statesAtOnce:] {
		s.mu.Lock()
		p := s.cat.putContainers(list[:statesAtOnce])
		s.mu.Unlock()
		if err := s.write(p); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) write(p *puts) error {
	return s.db.Update(func(tx kv.Tx) error {
		for i, key := range p.keys {
			var err error
			if p.vals[i] == nil {
				err = tx.Delete(key)
			} else {
				err = tx.Put(key, p.vals[i])
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// indexSegments puts seals, and the leaves and directory pages of their map segments, into Badger. A part that cannot be
// read is damage of the ranges that it maps; they are found when they are read.
func (s *Store) indexSegments(ctx context.Context, seals []seal) error {
	b := s.db.NewBatch()
	for i := range seals {
		if s.later.lineages[seals[i].Lineage] {
			continue
		}
		if err := b.Put(keySeal(seals[i].Lineage, seals[i].Seq), mustJSON(&seals[i])); err != nil {
			b.Cancel()
			return err
		}
		for _, part := range seals[i].Parts {
			if s.later.containers[part.Ptr.Container] || s.chunks.IsFreed(ctx, part.Ptr) {
				continue // nobody needs it any more
			}
			err := s.eachInPart(ctx, &seals[i], part, func(n uint32, val []byte) error {
				return b.Put(partKey(part.Kind, seals[i].Lineage, n, seals[i].Seq), val)
			})
			if errs.Is(err, errs.Corrupt) {
				s.addDamage(fmt.Sprintf("map segment of lineage %s, point %d: %v", seals[i].Lineage, seals[i].Seq, err))
				continue
			}
			if err != nil {
				b.Cancel()
				return err
			}
		}
	}
	return b.Flush()
}

func partKey(kind PartKind, l LineageID, n uint32, seq Seq) []byte {
	if kind == PartDirs {
		return keyDir(l, n, seq)
	}
	return keyLeaf(l, n, seq)
}

func (s *Store) eachInPart(ctx context.Context, sl *seal, part Part, fn func(uint32, []byte) error) error {
	raw, err := s.chunks.ReadRecord(ctx, part.Ptr, chunkstore.KindMap)
	if err != nil {
		return err
	}
	return eachEntry(raw, sl.Lineage, sl.Seq, part.Kind, fn)
}

// recover ends the drafts that a crash left and brings the containers to their committed state.
func (s *Store) recover(ctx context.Context) error {
	known := chunkstore.Known{Drafts: map[chunkstore.DraftID]bool{}, Trusted: !s.distrusted}
	for _, st := range s.cat.containers {
		known.States = append(known.States, st)
	}
	var drafts []chunkstore.DraftID
	for id := range s.cat.drafts {
		known.Drafts[id] = true
		drafts = append(drafts, id)
	}
	s.chunks.ReserveIDs(s.cat.root.NextID)
	rec, err := s.chunks.Recover(ctx, known)
	if err != nil {
		return err
	}
	if len(rec.Cleared) > 0 {
		if err := s.write(s.cat.dropContainers(rec.Cleared)); err != nil {
			return err
		}
	}
	s.addDamage(rec.Damage...)
	for _, path := range rec.Unknown {
		s.addDamage("container that nobody committed is kept: " + path)
	}
	if err := firstError(s.loadBad(), s.loadScrubbed()); err != nil {
		return err
	}
	if len(rec.Changed) > 0 {
		if err := s.write(s.cat.putContainers(rec.Changed)); err != nil {
			return err
		}
	}
	if s.distrusted {
		return nil
	}
	for _, id := range drafts {
		if _, err := s.record(ctx, &change{Abort: &abortChange{Draft: id}}); err != nil {
			return err
		}
	}
	return nil
}

// record makes a change durable in the journal, applies it, and returns its number. After an error behind
// the journal the store takes no more changes: what the journal holds is applied when it is opened again.
func (s *Store) record(ctx context.Context, ch *change) (uint64, error) {
	s.commit.Lock()
	defer s.commit.Unlock()
	return s.recordLocked(ctx, ch)
}

func (s *Store) recordLocked(ctx context.Context, ch *change) (uint64, error) {
	admit := s.opts.AdmitCommit
	if ch.Drop != nil || ch.Sweep != nil {
		admit = s.opts.AdmitFreeingCommit
	}
	if err := firstError(s.writable(), admit()); err != nil {
		return 0, err
	}
	ch.At, _ = s.clock.now()
	n, err := s.chunks.Journal().Append(mustJSON(ch))
	if err != nil {
		if jerr := s.chunks.Journal().Err(); jerr != nil {
			s.fail(jerr)
		}
		return 0, err
	}
	if err := s.applyChange(context.WithoutCancel(ctx), n, ch); err != nil {
		err = fmt.Errorf("apply journal record %d: %w", n, err)
		s.fail(err)
		return 0, errs.WithTry(err, "restart livemountd: the change is in the journal and is applied then")
	}
	return n, nil
}

func (s *Store) writable() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.broken != nil {
		return errs.WithTry(fmt.Errorf("store takes no more changes: %w", s.broken), "restart livemountd")
	}
	return nil
}

func firstError(list ...error) error {
	for _, err := range list {
		if err != nil {
			return err
		}
	}
	return nil
}
