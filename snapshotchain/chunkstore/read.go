package chunkstore

import (
	"context"
	"fmt"

	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// Chunk returns the pages of a chunk. The result is shared and must not be written to.
func (s *Store) Chunk(ctx context.Context, p Ptr) ([]byte, error) {
	return s.chunks.Get(ctx, p, func() ([]byte, error) {
		return s.chunk(ctx, p, nil)
	})
}

func (s *Store) chunk(ctx context.Context, p Ptr, into []byte) ([]byte, error) {
	b, err := s.read(ctx, p, KindChunk, into)
	if err == nil && len(b)%PageSize != 0 {
		return nil, errs.New(errs.Corrupt, "chunk %s of %d bytes", p, len(b))
	}
	return b, err
}

// ReadChunk fills dst with the bytes of a chunk from offset from. once says that they will hardly be asked for
// again soon: a chunk that dst holds whole is then decoded there, past the cache, and what lies behind dst, up
// to its capacity, may be overwritten.
func (s *Store) ReadChunk(ctx context.Context, p Ptr, from int64, dst []byte, once bool) error {
	b, ok := s.chunks.Peek(p)
	var err error
	switch {
	case ok:
	case once && from == 0 && len(dst) > 0:
		if b, err = s.chunk(ctx, p, dst); err == nil && &b[0] != &dst[0] { // dst holds only a part of it
			s.chunks.Put(p, b)
		}
	default:
		b, err = s.Chunk(ctx, p)
	}
	if err != nil {
		return err
	}
	if from+int64(len(dst)) > int64(len(b)) {
		return errs.New(errs.Corrupt, "chunk %s of %d bytes is too short for its map", p, len(b))
	}
	copy(dst, b[from:]) // nothing happens when it was decoded there
	return nil
}

// ReadRecord returns the decoded payload of a record of the kind, past the cache. Bad bytes are a
// Corrupt error that names the record.
func (s *Store) ReadRecord(ctx context.Context, p Ptr, kind RecordKind) ([]byte, error) {
	return s.read(ctx, p, kind, nil)
}

// ProveChunk reads a chunk from the disk, past every cache, compares all its checksums and hashes, and returns the page
// hashes. Bad bytes are a Corrupt error, and remembered.
func (s *Store) ProveChunk(ctx context.Context, h *Hasher, p Ptr) ([]PageHash, error) {
	r, raw, err := s.recordAt(ctx, p)
	if err == nil {
		err = prove(h, r, raw)
	}
	if errs.Is(err, errs.Corrupt) {
		if c, cerr := s.container(p.Container); cerr == nil && s.replaced(c) {
			return s.ProveChunk(ctx, h, p)
		}
		s.noteBad(p, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", p, err)
	}
	return r.hashes(), nil
}

// prove compares the content of a chunk with its hashes and its id.
func prove(h *Hasher, r *record, raw []byte) error {
	hashes := r.hashes()
	if r.kind != KindChunk || len(raw) != len(hashes)*PageSize {
		return errs.New(errs.Corrupt, "record of kind %d with %d bytes and %d page hashes", r.kind, len(raw), len(hashes))
	}
	for i := range hashes {
		if h.Page(raw[i*PageSize:][:PageSize]) != hashes[i] {
			return errs.New(errs.Corrupt, "page %d differs from its hash", i)
		}
	}
	if h.Chunk(hashes) != r.id {
		return errs.New(errs.Corrupt, "page hashes differ from the id of the chunk")
	}
	return nil
}

// noteBad remembers a bad record and tells of it once.
func (s *Store) noteBad(p Ptr, err error) {
	if s.MarkBad(p) {
		s.opts.OnBad(p, err)
	}
}

// read decodes a record into the given bytes when it is as long, or into new ones.
func (s *Store) read(ctx context.Context, p Ptr, kind RecordKind, into []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	raw, err := s.readRecord(ctx, p, kind, into)
	if errs.Is(err, errs.Corrupt) {
		s.noteBad(p, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", p, err)
	}
	return raw, nil
}

// readRecord reads a record; once more when its container was packed meanwhile.
func (s *Store) readRecord(ctx context.Context, p Ptr, kind RecordKind, into []byte) ([]byte, error) {
	for {
		c, err := s.container(p.Container)
		if err != nil {
			return nil, err
		}
		raw, err := s.readRecordOf(ctx, c, p, kind, into)
		if err == nil || !s.replaced(c) {
			return raw, err
		}
	}
}

func (s *Store) readRecordOf(ctx context.Context, c *container, p Ptr, kind RecordKind, into []byte) ([]byte, error) {
	sl, err := s.slot(ctx, c, p.Slot)
	if err != nil {
		return nil, err
	}
	buf := s.getBuffer(int(sl.len))
	defer s.putBuffer(buf)
	if err := s.readAt(ctx, c, *buf, int64(sl.off)); err != nil {
		return nil, err
	}
	r, err := parseRecord(newSeed(s.opts.Store, c.id), *buf)
	if err != nil {
		return nil, err
	}
	if r.slot != p.Slot || r.kind != kind {
		return nil, errs.New(errs.Corrupt, "record of slot %d and kind %d in the place of slot %d", r.slot, r.kind, p.Slot)
	}
	if err := s.unseal(ctx, c, r, true); err != nil {
		return nil, err
	}
	if r.rawLen == len(into) && r.rawLen > 0 {
		return into, s.codecs.decodeInto(r.codec, r.payload, into)
	}
	raw, err := s.codecs.decode(r.codec, r.payload, r.rawLen)
	if err == nil && r.codec == CodecRaw {
		raw = append([]byte(nil), raw...) // it points into the pooled buffer
	}
	return raw, err
}

// Hashes returns the hashes of the pages of a chunk. Only the record's header is read.
func (s *Store) Hashes(ctx context.Context, p Ptr) ([]PageHash, error) {
	r, err := s.readHeader(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("read header of %s: %w", p, err)
	}
	return r.hashes(), nil
}

func (s *Store) readHeader(ctx context.Context, p Ptr) (*record, error) {
	for {
		c, err := s.container(p.Container)
		if err != nil {
			return nil, err
		}
		r, err := s.readHeaderOf(ctx, c, p)
		if err == nil || !s.replaced(c) {
			return r, err
		}
	}
}

func (s *Store) readHeaderOf(ctx context.Context, c *container, p Ptr) (*record, error) {
	sl, err := s.slot(ctx, c, p.Slot)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, min(int(sl.len), recordHeader+int(sl.rawPages)*hashBytes))
	if err := s.readAt(ctx, c, buf, int64(sl.off)); err != nil {
		return nil, err
	}
	r, _, err := parseHeader(newSeed(s.opts.Store, c.id), buf)
	if err == nil && (r.slot != p.Slot || r.kind != sl.kind) {
		err = errs.New(errs.Corrupt, "record of slot %d in the place of slot %d", r.slot, p.Slot)
	}
	return r, err
}

// slot finds where a record lies.
func (s *Store) slot(ctx context.Context, c *container, n uint32) (slot, error) {
	c.mu.Lock()
	app := c.app
	c.mu.Unlock()
	if app != nil {
		return app.lookup(n)
	}
	table, err := s.slots(ctx, c)
	if err != nil {
		return slot{}, err
	}
	if int(n) >= len(table) || table[n].len < recordHeader {
		return slot{}, errs.New(errs.Corrupt, "container %s has no slot %d", c.id, n)
	}
	return table[n], nil
}

func (s *Store) slots(ctx context.Context, c *container) ([]slot, error) {
	return s.tables.Get(ctx, tableKey{c.id, c.gen}, func() ([]slot, error) { return s.loadTable(ctx, c) })
}

// loadTable reads the slot table, or makes it again from the records when the footer is bad.
func (s *Store) loadTable(ctx context.Context, c *container) ([]slot, error) {
	f, err := s.files.acquire(ctx, c.path)
	if err != nil {
		return nil, missing(c, err)
	}
	defer f.release()
	slots, _, err := readFooter(f, c.id, false)
	if err == nil || !errs.Is(err, errs.Corrupt) {
		return slots, err
	}
	s.opts.Log.Warn("container had no good footer, records scanned", "container", c.id, "err", err)
	res, err := s.scanFile(c, f)
	if err != nil {
		return nil, err
	}
	return res.slots, nil
}

func (s *Store) scanFile(c *container, f vfs.File) (*scanResult, error) {
	b, err := readAll(f, scanLimit)
	if err != nil {
		return nil, err
	}
	return scan(newSeed(s.opts.Store, c.id), b), nil
}

// missing turns a file that is gone into corruption: it was committed.
func missing(c *container, err error) error {
	if errs.Is(err, errs.NotFound) {
		return errs.New(errs.Corrupt, "container %s is missing: %w", c.id, err)
	}
	return err
}

func (s *Store) readAt(ctx context.Context, c *container, p []byte, off int64) error {
	f, err := s.files.acquire(ctx, c.path)
	if err != nil {
		return missing(c, err)
	}
	defer f.release()
	return readFull(f, p, off)
}

// getBuffer returns a read buffer of n bytes from the pool.
func (s *Store) getBuffer(n int) *[]byte {
	b, _ := s.buffers.Get().(*[]byte)
	if b == nil {
		b = new([]byte)
	}
	if cap(*b) < n {
		*b = make([]byte, n)
	}
	*b = (*b)[:n]
	return b
}

func (s *Store) putBuffer(b *[]byte) {
	if cap(*b) <= 1<<20 {
		s.buffers.Put(b)
	}
}
