package chunkstore

import (
	"context"
	"encoding/binary"
	"os"
	"sync"

	"livemount/internal/errs"
	"livemount/internal/kv"
)

// dedupIndex finds stored chunks by id. It is a hint: what it says is checked against the container,
// and it may be lost at any time. A nil index knows nothing.
type dedupIndex struct {
	s  *Store
	db *kv.DB

	flushMu sync.Mutex // held while a batch is written
	mu      sync.Mutex // guards what is below
	pending map[ChunkID]Ptr
	writing map[ChunkID]Ptr // the batch that is being written; not changed

	cancel context.CancelFunc
	filler sync.WaitGroup
}

const dedupBatch = 8192

// dedupClose is the disk space that closing the index may take, in bytes.
const dedupClose = 32 << 20

// dedupReady is the key that says that the index was filled from the containers that were there.
const dedupReady = "ready"

// openDedup opens the index, or makes a new one and fills it in the background.
func openDedup(ctx context.Context, s *Store) (*dedupIndex, error) {
	if s.opts.DedupDir == "" {
		return nil, nil
	}
	db, err := openDedupDB(s)
	if errs.Is(err, errs.Corrupt) {
		s.opts.Log.Warn("dedup index was bad, made again", "err", err)
		if err := os.RemoveAll(s.opts.DedupDir); err != nil {
			return nil, err
		}
		db, err = openDedupDB(s)
	}
	if err != nil {
		return nil, err
	}
	d := &dedupIndex{s: s, db: db, pending: map[ChunkID]Ptr{}}
	fillCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	d.cancel = cancel
	if _, err := db.Get([]byte(dedupReady)); err != nil {
		d.filler.Go(func() { d.fill(fillCtx) })
	}
	return d, nil
}

func openDedupDB(s *Store) (*kv.DB, error) {
	if err := os.MkdirAll(s.opts.DedupDir, 0o700); err != nil {
		return nil, err
	}
	return kv.Open(kv.Options{Dir: s.opts.DedupDir, MemTableBytes: 8 << 20, IndexBytes: 16 << 20, Log: s.opts.Log, Key: s.opts.DedupKey})
}

// fill puts the ids of all sealed containers into the index.
func (d *dedupIndex) fill(ctx context.Context) {
	err := d.s.eachID(ctx, func(id ChunkID, p Ptr) error { return firstError(d.put(id, p), ctx.Err()) })
	if err == nil {
		err = d.flush()
	}
	if err == nil {
		err = d.db.Update(func(tx kv.Tx) error { return tx.Put([]byte(dedupReady), nil) })
	}
	if err != nil && ctx.Err() == nil {
		d.s.opts.Log.Warn("dedup index was not filled", "err", err)
	}
}

func dedupKey(id ChunkID) []byte { return append([]byte("i"), id[:]...) }

func (d *dedupIndex) get(id ChunkID) (Ptr, bool) {
	if d == nil {
		return Ptr{}, false
	}
	d.mu.Lock()
	p, ok := d.pending[id]
	if !ok {
		p, ok = d.writing[id]
	}
	d.mu.Unlock()
	if ok {
		return p, true
	}
	v, err := d.db.Get(dedupKey(id))
	if err != nil || len(v) != 12 {
		return Ptr{}, false
	}
	return Ptr{ContainerID(binary.LittleEndian.Uint64(v)), binary.LittleEndian.Uint32(v[8:])}, true
}

// put adds an entry. An error only costs duplicates.
func (d *dedupIndex) put(id ChunkID, p Ptr) error {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	d.pending[id] = p
	full := len(d.pending) >= dedupBatch
	d.mu.Unlock()
	if full {
		return d.flush()
	}
	return nil
}

// flush moves the pending entries into Badger, or drops them when the disk is too full for that.
func (d *dedupIndex) flush() error {
	if d == nil {
		return nil
	}
	d.flushMu.Lock()
	defer d.flushMu.Unlock()
	d.mu.Lock()
	batch := d.pending
	d.writing, d.pending = batch, map[ChunkID]Ptr{}
	d.mu.Unlock()
	err := d.s.opts.Admit(dedupClose)
	if err == nil {
		err = d.write(batch)
	}
	if err != nil {
		d.s.opts.Log.Warn("dedup index was not written", "err", err)
	}
	d.mu.Lock()
	d.writing = nil
	d.mu.Unlock()
	return err
}

func (d *dedupIndex) write(batch map[ChunkID]Ptr) error {
	b := d.db.NewBatch()
	for id, p := range batch {
		v := binary.LittleEndian.AppendUint64(make([]byte, 0, 12), uint64(p.Container))
		if err := b.Put(dedupKey(id), binary.LittleEndian.AppendUint32(v, p.Slot)); err != nil {
			b.Cancel()
			return err
		}
	}
	return b.Flush()
}

// forget removes entries of chunks that are not where it says any more.
func (d *dedupIndex) forget(gone map[ChunkID]Ptr) {
	if d == nil || len(gone) == 0 || d.s.opts.Admit(dedupClose) != nil {
		return // what is left there is found to be wrong when it is used
	}
	b := d.db.NewBatch()
	for id, p := range gone {
		if now, ok := d.get(id); !ok || now != p {
			continue
		}
		if err := b.Delete(dedupKey(id)); err != nil {
			b.Cancel()
			return
		}
	}
	if err := b.Flush(); err != nil {
		d.s.opts.Log.Debug("dedup index was not cleaned", "err", err)
	}
}

// WaitDedup waits until the dedup index knows all chunks, when it is being made again.
func (s *Store) WaitDedup() {
	if s.dedup != nil {
		s.dedup.filler.Wait()
	}
}

func (d *dedupIndex) close() error {
	if d == nil {
		return nil
	}
	d.cancel()
	d.filler.Wait()
	if err := d.s.opts.Admit(dedupClose); err != nil {
		d.s.opts.Log.Warn("dedup index was not closed cleanly", "err", err)
		return nil // the disk is too full for what Badger writes when it is closed; the index may be lost
	}
	return firstError(d.flush(), d.db.Close())
}
