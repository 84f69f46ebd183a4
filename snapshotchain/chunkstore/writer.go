package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"livemount/internal/errs"
)

// Encoded is a chunk ready to be stored.
type Encoded struct {
	ID      ChunkID
	Hashes  []PageHash
	Codec   Codec
	RawLen  int
	Payload []byte
	fast    bool // by LevelFast
}

// Encode compresses the bytes of a chunk of which ID and Hashes are set. buf is used for the payload when
// it is large enough; raw must not change while the result is in use.
func (s *Store) Encode(level Level, e Encoded, raw, buf []byte) (Encoded, error) {
	var err error
	e.RawLen, e.fast = len(raw), level == LevelFast
	e.Codec, e.Payload, err = s.codecs.encode(level, raw, buf)
	return e, err
}

// Writer appends records for one draft. Nothing that it wrote is anybody's before Commit and Release;
// Abort takes all of it back. It is used by one goroutine, except Find.
type Writer struct {
	s     *Store
	draft DraftID
	cur   map[Class]*container
	used  []*lease
	stats WriterStats

	rolls sync.WaitGroup
	slots chan struct{} // bounds the containers that are being sealed at once
	errMu sync.Mutex
	err   error // of sealing

	hitMu sync.Mutex
	hits  map[ContainerID]struct{} // of others, that it may point into
}

// WriterStats counts what a Writer did.
type WriterStats struct {
	StoredBytes, RawBytes int64 // appended records, and what they decode to
	Chunks, Duplicates    int64
}

// lease is a container that the Writer appends to, and how it was found.
type lease struct {
	c       *container
	app     *appender
	start   State
	adopted bool // it held committed records of others before
}

