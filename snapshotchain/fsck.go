package snapshotchain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"livemount/internal/errs"
	"livemount/internal/kv"
	"livemount/internal/vfs"
	"livemount/snapshotchain/chunkstore"
)

// CheckOptions say how a stopped store is checked.
type CheckOptions struct {
	Quick bool                 // the records themselves are not read
	Step  func(string)         // told of what begins; may be nil
	Read  func(n, total int64) // told of bytes of containers that were read; may be nil
}

// Checked is what Check found.
type Checked struct {
	Points     uint64
	Containers int
	ReadBytes  int64
	Pointers   int64    // of the map
	Damage     []string // for people
	Touched    []Touch  // ranges that cannot be read
	Notes      []string // what is mended at the next start
}

// Check looks at everything that a stopped store holds and changes nothing of it: the journal, all records of all
// containers, and whether what every point needs is there. For that it makes the metadata anew from the containers, in a folder
// of its own, which it removes. Busy while a process has the store.
func Check(ctx context.Context, opts Options, o CheckOptions) (*Checked, error) {
	if _, err := os.Stat(opts.Dir); err != nil {
		return nil, err
	}
	opts.setDefaults()
	if o.Step == nil {
		o.Step = func(string) {}
	}
	if o.Read == nil {
		o.Read = func(int64, int64) {}
	}
	lock, err := takeLock(opts.Dir)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	c := &checker{s: newStore(opts, lock), o: o, dir: filepath.Join(opts.Dir, "meta.fsck")}
	err = c.run(ctx)
	c.s.ahead.close()
	return &c.out, firstError(err, vfs.RemoveAll(vfs.OS{}, c.dir))
}

// checker is a Check that runs.
type checker struct {
	s   *Store
	o   CheckOptions
	dir string
	out Checked
}

func (c *checker) note(format string, args ...any) {
	c.out.Notes = append(c.out.Notes, fmt.Sprintf(format, args...))
}

func (c *checker) run(ctx context.Context) error {
	if err := c.format(); err != nil {
		return err
	}
	if err := c.s.openChunks(func(p chunkstore.Ptr, err error) { c.s.noteBad(p, err.Error()) }); err != nil {
		return err
	}
	c.o.Step("make the metadata anew from the journal and the map")
	if err := vfs.RemoveAll(vfs.OS{}, c.dir); err != nil {
		return err
	}
	if err := c.s.fill(ctx, c.dir); err != nil {
		return err
	}
	if err := c.s.tryMeta(c.dir); err != nil {
		return err
	}
	err := c.containers(ctx)
	if err == nil {
		err = c.points(ctx)
	}
	if err == nil {
		err = c.metadata()
	}
	damage, _ := c.s.Health()
	c.out.Damage = append(c.out.Damage, damage...)
	return firstError(err, c.s.db.Close())
}

// format reads FORMAT; one that is missing or bad is written again at the next start.
func (c *checker) format() (err error) {
	path := filepath.Join(c.s.opts.Dir, "FORMAT")
	if _, err := readFormat(path); errs.Is(err, errs.NotFound) || errs.Is(err, errs.Corrupt) {
		c.note("%v: it is written again at the next start", err)
	}
	c.s.format, _, err = bestFormat(c.s.opts.Dir)
	if errs.Is(err, errs.NotFound) || errs.Is(err, errs.Corrupt) {
		c.s.format = &formatFile{}
		c.s.format.id, err = c.s.storeOf()
	}
	if err != nil {
		return err
	}
	c.s.id = c.s.format.id
	return c.s.unlock()
}

// containers looks whether all are there and long enough, and reads them.
func (c *checker) containers(ctx context.Context) error {
	c.o.Step("look at the containers")
	var states []chunkstore.State
	for _, st := range c.s.cat.containers {
		states = append(states, st)
	}
	c.out.Containers = len(states)
	list, missing := c.s.chunks.CheckStates(states)
	drafts := map[chunkstore.DraftID]bool{}
	for id := range c.s.cat.drafts {
		drafts[id] = true
	}
	missing = append(missing, c.s.chunks.Unknown(ctx, states, drafts)...)
	c.out.Damage = append(c.out.Damage, missing...)
	if c.o.Quick {
		return nil
	}
	c.o.Step("read the containers")
	var total int64
	for _, f := range list {
		total += f.Bytes
	}
	pace := func(ctx context.Context, n int64) (func(), error) {
		c.out.ReadBytes += n
		c.o.Read(min(c.out.ReadBytes, total), total)
		return func() {}, ctx.Err()
	}
	c.out.ReadBytes = 0
	var read int64
	for _, f := range list {
		n, _, err := c.s.chunks.VerifyContainer(ctx, f.ID, pace)
		read += n
		if errs.Is(err, errs.Corrupt) {
			c.out.Damage = append(c.out.Damage, fmt.Sprintf("container %s: %v", f.ID, err))
			continue
		}
		if err != nil {
			return err
		}
	}
	c.out.ReadBytes = read
	return nil
}

