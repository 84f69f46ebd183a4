package chunkstore

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"sort"
	"strings"
	"sync"

	"livemount/internal/cache"
	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/keyring"
)

// Options say how a Store is opened. FS, Dir, Store and Clock must be set.
type Options struct {
	FS     vfs.FS
	Dir    string // of the containers
	Store  StoreID
	Secret []byte        // of the hash keys; the store id when nil
	Keys   *keyring.Keys // of an encrypted store; Secret is theirs then
	Clock  clock.Clock
	Log    *slog.Logger

	DedupKey       []byte // encrypts the dedup index; nil is not
	DedupDir       string // of the dedup index on the machine's file system; "" keeps none
	ContainerBytes int64  // size at which a container is sealed; default 64 MiB
	CacheBytes     int64  // decoded chunks; default 64 MiB
	TableBytes     int64  // slot tables; default 16 MiB
	OpenFiles      int    // default 256
	// Admit is asked before a container grows by n bytes; an error, NoSpace, ends the Writer. AdmitFreeing is asked
	// instead for a container that is written anew without what nobody points to; default Admit.
	Admit, AdmitFreeing func(n int64) error
	// OnBad is told once of each record whose bytes turned out to be bad.
	OnBad func(Ptr, error)
}

func (o *Options) setDefaults() {
	if o.Keys != nil {
		o.Secret = o.Keys.HashSecret()
	}
	if o.Secret == nil {
		o.Secret = o.Store[:]
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.ContainerBytes == 0 {
		o.ContainerBytes = 64 << 20
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = 64 << 20
	}
	if o.TableBytes == 0 {
		o.TableBytes = 16 << 20
	}
	if o.OpenFiles == 0 {
		o.OpenFiles = 256
	}
	if o.Admit == nil {
		o.Admit = func(int64) error { return nil }
	}
	if o.AdmitFreeing == nil {
		o.AdmitFreeing = o.Admit
	}
	if o.OnBad == nil {
		o.OnBad = func(Ptr, error) {}
	}
}

// Store is the set of containers of a store.
type Store struct {
	opts    Options
	codecs  *codecs
	files   *files
	tables  *cache.Cache[tableKey, []slot]
	ids     *cache.Cache[ContainerID, [][32]byte]
	chunks  *cache.Cache[Ptr, []byte]
	dedup   *dedupIndex
	journal *Journal
	buffers sync.Pool // of *[]byte, for reading records

	mu         sync.Mutex // guards what is below
	containers map[ContainerID]*container
	spare      []*container           // other generations of those, until Recover
	unfinished []string               // files that a crash left half written, until Recover
	pool       map[Class][]*container // open for appending, owned by nobody
	nextID     ContainerID
	bad        map[Ptr]struct{}
	writers    map[*Writer]struct{} // that have not ended
}

// badLimit bounds the records remembered as bad; more than that and the disk is gone.
const badLimit = 1 << 16

// Open lists the containers below opts.Dir, making the folder when it is missing. Recover must be called
// before anything is written.
func Open(opts Options) (*Store, error) {
	opts.setDefaults()
	c, err := newCodecs()
	if err != nil {
		return nil, err
	}
	s := &Store{
		opts: opts, codecs: c, files: newFiles(opts.FS, opts.OpenFiles),
		tables:     cache.New(opts.TableBytes, func(t []slot) int64 { return int64(len(t))*12 + 64 }, nopTable),
		ids:        cache.New(opts.TableBytes/2, func(t [][32]byte) int64 { return int64(len(t))*32 + 64 }, func(ContainerID, [][32]byte) {}),
		chunks:     cache.New(opts.CacheBytes, func(b []byte) int64 { return int64(len(b)) + 128 }, nopChunk),
		containers: map[ContainerID]*container{}, pool: map[Class][]*container{},
		nextID: 1, bad: map[Ptr]struct{}{}, writers: map[*Writer]struct{}{},
	}
	s.journal = &Journal{s: s}
	if err := s.list(); err != nil {
		c.close()
		return nil, err
	}
	return s, nil
}

// tableKey names the file of a container: its generations have different tables.
type tableKey struct {
	id  ContainerID
	gen uint32
}

func nopTable(tableKey, []slot) {}
func nopChunk(Ptr, []byte)      {}

func (s *Store) list() error {
	for _, class := range []Class{ClassData, ClassMap, ClassJournal} {
		dir := path.Join(s.opts.Dir, class.String())
		if err := makeDurableDir(s.opts.FS, dir); err != nil {
			return err
		}
		names, err := s.opts.FS.List(dir)
		if err != nil {
			return err
		}
		if class != ClassData {
			s.listNames(class, dir, names)
			continue
		}
		for _, sub := range names {
			names, err := s.opts.FS.List(path.Join(dir, sub))
			if err != nil {
				return err
			}
			s.listNames(class, path.Join(dir, sub), names)
		}
	}
	return nil
}

func (s *Store) listNames(class Class, dir string, names []string) {
	for _, name := range names {
		id, gen, ok := parseFileName(name)
		if !ok && strings.HasSuffix(name, newSuffix) {
			s.unfinished = append(s.unfinished, path.Join(dir, name))
			continue
		}
		if !ok {
			s.opts.Log.Warn("file ignored", "path", path.Join(dir, name))
			continue
		}
		c := &container{id: id, gen: gen, class: class, path: path.Join(dir, name)}
		if old := s.containers[id]; old != nil {
			if old.gen > gen {
				c, old = old, c
			}
			s.spare = append(s.spare, old)
		}
		s.containers[id] = c
		s.nextID = max(s.nextID, id+1)
	}
}

// ReserveIDs makes ids below next unavailable: they were used by containers that are gone.
func (s *Store) ReserveIDs(next ContainerID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextID = max(s.nextID, next)
}

// NextID returns the id that the next container gets at least.
func (s *Store) NextID() ContainerID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nextID
}

