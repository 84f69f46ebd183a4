// Package overlay is the redirect-on-write log of a writable mount.
//
// A Log is the one append-only log of several nodes (disks, scratch files). Device gives a
// blockdev.Device over the immutable base of a node; writes go to the log and never to the base.
//
// Guarantees:
//   - After any crash Open yields the state after an exact prefix of the records of all nodes, and that
//     prefix holds every record for which Sync returned nil.
//   - Every payload byte is under a checksum that is checked on each read. A bad range is an
//     errs.Corrupt error; the rest stays readable, and writing over it makes it good.
//   - After a failed fdatasync the log is failed: writes, zeroes and syncs return that error from then
//     on, reads go on. A full disk is errs.NoSpace, and the log works again when there is room.
//   - A second log (Fork) begins with the state of this one at one position and goes its own way.
//   - A view (Freeze) shows all nodes at one position, durably, whatever is written after it.
//   - Space of overwritten and zeroed ranges is given back by clean-up (Clean, and in the background).
//
// It must not read the clock or the disk but through the given clock.Clock and vfs.FS, and must never
// turn bad bytes into zeroes or older bytes. Memory is about 10 bytes for each extent of the index
// (Stats.Extents; 200 MiB for 100 GiB written in random pieces of 4 KiB) and one file descriptor and 140
// bytes for each segment. The format is in FORMAT.md,
// what protects what in LOCKING.md.
package overlay

import (
	"context"
	"io"
	"log/slog"
	"path"
	"sync"
	"sync/atomic"

	"livemount/blockdev"
	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/keyring"
)

// Options of a log. FS and Dir are required; the zero value of the rest works.
type Options struct {
	FS    vfs.FS
	Dir   string   // the folder of the log, its own
	Mount [16]byte // identity; bytes of other mounts are never taken for ours
	Clock clock.Clock
	Log   *slog.Logger
	// Keys seal all that the log holds: payloads and checkpoints. What stays readable is in FORMAT.md. Nil seals nothing; a log
	// is opened as it was made, or it is Denied.
	Keys *keyring.Keys

	// SegmentBytes bounds a segment file: 64 MiB by default, 16 KiB to 1 GiB.
	SegmentBytes int64
	// PrewriteBytes of zeroes are written ahead when small writes are synced: 1 MiB by default,
	// negative for none.
	PrewriteBytes int64
	// Admit is asked before a write lets the log grow by n bytes; its error goes to the writer. It is not
	// asked for clean-up, which needs room to give more back.
	Admit func(n int64) error
	// AdmitFreeing is asked instead for what leads to space being given back: zeroes, forgotten nodes, AppendFreeing,
	// smaller sizes. Default: Admit.
	AdmitFreeing func(n int64) error
	// Note is told of each read and write; nil is not.
	Note func()
	// AcceptDamage lets Open go on when synced records are lost and nobody can know what they changed:
	// they are then as if they had never been written. For salvage only.
	AcceptDamage bool
	// NoBackground leaves clean-up to calls of Clean.
	NoBackground bool

	// Meta gets the payload of each Append and AppendSize in order, at Open. The sizes are set already.
	Meta func(payload []byte) error
	// Restore gets the newest snapshot at Open, before any Meta.
	Restore func(snapshot []byte) error
	// Snapshot returns all that Restore and Meta have told and Append has applied, at most 256 MiB.
	// It is called with the log's lock on writes held: it must not call the log, nor wait for a lock that
	// somebody holds while calling the log. Locks that apply takes are taken inside of the log's.
	Snapshot func() ([]byte, error)
}

// Node is a disk or a file of the mount.
type Node struct {
	ID   uint64
	Base blockdev.Reader // nil is zeroes; may be shorter than Size
	Size int64           // bytes
	// Grows makes a write behind the end set the size, in the record of the write itself. A node that Open is not told
	// of grows until Add says otherwise.
	Grows bool
}

