package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"livemount/internal/errs"
)

// verifyPiece is how much of a container is read at a time.
const verifyPiece = 1 << 20

// Enter waits until n bytes may be read, and returns what is called when they are.
type Enter func(ctx context.Context, n int64) (leave func(), err error)

// VerifyContainer reads all records of a sealed container again, past every cache of ours, and calls bad with each one
// whose checksums are wrong. It returns how many bytes it read. enter is asked before each piece, of n bytes, and what it
// returns is called behind it. A container that is
// replaced or removed meanwhile is no error.
func (s *Store) VerifyContainer(ctx context.Context, id ContainerID, enter Enter) (read int64, bad []Ptr, err error) {
	c, err := s.container(id)
	if err != nil {
		return 0, nil, nil
	}
	v := &verifier{s: s, c: c, enter: enter, seed: newSeed(s.opts.Store, id)}
	err = v.run(ctx)
	if s.replaced(c) || s.isGone(id) {
		return v.read, nil, ctx.Err()
	}
	return v.read, v.bad, err
}

// Sealed is a container that nothing is added to any more.
type Sealed struct {
	ID    ContainerID
	Gen   uint32
	Class Class
	Bytes int64
}

// AllSealed lists the containers that nothing is added to any more, of all classes.
func (s *Store) AllSealed() []Sealed {
	var list []Sealed
	for _, class := range []Class{ClassJournal, ClassMap, ClassData} {
		for _, c := range s.sorted(class) {
			c.mu.Lock()
			one, sealed := Sealed{c.id, c.gen, c.class, c.state.Bytes}, c.app == nil && (c.state.Sealed || class == ClassJournal)
			c.mu.Unlock()
			if info, err := s.opts.FS.Stat(c.path); class == ClassJournal && err == nil {
				one.Bytes = info.SizeBytes // nobody commits its length
			}
			if sealed {
				list = append(list, one)
			}
		}
	}
	return list
}

func (s *Store) isGone(id ContainerID) bool {
	_, err := s.container(id)
	return err != nil
}

// verifier reads a container from its start to its end.
type verifier struct {
	s     *Store
	c     *container
	enter Enter
	seed  seed
	file  *sharedFile
	buf   []byte
	at    int64 // offset of buf
	read  int64
	bad   []Ptr
}

func (v *verifier) run(ctx context.Context) error {
	slots, err := v.s.slots(ctx, v.c)
	if err != nil {
		return err
	}
	if v.file, err = v.s.files.acquire(ctx, v.c.path); err != nil {
		return missing(v.c, err)
	}
	defer v.file.release()
	defer v.dropCache() // others have better use for it
	v.dropCache()
	v.c.mu.Lock()
	committed := int(v.c.state.Slots)
	v.c.mu.Unlock()
	if committed == 0 { // of the journal
		committed = len(slots)
	}
	for n := range committed {
		sl := slot{}
		if n < len(slots) {
			sl = slots[n]
		}
		if sl.kind == KindFreed {
			continue
		}
		err := v.check(ctx, uint32(n), sl)
		if errs.Is(err, errs.Corrupt) || errors.Is(err, syscall.EIO) {
			p := Ptr{v.c.id, uint32(n)}
			v.bad = append(v.bad, p)
			v.s.noteBad(p, err)
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dropCache makes the kernel forget the file, so that it is read from the disk.
func (v *verifier) dropCache() {
	if f, ok := v.file.File.(interface{ DropCache() error }); ok {
		f.DropCache() // a hint: without it the copy in memory is verified
	}
}

// check reads a record and compares its checksums.
func (v *verifier) check(ctx context.Context, n uint32, sl slot) error {
	if sl.len < recordHeader {
		return errs.New(errs.Corrupt, "slot %d was lost", n)
	}
	b, err := v.bytes(ctx, int64(sl.off), int(sl.len))
	if err != nil {
		return err
	}
	r, err := parseRecord(v.seed, b)
	if err == nil && r.slot != n {
		err = errs.New(errs.Corrupt, "record of slot %d in the place of slot %d", r.slot, n)
	}
	return err
}

// bytes returns bytes of the file, which are read in pieces.
func (v *verifier) bytes(ctx context.Context, off int64, n int) ([]byte, error) {
	if off >= v.at && off+int64(n) <= v.at+int64(len(v.buf)) {
		return v.buf[off-v.at:][:n], nil
	}
	b, err := v.fill(ctx, off, n, max(n, verifyPiece))
	if errors.Is(err, syscall.EIO) { // somewhere in the piece; perhaps not in this record
		return v.fill(ctx, off, n, n)
	}
	return b, err
}

// fill reads size bytes, of which n must be there.
func (v *verifier) fill(ctx context.Context, off int64, n, size int) ([]byte, error) {
	leave, err := v.enter(ctx, int64(size))
	if err != nil {
		return nil, err
	}
	defer leave()
	if cap(v.buf) < size {
		v.buf = make([]byte, size)
	}
	v.buf, v.at = v.buf[:size], off
	got, err := v.file.ReadAt(v.buf, off)
	v.read += int64(got)
	v.buf = v.buf[:got]
	if got >= n { // the rest of the piece is asked for again
		return v.buf[:n], nil
	}
	v.buf = v.buf[:0]
	if err == nil || errors.Is(err, io.EOF) {
		return nil, errs.New(errs.Corrupt, "file ends at %d, before %d", off+int64(got), off+int64(n))
	}
	return nil, err
}

// CheckStates lists the containers on disk, and says of which committed ones bytes are missing. It is for a store that is
// not recovered.
func (s *Store) CheckStates(states []State) (there []Sealed, damage []string) {
	for _, st := range states {
		if st.Gone {
			continue
		}
		c, err := s.container(st.ID)
		if err != nil {
			damage = append(damage, err.Error())
			continue
		}
		info, err := s.opts.FS.Stat(c.path)
		if err != nil {
			damage = append(damage, fmt.Sprintf("container %s: %v", st.ID, err))
			continue
		}
		if c.gen == st.Gen && info.SizeBytes < st.Bytes {
			damage = append(damage, fmt.Sprintf("container %s ends at %d, not at %d", st.ID, info.SizeBytes, st.Bytes))
		}
		c.state = st // nobody else has the store
		there = append(there, Sealed{st.ID, c.gen, c.class, info.SizeBytes})
	}
	for _, c := range s.sorted(ClassJournal) {
		if info, err := s.opts.FS.Stat(c.path); err == nil {
			there = append(there, Sealed{c.id, c.gen, c.class, info.SizeBytes})
		}
	}
	return there, damage
}

// Unknown lists containers that no state names and that no draft which was begun made: their journal is lost. It is for a store
// that is not recovered.
func (s *Store) Unknown(ctx context.Context, states []State, drafts map[DraftID]bool) (damage []string) {
	known := map[ContainerID]bool{}
	for _, st := range states {
		known[st.ID] = true
	}
	for _, class := range []Class{ClassMap, ClassData} {
		for _, c := range s.sorted(class) {
			if known[c.id] {
				continue
			}
			if h, err := s.containerHeader(ctx, c); err == nil && !drafts[h.draft] {
				damage = append(damage, fmt.Sprintf("container that the journal does not know: %s", c.path))
			}
		}
	}
	return damage
}