// Hasher returns a new Hasher with the store's keys.
func (s *Store) Hasher() *Hasher { return NewHasher(s.opts.Secret) }

// Journal returns the journal.
func (s *Store) Journal() *Journal { return s.journal }

func (s *Store) container(id ContainerID) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[id]
	if c == nil {
		return nil, errs.New(errs.Corrupt, "container %s is missing", id)
	}
	return c, nil
}

// newContainer makes a container that only the draft may append to.
func (s *Store) newContainer(class Class, draft DraftID, firstSeq uint64) (*container, error) {
	s.mu.Lock()
	id := s.nextID
	s.nextID++
	s.mu.Unlock()
	c, err := s.createContainer(fileName(class, id, 0), header{
		class: class, store: s.opts.Store, id: id, created: s.opts.Clock.Now().UnixNano(), draft: draft, firstSeq: firstSeq,
	})
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", id, err)
	}
	s.mu.Lock()
	s.containers[id] = c
	s.mu.Unlock()
	return c, nil
}

// sorted returns the containers of a class by id.
func (s *Store) sorted(class Class) []*container {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*container
	for _, c := range s.containers {
		if c.class == class {
			list = append(list, c)
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].id < list[j].id })
	return list
}

// MarkBad remembers that a record's bytes are bad, so that no chunk is deduplicated against it.
func (s *Store) MarkBad(p Ptr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.bad[p]; ok || len(s.bad) >= badLimit {
		return false
	}
	s.bad[p] = struct{}{}
	return true
}

// UnmarkBad forgets that a record is bad: it was written again, or is gone.
func (s *Store) UnmarkBad(p Ptr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.bad, p)
}

// IsBad says whether a record was found to be bad.
func (s *Store) IsBad(p Ptr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.bad[p]
	return ok
}

// CacheStats returns the counters of the cache of decoded chunks.
func (s *Store) CacheStats() cache.Stats { return s.chunks.Stats() }

// DropCaches forgets decoded chunks and slot tables; they are read again when needed.
func (s *Store) DropCaches() {
	s.chunks.Clear()
	s.tables.Clear()
}

// Close seals the containers that are open for appending and closes all files. No Writer may be in use.
func (s *Store) Close(context.Context) error {
	var first error
	keep := func(err error) {
		if err != nil && first == nil {
			first = err
		}
	}
	s.mu.Lock()
	pool := s.pool
	s.pool = map[Class][]*container{}
	s.mu.Unlock()
	for _, list := range pool {
		for _, c := range list {
			keep(s.sealContainer(c))
		}
	}
	keep(s.journal.close())
	keep(s.dedup.close())
	s.files.cache.Clear()
	s.codecs.close()
	return first
}

// sealContainer ends appending to c for good.
func (s *Store) sealContainer(c *container) error {
	c.mu.Lock()
	app := c.app
	c.mu.Unlock()
	if app == nil {
		return nil
	}
	err := app.seal()
	if err == nil {
		c.mu.Lock()
		c.app = nil
		c.state.Sealed = true
		c.mu.Unlock()
		err = app.file.Close()
	}
	if err != nil {
		return fmt.Errorf("seal container %s: %w", c.id, err)
	}
	return nil
}
