package chunkstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"sync"

	"livemount/internal/errs"
)

// Journal is the durable sequence of all changes of the catalogue: numbered records in containers of
// their own. The number of a record is one more than that of the record before. Each is there twice, one behind the
// other: when the metadata is lost, nothing else says what there was.
type Journal struct {
	s *Store

	mu   sync.Mutex // guards what is below, and the order of records
	c    *container
	next uint64
	err  error // a failed sync: what is on disk is not known until the store is opened again
}

// JournalReport is what ReadJournal found.
type JournalReport struct {
	Last uint64   // number of the last record, 0 when there is none
	Gaps []string // what is missing or bad, for people
}

// Append makes a record durable and returns its number.
func (j *Journal) Append(payload []byte) (uint64, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return 0, errs.WithTry(fmt.Errorf("journal is closed after an error: %w", j.err), "restart livemountd")
	}
	codec, stored, err := j.s.codecs.encode(LevelDefault, payload, nil)
	if err != nil {
		return 0, err
	}
	if len(payload) > maxJournalRaw || len(stored) > maxStored {
		return 0, errs.New(errs.Invalid, "change of %d bytes is too large for the journal", len(payload))
	}
	r := &record{kind: KindJournal, codec: codec, payload: stored, rawLen: len(payload)}
	if err := j.room(2 * storedLen(0, len(stored)+j.s.overhead())); err != nil {
		return 0, err
	}
	binary.LittleEndian.PutUint64(r.id[:], j.next)
	binary.LittleEndian.PutUint64(r.id[8:], j.next-1)
	return j.write(r)
}

// room makes sure that there is a container with room for n bytes.
func (j *Journal) room(n int) error {
	if j.c != nil && j.c.app.fits(n, j.s.opts.ContainerBytes) {
		return nil
	}
	if j.c != nil {
		if err := j.s.sealContainer(j.c); err != nil {
			j.err = err
			return err
		}
		j.c = nil
	}
	c, err := j.s.newContainer(ClassJournal, 0, j.next)
	j.c = c
	return err
}

func (j *Journal) write(r *record) (uint64, error) {
	app := j.c.app
	before := app.snapshot(false)
	for twin := range byte(2) {
		r.id[twinByte] = 1 + twin
		if _, err := app.append(r); err != nil {
			return 0, j.undo(app, before, err)
		}
	}
	app.mu.Lock()
	err := app.flushLocked()
	app.mu.Unlock()
	if err != nil {
		return 0, j.undo(app, before, err)
	}
	if err := app.sync(); err != nil {
		j.err = err
		return 0, err
	}
	n := j.next
	j.next++
	return n, nil
}

// undo takes a record back that could not be written, so that the journal can go on when there is room.
func (j *Journal) undo(app *appender, before State, cause error) error {
	if err := app.rollback(before); err != nil {
		j.err = fmt.Errorf("%w (and the cut behind it: %v)", cause, err)
		return j.err
	}
	switch {
	case before.Slots == 0: // the header may be missing in the file: begin a new container next time
		j.c = nil
	case j.s.opts.Keys != nil: // the slot must not be sealed again
		j.c = nil
		return errors.Join(cause, app.file.Close())
	}
	return cause
}

// Err returns the error that closed the journal, if any.
func (j *Journal) Err() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.err
}

// SetNext makes the next record's number at least n.
func (j *Journal) SetNext(n uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.next = max(j.next, n, 1)
}

func (j *Journal) close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.c == nil || j.err != nil {
		return nil
	}
	c := j.c
	j.c = nil
	return j.s.sealContainer(c)
}

// Read calls fn with every record numbered from or more, in order. What is bad is reported and passed
// over; only an error of fn or of the disk ends it.
func (j *Journal) Read(ctx context.Context, from uint64, fn func(n uint64, payload []byte) error) (*JournalReport, error) {
	rep := &JournalReport{}
	list := j.s.sorted(ClassJournal)
	for i, c := range list {
		if i+1 < len(list) && j.firstSeq(ctx, list[i+1]) <= from && j.firstSeq(ctx, list[i+1]) > 0 {
			continue
		}
		if err := j.readContainer(ctx, c, from, rep, fn); err != nil {
			return rep, fmt.Errorf("read journal container %s: %w", c.id, err)
		}
	}
	return rep, nil
}

// firstSeq returns the number of a container's first record, or 0 when its header is bad.
func (j *Journal) firstSeq(ctx context.Context, c *container) uint64 {
	h, err := j.s.containerHeader(ctx, c)
	if err != nil {
		return 0
	}
	return h.firstSeq
}

func (s *Store) containerHeader(ctx context.Context, c *container) (*header, error) {
	b := make([]byte, headerBytes)
	if err := s.readAt(ctx, c, b, 0); err != nil {
		return nil, err
	}
	return parseContainerHeader(b)
}

func (j *Journal) readContainer(ctx context.Context, c *container, from uint64, rep *JournalReport, fn func(uint64, []byte) error) error {
	h, err := j.s.containerHeader(ctx, c)
	if errs.Is(err, errs.Newer) {
		return err
	}
	if err == nil && h.store != j.s.opts.Store {
		return errs.New(errs.Invalid, "%s belongs to store %s", c.path, h.store)
	}
	if want := max(rep.Last+1, from); err == nil && h.firstSeq > want {
		rep.Gaps = append(rep.Gaps, fmt.Sprintf("journal records %d to %d are missing before container %s", want, h.firstSeq-1, c.id))
		rep.Last = h.firstSeq - 1
	}
	f, err := j.s.files.acquire(ctx, c.path)
	if err != nil {
		return err
	}
	defer f.release()
	b, err := readAll(f, scanLimit)
	if err != nil {
		return err
	}
	sd := newSeed(j.s.opts.Store, c.id)
	slots := scan(sd, b).slots
	j.checkSealed(c, b, slots, rep)
	var bad unreadable
	for _, sl := range slots {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := j.readSlot(ctx, sd, b, sl, c, from, rep, &bad, fn); err != nil {
			return err
		}
	}
	bad.giveUp(rep, bad.n+1)
	return nil
}