// points looks whether everything is there that the points need.
func (c *checker) points(ctx context.Context) error {
	c.o.Step("follow the map of every point")
	c.s.mu.RLock()
	var states []chunkstore.State
	for _, st := range c.s.cat.containers {
		if !st.Gone {
			states = append(states, st)
		}
	}
	c.s.mu.RUnlock()
	live := newSlotSet(states)
	keep, err := c.s.whatIsKept(ctx)
	if err != nil {
		return err
	}
	m := &marker{s: c.s, keep: keep, live: live, damaged: func(err error) { c.out.Damage = append(c.out.Damage, err.Error()) }}
	if err := m.mark(ctx, nil); err != nil {
		return err
	}
	c.out.Points, c.out.Pointers = keep.points, m.pointers
	for i := range live.states {
		if err := c.needed(ctx, live, i); err != nil {
			return err
		}
	}
	if c.s.BadRecords() > 0 {
		c.out.Touched, err = c.s.Touched(ctx)
	}
	return err
}

// needed notes the records of a container that are needed and not there.
func (c *checker) needed(ctx context.Context, live *slotSet, i int) error {
	st := live.states[i]
	if live.count(i) == 0 {
		return nil
	}
	there := map[uint32]bool{}
	err := c.s.chunks.EachSlot(ctx, st.ID, func(n uint32, _ int64) { there[n] = true })
	if err != nil && !errs.Is(err, errs.Corrupt) {
		return err
	}
	for n := range st.Slots {
		p := chunkstore.Ptr{Container: st.ID, Slot: n}
		if live.has(p) && !there[n] {
			c.s.noteBad(p, "it is needed, and is not there")
		}
	}
	return nil
}

// metadata looks at what is there of it; it is no part of the truth.
func (c *checker) metadata() error {
	c.o.Step("look at the metadata")
	dir := filepath.Join(c.s.opts.Dir, "meta")
	if _, err := os.Stat(dir); errs.Is(err, errs.NotFound) {
		c.note("%s is missing: it is made again at the next start", dir)
		return nil
	}
	if err := kv.Verify(dir, c.s.metaKey); err != nil {
		if !errs.Is(err, errs.Corrupt) {
			return err
		}
		c.note("%v: the metadata is made again at the next start", err)
	}
	return nil
}

// olderJournal is Corrupt when the metadata has changes that the journal lost: made again of that, they would be gone.
func olderJournal(ctx context.Context, opts Options, lock *os.File) error {
	dir := filepath.Join(opts.Dir, "meta")
	if _, err := os.Stat(dir); err != nil {
		return nil
	}
	s := newStore(opts, lock)
	defer s.ahead.close()
	if err := s.loadFormat(); err != nil {
		return err
	}
	if err := s.openChunks(func(chunkstore.Ptr, error) {}); err != nil {
		return err
	}
	rep, err := s.chunks.Journal().Read(ctx, 1, func(uint64, []byte) error { return nil })
	if err != nil {
		return err
	}
	_, err = s.tryMetaKeys(dir)
	if s.db != nil {
		defer s.db.Close()
	}
	if errs.Is(err, errs.Corrupt) {
		return nil // it has nothing to lose
	}
	if err == nil && s.cat.root.Applied > rep.Last {
		err = errs.WithTry(errs.New(errs.Corrupt, "the journal ends at record %d and the metadata at %d: made again of the journal, points would be lost", rep.Last, s.cat.root.Applied),
			"livemountd with the metadata as it is, and mountctl export")
	}
	return err
}

// Rebuild makes the metadata and the dedup index of a stopped store again from its containers, and returns what was
// damaged there. What the metadata was is kept as meta.bad-N.
func Rebuild(ctx context.Context, opts Options) (damage []string, err error) {
	opts.setDefaults()
	if _, err := os.Stat(filepath.Join(opts.Dir, "containers")); err != nil {
		return nil, err
	}
	lock, err := takeLock(opts.Dir)
	if err != nil {
		return nil, err
	}
	if err := olderJournal(ctx, opts, lock); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	err = firstError(putAside(filepath.Join(opts.Dir, "meta")), vfs.RemoveAll(vfs.OS{}, filepath.Join(opts.Dir, "dedup")))
	if err = firstError(err, lock.Close()); err != nil {
		return nil, err
	}
	opts.remake = true
	s, err := Open(ctx, opts)
	if err != nil {
		return nil, err
	}
	s.chunks.WaitDedup()
	damage, _ = s.Health()
	return damage, s.Close(ctx)
}