// Log is an open log. All methods may be called from several goroutines. Locks are taken in the order
// cleaning, appending, index.
type Log struct {
	opts Options
	form form
	fs   vfs.FS

	appending sync.Mutex // guards the fields up to the next blank line, and the order of records
	head      *segment   // where records go; nil when Open found no room for one, until the first record
	headEnd   int64      // bytes of head that hold records
	end       Position   // behind the last record
	last      essentials // of the last record
	unsynced  []*segment // written since the last commit, each with a reference
	namesNew  bool       // a segment was created since the last commit
	synced    Position   // behind the last synced record
	nextSeg   uint64
	epoch     uint32
	noRoom    bool // pre-writing found no room; reset by the next segment
	logMeta   bool // the layer above has state here

	seq    atomic.Uint64 // of the last record; changed under appending
	failed atomic.Pointer[error]

	index  sync.RWMutex // guards the fields up to the next blank line
	nodes  map[uint64]*node
	live   liveCount
	closed bool

	commits  committer
	mark     *markFile // used by the running commit only
	cleaner  cleaner
	logBytes atomic.Int64 // in the segments
	buffers  sync.Pool    // *[]byte, for records with smallBytes of payload
	large    sync.Pool    // the same, for payloadMax
}

// Stats is a picture of a log.
type Stats struct {
	LogBytes       int64 // up to the end of the records, in all segments
	LiveBytes      int64 // that the live data would take if it were written now
	Segments       int
	Extents        int
	Syncs          int64 // fdatasync rounds
	LastSeq        uint64
	End, Synced    Position
	CheckpointSeq  uint64 // the next record when the newest checkpoint was made; 0 without one
	CheckpointSize int64  // bytes
}

const (
	segmentBytesDefault  = 64 << 20
	segmentBytesMin      = 16 << 10
	prewriteBytesDefault = 1 << 20
	smallBytes           = 128 << 10 // payload up to this is copied, to be written in one call
)