// unreadable is a record whose checksum is right and whose content cannot be had. Its twin comes next.
type unreadable struct {
	n   uint64 // 0: none
	err error
}

// giveUp notes the record as a gap when one behind it comes, or none.
func (u *unreadable) giveUp(rep *JournalReport, next uint64) {
	if u.n > 0 && next > u.n && rep.Last < u.n {
		rep.Gaps = append(rep.Gaps, fmt.Sprintf("journal record %d: %v", u.n, u.err))
		rep.Last = u.n
	}
}

// checkSealed says when a sealed container has fewer good records than when it was sealed. Only at the end
// of one that was not sealed may a bad record be what a crash left of a change that nobody was told of.
func (j *Journal) checkSealed(c *container, b []byte, slots []slot, rep *JournalReport) {
	if len(b) < headerBytes+trailerBytes {
		return
	}
	t, err := parseTrailer(b[len(b)-trailerBytes:], int64(len(b)))
	sealed := err == nil && t.id == c.id
	good, end := map[uint64]bool{}, headerBytes
	each := 1 // records of a number; older versions wrote one
	for _, sl := range slots {
		if sl.len == 0 {
			continue
		}
		if r, err := parseRecord(newSeed(j.s.opts.Store, c.id), b[sl.off:sl.off+sl.len]); err == nil {
			good[binary.LittleEndian.Uint64(r.id[:])] = true
			end = int(sl.off + sl.len)
			if r.id[twinByte] > 0 {
				each = 2
			}
		}
	}
	if !sealed {
		if len(good) == 0 {
			each = 2
		}
		if n := begunRecords(b, end); n > each { // each is on disk before the next is written
			rep.Gaps = append(rep.Gaps, fmt.Sprintf("journal container %s: %d records behind offset %d are bad", c.id, n, end))
		}
		return
	}
	if want := (t.count + each - 1) / each; len(good) < want {
		rep.Gaps = append(rep.Gaps, fmt.Sprintf("journal container %s has %d good records of %d", c.id, len(good), want))
	}
}

// begunRecords counts where records begin behind an offset. No JSON has the byte of the kind.
func begunRecords(b []byte, from int) (n int) {
	for at := from; at+recordHeader <= len(b); at += recordAlign {
		if string(b[at:at+len(recordMagic)]) == recordMagic && RecordKind(b[at+len(recordMagic)]) == KindJournal {
			n++
		}
	}
	return n
}

// SettleJournal makes durable what a crash left in the journal before anybody relies on it: a record that
// the page cache still shows may never have reached the disk. The bytes of the newest container are written
// again, because after a failed sync the kernel takes them for written; a record of which a crash left one of the two gets
// its twin.
func (s *Store) SettleJournal(ctx context.Context) error {
	list := s.sorted(ClassJournal)
	if len(list) == 0 {
		return nil
	}
	c := list[len(list)-1]
	f, err := s.opts.FS.OpenRW(c.path)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := readAll(f, scanLimit)
	if err != nil {
		return err
	}
	if _, err := parseTrailer(b[max(0, len(b)-trailerBytes):], int64(len(b))); err != nil {
		paired, err := s.pairUp(ctx, c, bytes.Clone(b))
		if err != nil {
			return err
		}
		if _, err = f.WriteAt(paired, 0); errs.Is(err, errs.NoSpace) { // the twin has time
			_, err = f.WriteAt(b, 0)
		}
		if err != nil {
			return err
		}
	}
	if err := firstError(f.Sync(), s.opts.FS.SyncDir(path.Dir(c.path))); err != nil {
		return fmt.Errorf("settle journal container %s: %w", c.id, err)
	}
	return ctx.Err()
}

func (j *Journal) readSlot(ctx context.Context, sd seed, b []byte, sl slot, c *container, from uint64, rep *JournalReport, bad *unreadable, fn func(uint64, []byte) error) error {
	if sl.len == 0 {
		return nil // the gap in the numbers tells
	}
	r, err := parseRecord(sd, b[sl.off:sl.off+sl.len])
	if err != nil || r.kind != KindJournal {
		return nil // likewise
	}
	n := binary.LittleEndian.Uint64(r.id[:])
	bad.giveUp(rep, n)
	if n < from || n <= rep.Last {
		return nil
	}
	if want := max(rep.Last+1, from); n != want && bad.n != n {
		rep.Gaps = append(rep.Gaps, fmt.Sprintf("journal records %d to %d are missing before offset %d of container %s", want, n-1, sl.off, c.id))
	}
	err = j.s.unseal(ctx, c, r, false)
	if err != nil && !errs.Is(err, errs.Corrupt) {
		return err
	}
	var payload []byte
	if err == nil {
		payload, err = j.s.codecs.decode(r.codec, r.payload, r.rawLen)
	}
	if err != nil {
		*bad = unreadable{n, err}
		return nil
	}
	rep.Last = n
	return fn(n, payload)
}
