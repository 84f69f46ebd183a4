// Package kv is the one door to Badger. It adds what a store of record needs and Badger does not give:
//
//   - every value carries a CRC32C over key and content, so that a spoiled one is an error;
//   - tables are verified before Badger opens them, because Badger, depending on its mode, serves bad
//     bytes, drops keys without an error, or panics in a goroutine of its own;
//   - a panic inside Badger on a read is a Corrupt error;
//   - readers share one transaction, because a new one waits for commits that are under way.
//
// What it cannot tell is that a key was lost; its users know which keys must exist.
package kv

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"sync"
	"syscall"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"livemount/internal/errs"
)

// Options say how a DB is opened. Dir must be set and exist.
type Options struct {
	Dir           string
	MemTableBytes int64  // of each of three tables in memory; default 16 MiB
	IndexBytes    int64  // cache of table indexes; default 32 MiB
	Sync          bool   // a commit is on disk when it returns
	Key           []byte // 32 bytes: everything is encrypted with AES-256; nil is not
	Log           *slog.Logger
}

// DB is an open database. Its methods may be called from several goroutines.
type DB struct {
	b   *badger.DB
	dir string

	mu   sync.RWMutex // guards read; held for reading while it is used
	read *badger.Txn
}

// Open verifies and opens the database in opts.Dir. Corrupt means that the folder must be made again
// from the truth; other errors are the machine's.
func Open(opts Options) (db *DB, err error) {
	if opts.MemTableBytes == 0 {
		opts.MemTableBytes = 16 << 20
	}
	if opts.IndexBytes == 0 {
		opts.IndexBytes = 32 << 20
	}
	if err := prepare(opts.Dir, opts.Key); err != nil {
		return nil, err
	}
	defer func() {
		if p := recover(); p != nil {
			db, err = nil, errs.New(errs.Corrupt, "open %s: %v", opts.Dir, p)
		}
	}()
	b, err := badger.Open(badgerOptions(opts))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", opts.Dir, classify(err))
	}
	db = &DB{b: b, dir: opts.Dir}
	db.read = b.NewTransaction(false)
	return db, nil
}

func badgerOptions(o Options) badger.Options {
	return badger.DefaultOptions(o.Dir).
		WithLogger(newLogger(o.Log)).
		WithSyncWrites(o.Sync).
		WithMemTableSize(o.MemTableBytes).
		WithNumMemtables(3).
		WithBlockCacheSize(16 << 20).
		WithIndexCacheSize(o.IndexBytes).
		WithCompression(options.Snappy).
		WithValueLogFileSize(16 << 20). // no value is large enough to go there
		WithNumVersionsToKeep(1).
		WithDetectConflicts(false).
		WithMetricsEnabled(false).
		WithNumCompactors(2).
		WithCompactL0OnClose(false).
		WithEncryptionKey(o.Key).
		WithBypassLockGuard(true) // the store's own lock covers it
}

// IsOtherKey says that a database was opened with another key than it was made with.
func IsOtherKey(err error) bool { return errors.Is(err, badger.ErrEncryptionKeyMismatch) }

// classify keeps errors of the machine as they are; anything else that Open says is about bad content.
func classify(err error) error {
	switch errs.KindOf(err) {
	case errs.Other, errs.NotFound, errs.Exists:
		if isMachine(err) {
			return err
		}
		return errs.As(errs.Corrupt, err)
	default:
		return err
	}
}

// Close writes what is in memory and closes the files.
func (d *DB) Close() error {
	d.mu.Lock()
	d.read.Discard()
	d.mu.Unlock()
	return d.b.Close()
}

// refresh lets readers see what was committed.
func (d *DB) refresh() {
	next := d.b.NewTransaction(false)
	d.mu.Lock()
	if next.ReadTs() > d.read.ReadTs() { // another commit may have been faster
		next, d.read = d.read, next
	}
	d.mu.Unlock()
	next.Discard()
}

// Get returns the content of a key: NotFound when there is none, Corrupt when it is spoiled.
func (d *DB) Get(key []byte) (val []byte, err error) {
	defer recovered(&err, key)
	d.mu.RLock()
	defer d.mu.RUnlock()
	item, err := d.read.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, errs.New(errs.NotFound, "key %x does not exist", key)
	}
	if err != nil {
		return nil, errs.New(errs.Corrupt, "get key %x: %w", key, err)
	}
	return content(key, item)
}

