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
	b, err := readAll(f, scanLimit)
	if err != nil {
		return err
	}
	off, lost, err := s.lostTwin(ctx, c, b, scan(newSeed(s.opts.Store, c.id), b).slots, p.Slot)
	if err == nil && off+int64(len(lost)) > int64(len(b)) {
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

// lostTwin makes the record of a slot from its twin, which lies beside it and is as long.
func (s *Store) lostTwin(ctx context.Context, c *container, b []byte, slots []slot, lost uint32) (off int64, record []byte, err error) {
	sd := newSeed(s.opts.Store, c.id)
	other := lost ^ 1
	if int(other) >= len(slots) || slots[other].len == 0 {
		return 0, nil, errs.New(errs.Corrupt, "journal slot %d of container %s: its twin is lost too", lost, c.id)
	}
	sl := slots[other]
	r, err := parseRecord(sd, b[sl.off:sl.off+sl.len])
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
		off, record, err := s.lostTwin(ctx, c, b, slots, uint32(n))
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

// withoutTear cuts off what a crash left of the one change that was being written. More than that is damage, and stays as
// evidence.
func (s *Store) withoutTear(c *container, b []byte) []byte {
	sd, end, each := newSeed(s.opts.Store, c.id), min(headerBytes, len(b)), 2
	for _, sl := range scan(sd, b).slots {
		if sl.len > 0 {
			if r, err := parseRecord(sd, b[sl.off:sl.off+sl.len]); err == nil {
				end = int(sl.off + sl.len)
				if r.id[twinByte] == 0 {
					each = 1
				}
			}
		}
	}
	if begunRecords(b, end) > each {
		return b
	}
	return b[:end]
}
