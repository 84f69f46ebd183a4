package snapshotchain

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"sync"

	"livemount/internal/cache"
	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/gate"
	"livemount/internal/kv"
	"livemount/internal/vfs"
	"livemount/keyring"
	"livemount/snapshotchain/chunkstore"
)

// Options say how a Store is opened. Dir, FS and Clock must be set.
type Options struct {
	Dir    string          // on the machine's file system: Badger is there, and, unless Containers is set, the containers
	FS     vfs.FS          // holds the containers
	Secret *keyring.Secret // opens an encrypted store
	Keys   *keyring.Keys   // instead, when they are open already
	Clock  clock.Clock
	Log    *slog.Logger
	remake bool // Rebuild asks for metadata to be made again: it is no damage

	Containers     string              // folder of the containers in FS; default Dir/containers
	ContainerBytes int64               // default 64 MiB
	ChunkCache     int64               // bytes of decoded chunks; default 64 MiB
	LeafCache      int64               // bytes of resolved leaves; default 32 MiB
	Admit          func(n int64) error // asked before containers grow by n bytes; nil is always
	AdmitFreeing   func(n int64) error // the same for one that is written anew to free more than that; nil is Admit
	AdmitCommit    func() error        // asked before a change is recorded; nil is always
	ScatterLimit   int                 // chunks that 8 MiB of a disk may lie in before they are gathered; default 400
	Gate           *gate.Gate          // shares the machine with guests; nil lets everybody run
	// AdmitFreeingCommit is asked instead for a change that lets files be removed; nil is AdmitCommit.
	AdmitFreeingCommit func() error
	// CatchUp is by how much the store's clock comes nearer to the machine's in each unit of running time; default 1.
	CatchUp float64
}

func (o *Options) setDefaults() {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Containers == "" {
		o.Containers = filepath.Join(o.Dir, "containers")
	}
	if o.AdmitCommit == nil {
		o.AdmitCommit = func() error { return nil }
	}
	if o.AdmitFreeingCommit == nil {
		o.AdmitFreeingCommit = o.AdmitCommit
	}
	if o.ScatterLimit == 0 {
		o.ScatterLimit = scatterLimit
	}
	if o.CatchUp == 0 {
		o.CatchUp = 1
	}
	if o.LeafCache == 0 {
		o.LeafCache = 32 << 20
	}
}

// Store is an open store. One process owns it.
type Store struct {
	opts    Options
	id      chunkstore.StoreID
	keyMu   sync.Mutex // guards format, once the store is open
	format  *formatFile
	metaKey []byte // of Badger; nil when the store is not encrypted
	lock    *os.File
	db      *kv.DB
	chunks  *chunkstore.Store
	leaves  *cache.Cache[leafKey, []Run]
	dirs    *cache.Cache[leafKey, *dirPage]
	hashes  *cache.Cache[chunkstore.Ptr, []chunkstore.PageHash]
	points  *cache.Cache[pointsKey, []Point]
	ahead   *ahead
	pins    *pins
	clock   *storeClock // set once, when the catalogue is there

	distrusted bool // the journal has gaps; set while the store is opened
	later      later
	freshMeta  bool // Badger's folder was not there when it was opened

	packing turn // one Pack, Collect, Heal or Measure at a time

	scrubMu sync.Mutex // guards scrubs
	scrubs  map[chunkstore.ContainerID]scrubbed

	commit sync.Mutex // held from a journal record until it is in Badger: gives changes their order

	mu     sync.RWMutex // guards what is below
	cat    *catalog
	busy   map[string]bool // names of VMs that a draft is open for
	broken error           // Badger or the journal failed: no more changes until the store is opened again
	damage []string
	bad    map[chunkstore.Ptr]*badRecord
	usage  Usage
}

// leafKey names a version of a leaf or of a directory page.
type leafKey struct {
	lineage LineageID
	n       uint32
	seq     Seq
}

// Open opens the store in opts.Dir, or makes one when the folder is empty. It compares Badger with the
// journal, makes Badger again from the containers when it is bad, and cuts away what a crash left. Errors:
// Busy when another process has the store, Newer when a newer version wrote it.
func Open(ctx context.Context, opts Options) (*Store, error) {
	opts.setDefaults()
	lock, err := takeLock(opts.Dir)
	if err != nil {
		return nil, err
	}
	s := newStore(opts, lock)
	if err := s.start(ctx); err != nil {
		s.stop(ctx)
		return nil, fmt.Errorf("open store %s: %w", opts.Dir, err)
	}
	return s, nil
}

func newStore(opts Options, lock *os.File) *Store {
	s := &Store{opts: opts, lock: lock, packing: newTurn(), busy: map[string]bool{}, ahead: newAhead(), pins: newPins(), bad: map[chunkstore.Ptr]*badRecord{}, scrubs: map[chunkstore.ContainerID]scrubbed{}}
	s.leaves = cache.New(opts.LeafCache, func(r []Run) int64 { return int64(len(r))*24 + 128 }, func(leafKey, []Run) {})
	s.dirs = cache.New(opts.LeafCache/4, func(*dirPage) int64 { return dirLeaves*4 + 128 }, func(leafKey, *dirPage) {})
	s.hashes = cache.New(opts.LeafCache/4, func(h []chunkstore.PageHash) int64 { return int64(len(h))*16 + 128 },
		func(chunkstore.Ptr, []chunkstore.PageHash) {})
	s.points = cache.New(opts.LeafCache, func(p []Point) int64 { return int64(len(p))*1024 + 128 }, func(pointsKey, []Point) {})
	return s
}