func (o Options) withDefaults() (Options, error) {
	if o.SegmentBytes == 0 {
		o.SegmentBytes = segmentBytesDefault
	}
	if o.FS == nil || o.Dir == "" || o.SegmentBytes < segmentBytesMin || o.SegmentBytes > segmentMax {
		return o, errs.New(errs.Invalid, "overlay options: folder %q, segments of %d bytes", o.Dir, o.SegmentBytes)
	}
	if o.PrewriteBytes == 0 {
		o.PrewriteBytes = prewriteBytesDefault
	}
	if o.Clock == nil {
		o.Clock = clock.System{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if o.Admit == nil {
		o.Admit = func(int64) error { return nil }
	}
	if o.AdmitFreeing == nil {
		o.AdmitFreeing = o.Admit
	}
	return o, nil
}

func newLog(o Options, nodes []Node) (*Log, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	l := &Log{opts: o, form: o.form(), fs: o.FS, nodes: map[uint64]*node{}, nextSeg: 1}
	l.live = liveCount{segments: map[uint32]*segment{}, form: l.form}
	l.buffers.New = l.bufferFor(smallBytes)
	l.large.New = l.bufferFor(payloadMax)
	l.cleaner.init()
	for _, n := range nodes {
		if err := l.Add(n); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (l *Log) bufferFor(payload int64) func() any {
	return func() any {
		b := make([]byte, l.form.dataBytes(payload)+bindingBytes)
		return &b
	}
}

// Create makes a new log in a folder that is new or empty (else errs.Exists), durably.
func Create(ctx context.Context, o Options, nodes []Node) (*Log, error) {
	l, err := newLog(o, nodes)
	if err != nil {
		return nil, err
	}
	if err := l.fs.MkdirAll(o.Dir); err != nil {
		return nil, err
	}
	names, err := l.fs.List(o.Dir)
	if err != nil {
		return nil, err
	}
	if len(names) > 0 {
		return nil, errs.New(errs.Exists, "create overlay log: folder %s is not empty", o.Dir)
	}
	if l.mark, err = createMark(l.fs, o.Dir, mark{mount: o.Mount}); err == nil {
		err = l.start(1)
	}
	if err == nil {
		err = l.fs.SyncDir(path.Dir(o.Dir))
	}
	if err != nil {
		l.closeFiles()
		return nil, err
	}
	l.background()
	return l, ctx.Err()
}

// start makes the first segment of this incarnation, durably.
func (l *Log) start(epoch uint32) error {
	l.appending.Lock()
	l.epoch = epoch
	err := l.roll()
	l.appending.Unlock()
	if err != nil {
		return err
	}
	return l.commit()
}

// Add gives the log a node that Create and Open were not told of. A node with a base must be given to
// Open, because replay needs nothing from it but readers do.
func (l *Log) Add(n Node) error {
	if n.Size < 0 {
		return errs.New(errs.Invalid, "overlay node %d: size %d", n.ID, n.Size)
	}
	l.index.Lock()
	defer l.index.Unlock()
	have := l.node(n.ID)
	if have.attached {
		return errs.New(errs.Exists, "overlay node %d is there already", n.ID)
	}
	have.attached, have.base, have.given, have.grows = true, n.Base, n.Size, n.Grows
	if !have.sizeKnown {
		have.size.Store(n.Size)
	}
	return nil
}

// node finds or makes a node. The caller holds index.
func (l *Log) node(id uint64) *node {
	n := l.nodes[id]
	if n == nil {
		n = &node{id: id, grows: true, extents: extentMap{form: l.form}} // until Add says otherwise
		l.nodes[id] = n
	}
	return n
}

// Device gives the node as a disk; NotFound when it was not given. Its Close does nothing: the log and
// the base are closed by those who opened them.
func (l *Log) Device(id uint64) (blockdev.Device, error) {
	l.index.RLock()
	defer l.index.RUnlock()
	n := l.nodes[id]
	if n == nil || !n.attached {
		return nil, errs.New(errs.NotFound, "overlay node %d", id)
	}
	return &device{l, n}, nil
}

// Err is the error that the log failed with, or nil.
func (l *Log) Err() error {
	if err := l.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// fail makes err the answer to every later write and sync. The first error stays.
func (l *Log) fail(err error) error {
	err = errs.New(errs.Other, "overlay log %s failed: %w", l.opts.Dir, err)
	if l.failed.CompareAndSwap(nil, &err) {
		l.opts.Log.Error("overlay log failed", "folder", l.opts.Dir, "error", err)
	}
	return l.Err()
}

// Stats returns the present numbers.
func (l *Log) Stats() Stats {
	l.appending.Lock()
	defer l.appending.Unlock()
	l.index.RLock()
	defer l.index.RUnlock()
	s := Stats{
		LogBytes: l.logBytes.Load(), LiveBytes: l.live.bytes, Segments: len(l.live.segments),
		Syncs: l.commits.rounds.Load(), LastSeq: l.seq.Load(), End: l.end, Synced: l.synced,
		CheckpointSeq: l.cleaner.checkpointSeq.Load(), CheckpointSize: l.cleaner.checkpointBytes.Load(),
	}
	for _, n := range l.nodes {
		s.Extents += n.extents.Len()
	}
	return s
}

// Close syncs and closes the log. Its error is that of the sync.
func (l *Log) Close() error {
	l.cleaner.stop()
	l.appending.Lock()
	l.noRoom = true // nothing needs zeroes ahead any more
	l.appending.Unlock()
	err := l.Sync(context.Background())
	l.appending.Lock()
	defer l.appending.Unlock()
	if l.setClosed() {
		return errs.New(errs.Invalid, "overlay log %s is closed", l.opts.Dir)
	}
	if err == nil {
		err = l.tidy()
	}
	l.closeFiles()
	return err
}

func (l *Log) setClosed() (was bool) {
	l.index.Lock()
	defer l.index.Unlock()
	was, l.closed = l.closed, true
	return was
}

// tidy drops the zeroes ahead of the head and makes the mark durable, so that the next Open is quick
// and every synced record has its evidence. The caller holds appending.
func (l *Log) tidy() error {
	if l.head != nil && l.head.ready > l.headEnd {
		if err := l.head.file.Truncate(l.headEnd); err != nil {
			return err
		}
	}
	return l.mark.file.Sync()
}

func (l *Log) closeFiles() {
	l.index.Lock()
	defer l.index.Unlock()
	l.closed = true
	for number, s := range l.live.segments {
		delete(l.live.segments, number)
		s.release()
	}
	for _, s := range l.unsynced {
		s.release()
	}
	l.unsynced = nil
	if l.mark != nil {
		_ = l.mark.file.Close() // synced, or its loss is survivable
	}
}