func content(key []byte, item *badger.Item) ([]byte, error) {
	framed, err := item.ValueCopy(nil)
	if err != nil {
		return nil, errs.New(errs.Corrupt, "get value of %x: %w", key, err)
	}
	return unframe(key, framed)
}

func recovered(err *error, key []byte) {
	if p := recover(); p != nil {
		*err = errs.New(errs.Corrupt, "read key %x: %v", key, p)
	}
}

func checksum(key, val []byte) uint32 {
	t := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Update(0, t, key), t, val)
}

func frame(key, val []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(make([]byte, 0, len(val)+4), checksum(key, val)), val...)
}

func unframe(key, framed []byte) ([]byte, error) {
	if len(framed) < 4 || checksum(key, framed[4:]) != binary.LittleEndian.Uint32(framed) {
		return nil, errs.New(errs.Corrupt, "key %x: checksum mismatch", key)
	}
	return framed[4:], nil
}

// Each calls fn with the keys that start with prefix, in order, and their content. A spoiled value is
// passed as an error; fn decides whether to go on. Keys that Badger lost are not noticed.
func (d *DB) Each(prefix []byte, fn func(key, val []byte, err error) error) (err error) {
	defer recovered(&err, prefix)
	d.mu.RLock()
	defer d.mu.RUnlock()
	it := d.read.NewIterator(badger.IteratorOptions{Prefix: prefix, PrefetchValues: false})
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		key := it.Item().KeyCopy(nil)
		val, verr := content(key, it.Item())
		if err := fn(key, val, verr); err != nil {
			return err
		}
	}
	return nil
}

// Scan is Each over the keys from the first to before the last, in a transaction of its own: for long walks, which
// must not keep commits waiting. It begins with what is committed by now. fn may keep what it gets.
func (d *DB) Scan(from, to []byte, fn func(key, val []byte, err error) error) (err error) {
	defer recovered(&err, from)
	txn := d.b.NewTransaction(false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{PrefetchValues: false})
	defer it.Close()
	for it.Seek(from); it.Valid() && bytes.Compare(it.Item().Key(), to) < 0; it.Next() {
		key := it.Item().KeyCopy(nil)
		val, verr := content(key, it.Item())
		if err := fn(key, val, verr); err != nil {
			return err
		}
	}
	return nil
}

// Tx is a set of changes that is made whole or not at all.
type Tx struct{ t *badger.Txn }

// Put sets a key.
func (tx Tx) Put(key, val []byte) error { return tx.t.Set(key, frame(key, val)) }

// Delete removes a key.
func (tx Tx) Delete(key []byte) error { return tx.t.Delete(key) }

// Update commits the changes that fn makes, visible to all readers when it returns.
func (d *DB) Update(fn func(Tx) error) error {
	if err := d.b.Update(func(t *badger.Txn) error { return fn(Tx{t}) }); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	d.refresh()
	return nil
}

// Batch writes many keys in as many commits as it takes; they may become durable in any split.
type Batch struct {
	d *DB
	b *badger.WriteBatch
}

// NewBatch starts a batch; Flush or Cancel ends it.
func (d *DB) NewBatch() *Batch { return &Batch{d, d.b.NewWriteBatch()} }

// Put sets a key. key and val may be reused.
func (b *Batch) Put(key, val []byte) error {
	return b.b.Set(append([]byte(nil), key...), frame(key, val))
}

// Delete removes a key.
func (b *Batch) Delete(key []byte) error { return b.b.Delete(append([]byte(nil), key...)) }

// Flush waits until all is committed.
func (b *Batch) Flush() error {
	if err := b.b.Flush(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	b.d.refresh()
	return nil
}

// Cancel gives up what was not committed yet.
func (b *Batch) Cancel() { b.b.Cancel() }

// SizeBytes returns what the database takes on disk. Badger's own count is a minute old, and its logs are
// mostly holes.
func (d *DB) SizeBytes() (n int64) {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return 0
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			continue // removed meanwhile
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			n += st.Blocks * 512
		}
	}
	return n
}