func (s *Store) start(ctx context.Context) error {
	if err := s.loadFormat(); err != nil {
		return err
	}
	if err := s.openChunks(s.recordBad); err != nil {
		return err
	}
	if err := s.chunks.SettleJournal(ctx); err != nil {
		return err
	}
	if err := s.openMeta(ctx); err != nil {
		return err
	}
	if err := s.replay(ctx); err != nil {
		return err
	}
	if err := s.finishJournal(ctx); err != nil {
		return err
	}
	s.openClock()
	return s.recover(ctx)
}

func (s *Store) openChunks(onBad func(chunkstore.Ptr, error)) (err error) {
	if s.opts.Keys != nil {
		if s.metaKey, err = s.opts.Keys.MetaKey(s.opts.Keys.Newest()); err != nil {
			return err
		}
	}
	s.chunks, err = chunkstore.Open(chunkstore.Options{
		FS: s.opts.FS, Dir: s.opts.Containers, Store: s.id, Clock: s.opts.Clock, Log: s.opts.Log,
		Keys: s.opts.Keys, DedupKey: s.metaKey,
		DedupDir: filepath.Join(s.opts.Dir, "dedup"), ContainerBytes: s.opts.ContainerBytes,
		CacheBytes: s.opts.ChunkCache, Admit: s.opts.Admit, AdmitFreeing: s.opts.AdmitFreeing, OnBad: onBad,
	})
	return err
}

// Close ends the store cleanly. Drafts and Disks must be done with.
func (s *Store) Close(ctx context.Context) error { return s.stop(ctx) }

func (s *Store) stop(ctx context.Context) error {
	var first error
	keep := func(err error) {
		if err != nil && first == nil {
			first = err
		}
	}
	s.ahead.close()
	if s.clock != nil {
		keep(s.keepTimeIfRoom())
	}
	if s.chunks != nil {
		keep(s.chunks.Close(ctx))
	}
	if s.db != nil {
		keep(s.closeMeta())
	}
	keep(s.lock.Close())
	return first
}

// closeMeta closes Badger, unless the disk is too full for what it writes then: its log has everything.
func (s *Store) closeMeta() error {
	if err := s.opts.AdmitCommit(); err != nil {
		s.opts.Log.Warn("metadata was not closed cleanly", "err", err)
		return nil
	}
	return s.db.Close()
}

// fail stops all further changes.
func (s *Store) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken == nil {
		s.broken = err
		s.opts.Log.Error("store takes no more changes", "err", err)
	}
}

// Health returns what is wrong with the store: damage found, and the error that ended changes, if any.
func (s *Store) Health() (damage []string, broken error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return append(append([]string(nil), s.damage...), s.badTextsLocked()...), s.broken
}

func (s *Store) addDamage(list ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range list {
		s.opts.Log.Error("damage found", "what", d)
		if len(s.damage) < 1000 {
			s.damage = append(s.damage, d)
		}
	}
}

// VMs returns all VMs by name.
func (s *Store) VMs() []VM {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]VM, 0, len(s.cat.vms))
	for _, v := range s.cat.vms {
		list = append(list, *v)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list
}

// VM returns the VM of that name.
func (s *Store) VM(name string) (VM, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if v := s.cat.find(name); v != nil {
		return *v, nil
	}
	return VM{}, errs.WithTry(errs.New(errs.NotFound, "no VM is named %q", name), "mountctl vms")
}

// VMByID returns the VM or branch with this id.
func (s *Store) VMByID(id VMID) (VM, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if v := s.cat.vms[id]; v != nil {
		return *v, nil
	}
	return VM{}, errs.WithTry(errs.New(errs.NotFound, "VM %s is not there any more", id), "mountctl vms")
}

func (c *catalog) find(name string) *VM {
	for _, v := range c.vms {
		if v.Name == name {
			return v
		}
	}
	return nil
}

// Stats are the sizes of a store, in bytes.
type Stats struct {
	VMs, Points      int
	LogicalBytes     int64 // data of all points, as if nothing were shared
	UniqueBytes      int64 // of that, what is stored once, before compression
	StoredBytes      int64 // on disk
	MetadataBytes    int64
	Containers       int
	ChunkCacheBytes  int64
	ChunkCacheBudget int64
}

// Stats returns the sizes as of the last sealed point.
func (s *Store) Stats() Stats {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r, c := s.cat.root, s.chunks.CacheStats()
	vms := 0
	for _, v := range s.cat.vms {
		if v.Of == 0 { // branches are not counted
			vms++
		}
	}
	return Stats{
		VMs: vms, Points: int(r.Points), LogicalBytes: r.LogicalBytes, UniqueBytes: r.RawBytes,
		StoredBytes: max(0, r.StoredBytes), MetadataBytes: s.db.SizeBytes(), Containers: len(s.cat.containers),
		ChunkCacheBytes: c.UsedBytes, ChunkCacheBudget: c.Budget,
	}
}

// Gate returns what shares the machine with guests; nil when nothing does.
func (s *Store) Gate() *gate.Gate { return s.opts.Gate }

// ID returns the store's identity.
func (s *Store) ID() chunkstore.StoreID { return s.id }

// DropCaches forgets what was read; it is read again when it is needed.
func (s *Store) DropCaches() {
	s.chunks.DropCaches()
	s.leaves.Clear()
	s.dirs.Clear()
	s.hashes.Clear()
	s.points.Clear()
}