// NewWriter starts a Writer. draft must be known to the caller's journal, so that after a crash Recover
// can tell what it left.
func (s *Store) NewWriter(draft DraftID) *Writer {
	w := &Writer{s: s, draft: draft, cur: map[Class]*container{}, slots: make(chan struct{}, 2), hits: map[ContainerID]struct{}{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writers[w] = struct{}{}
	return w
}

// end lets go of what the Writer may point to.
func (w *Writer) end() {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	delete(w.s.writers, w)
}

// Stats returns what was written so far.
func (w *Writer) Stats() WriterStats { return w.stats }

// PutChunk stores a chunk, or finds it stored. It reports whether it was stored now.
func (w *Writer) PutChunk(ctx context.Context, e Encoded) (Ptr, bool, error) {
	if p, ok := w.Find(ctx, e.ID, Ptr{}); ok {
		w.stats.Duplicates++
		return p, false, nil
	}
	aux := make([]byte, 0, len(e.Hashes)*hashBytes)
	for i := range e.Hashes {
		aux = append(aux, e.Hashes[i][:]...)
	}
	p, err := w.append(ctx, ClassData, &record{
		kind: KindChunk, codec: e.Codec, id: e.ID, aux: aux, payload: e.Payload, rawLen: e.RawLen, fast: e.fast,
	})
	if err != nil {
		return Ptr{}, false, err
	}
	w.stats.Chunks++
	if err := w.s.dedup.put(e.ID, p); err != nil {
		w.s.opts.Log.Debug("dedup index is behind", "err", err)
	}
	return p, true, nil
}

// PutRecord stores a part of a map segment or a blob.
func (w *Writer) PutRecord(ctx context.Context, kind RecordKind, raw []byte) (Ptr, error) {
	if len(raw) > maxRaw {
		return Ptr{}, errs.New(errs.Invalid, "record of %d bytes; at most %d", len(raw), maxRaw)
	}
	codec, payload, err := w.s.codecs.encode(LevelDefault, raw, nil)
	if err != nil {
		return Ptr{}, err
	}
	return w.append(ctx, ClassMap, &record{kind: kind, codec: codec, payload: payload, rawLen: len(raw)})
}

func (w *Writer) append(ctx context.Context, class Class, r *record) (Ptr, error) {
	if err := firstError(ctx.Err(), w.failure()); err != nil {
		return Ptr{}, err
	}
	n := storedLen(len(r.aux), len(r.payload)+w.s.overhead())
	if err := w.s.opts.Admit(int64(n)); err != nil {
		return Ptr{}, err
	}
	c, err := w.target(class, n)
	if err != nil {
		return Ptr{}, err
	}
	sl, err := c.app.append(r)
	if err != nil {
		return Ptr{}, fmt.Errorf("append to container %s: %w", c.id, err)
	}
	w.stats.StoredBytes += int64(n)
	w.stats.RawBytes += int64(r.rawLen)
	return Ptr{c.id, sl}, nil
}

// target returns the container for a record of n bytes.
func (w *Writer) target(class Class, n int) (*container, error) {
	c := w.cur[class]
	if c != nil && c.app.fits(n, w.s.opts.ContainerBytes) {
		return c, nil
	}
	if c != nil {
		delete(w.cur, class)
		w.roll(c)
	}
	l, err := w.s.lease(class, w.draft, n)
	if err != nil {
		return nil, err
	}
	w.used = append(w.used, l)
	w.cur[class] = l.c
	return l.c, nil
}

// lease takes a container from the pool, or makes one.
func (s *Store) lease(class Class, draft DraftID, n int) (*lease, error) {
	s.mu.Lock()
	list := s.pool[class]
	if n := len(list); n > 0 && !list[n-1].app.fits(recordHeader, s.opts.ContainerBytes-s.opts.ContainerBytes/16) {
		// It is nearly full: it ends here instead of waiting for a record that fits.
		full := list[n-1]
		list = list[:n-1]
		s.pool[class] = list
		s.mu.Unlock()
		if err := s.sealContainer(full); err != nil {
			return nil, err
		}
		s.mu.Lock()
		list = s.pool[class]
	}
	if len(list) > 0 && list[len(list)-1].app.fits(n, s.opts.ContainerBytes) {
		c := list[len(list)-1]
		s.pool[class] = list[:len(list)-1]
		s.mu.Unlock()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.owner = draft
		return &lease{c: c, app: c.app, start: c.state, adopted: true}, nil
	}
	s.mu.Unlock()
	c, err := s.newContainer(class, draft, 0)
	if err != nil {
		return nil, err
	}
	return &lease{c: c, app: c.app, start: c.state}, nil
}

// roll seals a full container while the Writer goes on with the next.
func (w *Writer) roll(c *container) {
	w.slots <- struct{}{}
	w.rolls.Go(func() {
		defer func() { <-w.slots }()
		if err := c.app.seal(); err != nil {
			w.fail(fmt.Errorf("seal container %s: %w", c.id, err))
		}
	})
}

func (w *Writer) fail(err error) {
	w.errMu.Lock()
	defer w.errMu.Unlock()
	if w.err == nil {
		w.err = err
	}
}

func (w *Writer) failure() error {
	w.errMu.Lock()
	defer w.errMu.Unlock()
	return w.err
}

// Commit makes all that was written durable and returns the states to record. After an error only
// Abort may follow.
func (w *Writer) Commit() ([]State, error) {
	if err := w.s.dedup.flush(); err != nil { // so that a killed process forgets nothing that it stored
		w.s.opts.Log.Debug("dedup index is behind", "err", err)
	}
	w.rolls.Wait()
	if err := w.failure(); err != nil {
		return nil, err
	}
	var states []State
	for _, l := range w.used {
		open := w.cur[l.c.class] == l.c
		if open {
			if err := l.app.sync(); err != nil {
				return nil, fmt.Errorf("sync container %s: %w", l.c.id, err)
			}
		}
		states = append(states, l.app.snapshot(!open))
	}
	return states, nil
}

// Release gives the committed containers to everybody. states is what Commit returned, recorded durably.
func (w *Writer) Release(states []State) error {
	defer w.end()
	var first error
	for i, l := range w.used {
		l.c.mu.Lock()
		l.c.state, l.c.owner = states[i], 0
		sealed := states[i].Sealed
		if sealed {
			l.c.app = nil
		}
		l.c.mu.Unlock()
		if sealed {
			first = firstError(first, l.app.file.Close())
		} else {
			w.s.giveBack(l.c)
		}
	}
	w.used = nil
	return first
}

func (s *Store) giveBack(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pool[c.class] = append(s.pool[c.class], c)
}

// Abort removes what the Writer wrote. What cannot be removed now is removed by the next Recover.
func (w *Writer) Abort() error {
	defer w.end()
	w.rolls.Wait()
	var list []error
	for _, l := range w.used {
		if l.adopted {
			list = append(list, w.s.restore(l))
		} else {
			list = append(list, w.s.discard(l))
		}
	}
	w.used = nil
	return errors.Join(append(list, w.s.syncNames())...)
}

// restore brings an adopted container back to its committed state.
func (s *Store) restore(l *lease) error {
	err := l.app.rollback(l.start)
	l.c.mu.Lock()
	l.c.owner = 0
	reuse := err == nil && !l.c.lost
	l.c.mu.Unlock()
	switch {
	case !reuse:
	case s.opts.Keys != nil: // slots that were cut off must not be sealed again
		err = s.sealContainer(l.c)
	default:
		s.giveBack(l.c)
	}
	return err
}

// discard removes a container that held nothing committed.
func (s *Store) discard(l *lease) error {
	s.mu.Lock()
	delete(s.containers, l.c.id)
	s.mu.Unlock()
	s.files.cache.Remove(l.c.path)
	s.tables.Remove(tableKey{l.c.id, l.c.gen})
	return errors.Join(l.app.file.Close(), s.opts.FS.Remove(l.c.path))
}

func firstError(list ...error) error {
	for _, err := range list {
		if err != nil {
			return err
		}
	}
	return nil
}
