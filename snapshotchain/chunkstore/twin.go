package chunkstore

import (
	"context"

	"livemount/internal/errs"
)

// twinByte of a journal record's id says which of the two of its number it is: 1 or 2. Before there were two it was 0.
const twinByte = 16

// MendJournal writes a bad record of the journal again, in its place and with the bytes that it had, which its twin tells.
// Corrupt when the twin is bad too, or there is none; Invalid for what is no slot of a journal container that nothing is added to.
func (s *Store) MendJournal(ctx context.Context, p Ptr) error {
	c, err := s.container(p.Container)
	if err != nil {
		return err
	}
	c.mu.Lock()
	busy := c.app != nil
	c.mu.Unlock()
	if c.class != ClassJournal || busy {
		return errs.New(errs.Invalid, "slot %s is not in a finished container of the journal", p)
	}
	f, err := s.opts.FS.OpenRW(c.path)
	if err != nil {
		return missing(c, err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return err
	}
	slots, err := s.slots(ctx, c)
	if err != nil {
		return err
	}
	other := p.Slot ^ 1 // only this is read: what lies beside it may be unreadable
	if int(other) >= len(slots) || slots[other].len == 0 {
		return errs.New(errs.Corrupt, "journal slot %s: its twin is lost too", p)
	}
	b := make([]byte, slots[other].len)
	if err := readFull(f, b, int64(slots[other].off)); err != nil {
		return err
	}
	off, lost, err := s.lostTwin(ctx, c, b, slots[other], p.Slot)
	if err == nil && off+int64(len(lost)) > size {
		err = errs.New(errs.Corrupt, "journal slot %s is behind the end", p)
	}
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(lost, off); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	s.tables.Remove(tableKey{c.id, c.gen})
	s.UnmarkBad(p)
	return nil
}

// lostTwin makes the record of a slot from the bytes of its twin at sl, which lies beside it and is as long.
func (s *Store) lostTwin(ctx context.Context, c *container, b []byte, sl slot, lost uint32) (off int64, record []byte, err error) {
	sd, other := newSeed(s.opts.Store, c.id), lost^1
	r, err := parseRecord(sd, b)
	if err == nil && (r.kind != KindJournal || r.slot != other || r.id[twinByte] != byte(1+other%2)) {
		err = errs.New(errs.Corrupt, "journal slot %d of container %s has no twin", lost, c.id)
	}
	if err != nil {
		return 0, nil, err
	}
	off = int64(sl.off) + int64(sl.len)
	if lost < other {
		off = int64(sl.off) - int64(sl.len)
	}
	if off < headerBytes {
		return 0, nil, errs.New(errs.Corrupt, "journal slot %d of container %s has no place", lost, c.id)
	}
	if err := s.unseal(ctx, c, r, false); err != nil {
		return 0, nil, err
	}
	r.slot, r.id[twinByte] = lost, byte(1+lost%2)
	r.flags &^= flagEncrypted
	if s.opts.Keys != nil {
		key, err := s.sealerOf(ctx, c)
		if err != nil {
			return 0, nil, err
		}
		r.payload, _ = sealRecord(key, &header{store: s.opts.Store, id: c.id}, r, nil, nil) // the same bytes under the same nonce as before
	}
	return off, appendRecord(nil, sd, r), nil
}

// pairUp gives the records in the content of a container that was not finished the twins that are missing.
func (s *Store) pairUp(ctx context.Context, c *container, b []byte) ([]byte, error) {
	sd := newSeed(s.opts.Store, c.id)
	slots := scan(sd, b).slots
	for n := range (len(slots) + 1) &^ 1 {
		if n < len(slots) && slots[n].len > 0 {
			if _, err := parseRecord(sd, b[slots[n].off:slots[n].off+slots[n].len]); err == nil {
				continue
			}
		}
		if n^1 >= len(slots) || slots[n^1].len == 0 {
			continue
		}
		sl := slots[n^1]
		off, record, err := s.lostTwin(ctx, c, b[sl.off:sl.off+sl.len], sl, uint32(n))
		if errs.Is(err, errs.Corrupt) {
			continue // both are lost, or it is of an older version
		}
		if err != nil {
			return nil, err
		}
		if more := off + int64(len(record)) - int64(len(b)); more > 0 {
			b = append(b, make([]byte, more)...)
		}
		copy(b[off:], record)
	}
	return b, nil
}

// JournalFinished reports whether all containers of the journal have their footers.
func (s *Store) JournalFinished(ctx context.Context) (bool, error) {
	for _, c := range s.sorted(ClassJournal) {
		f, err := s.files.acquire(ctx, c.path)
		if err != nil {
			return false, missing(c, err)
		}
		size, err := f.Size()
		if err == nil {
			_, err = readTrailer(f, size)
		}
		f.release()
		if errs.Is(err, errs.Corrupt) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

// FinishJournal gives the containers of the journal that a crash left unfinished what they lack: twins, and a footer, so
// that the salt of an encrypted one stands twice; and cuts off what it left of a change that was being written. The caller
// knows that the journal has no gaps, and every change that was acknowledged. What a crash cannot have left stays.
func (s *Store) FinishJournal(ctx context.Context) error {
	for _, c := range s.sorted(ClassJournal) {
		c.mu.Lock()
		busy := c.app != nil
		c.mu.Unlock()
		if busy {
			continue
		}
		err := s.finishJournal(ctx, c)
		if errs.Is(err, errs.NoSpace) || errs.Is(err, errs.Corrupt) {
			s.opts.Log.Warn("container of the journal stays unfinished", "container", c.id, "err", err)
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) finishJournal(ctx context.Context, c *container) error {
	f, err := s.opts.FS.OpenRW(c.path)
	if err != nil {
		return missing(c, err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return err
	}
	if t, err := readTrailer(f, size); err == nil && t.id == c.id {
		return nil
	}
	b, err := readAll(f, scanLimit)
	if err != nil || size > scanLimit {
		return err
	}
	h, err := parseContainerHeader(b)
	if err != nil { // without its salt nothing can be read; without it, there may be nothing
		return err
	}
	if b, err = s.pairUp(ctx, c, b); err != nil {
		return err
	}
	res, end, each := s.goodEnd(c, b)
	footer := encodeFooter(h, end, res.slots, res.ids)
	if !torn(b[end:], each) && len(b[end:]) != len(footer) { // a footer with a bad byte has its length
		return errs.New(errs.Corrupt, "container %s: %d bytes behind the records are neither a torn change nor a footer", c.id, int64(len(b))-end)
	}
	if err := f.Truncate(end); err != nil {
		return err
	}
	if _, err := f.WriteAt(append(b[:end], footer...), 0); err != nil {
		return err
	}
	s.tables.Remove(tableKey{c.id, c.gen})
	return f.Sync()
}

// goodEnd scans a container and finds the end of its last good record, and how many records one change has.
func (s *Store) goodEnd(c *container, b []byte) (res *scanResult, end int64, each int) {
	sd := newSeed(s.opts.Store, c.id)
	res, end, each = scan(sd, b), min(headerBytes, int64(len(b))), 2
	good := 0
	for i, sl := range res.slots {
		if sl.len == 0 {
			continue
		}
		r, err := parseRecord(sd, b[sl.off:sl.off+sl.len])
		if err != nil {
			res.slots[i] = slot{}
			continue
		}
		if end, good = int64(sl.off+sl.len), i+1; r.id[twinByte] == 0 {
			each = 1
		}
	}
	res.slots, res.ids = res.slots[:good], res.ids[:good]
	return res, end, each
}

// torn says whether a crash can have left this behind the last whole record: nothing, or a part of one change.
func torn(tail []byte, each int) bool {
	zero := true
	for _, c := range tail {
		zero = zero && c == 0
	}
	return zero || string(tail[:min(len(tail), len(recordMagic))]) == recordMagic && begunRecords(tail, 0) <= each
}
