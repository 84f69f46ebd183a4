package chunkstore

import (
	"errors"
	"path"
	"sync"

	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/keyring"
)

// State is what has been committed of a container. It is kept by whoever commits (in the journal and in
// Badger) and given back to Recover.
type State struct {
	ID     ContainerID `json:"id"`
	Gen    uint32      `json:"gen"`
	Class  Class       `json:"class"`
	Bytes  int64       `json:"bytes"` // end of the last committed record
	Slots  uint32      `json:"slots"` // committed slots
	Raw    int64       `json:"raw"`   // decoded bytes of the committed records
	Sealed bool        `json:"sealed,omitempty"`
	// Fast says that there are records of LevelFast, to be packed later.
	Fast bool `json:"fast,omitempty"`
	// Freed is how many of the slots hold nothing any more.
	Freed uint32 `json:"freed,omitempty"`
	// Gone says that nobody points to the container any more: its file is removed.
	Gone bool `json:"gone,omitempty"`
}

// container is a file of the store, known by its name.
type container struct {
	id   ContainerID
	gen  uint32
	path string

	mu     sync.Mutex
	class  Class
	state  State         // committed
	owner  DraftID       // the Writer that may append to it; its records are nobody else's
	app    *appender     // while it is open for appending
	lost   bool          // a failed sync: never appended to again
	sealer *keyring.File // its key, once it is known
	// condemned says that its unused records are about to go: nothing new may point into it.
	condemned bool
}

// appender adds records to a container. Its methods may be called by one writer and many readers.
type appender struct {
	c    *container
	file vfs.File
	hdr  header
	seed seed
	key  *keyring.File // nil when the store is not encrypted
	keys *keyring.Keys // that it is of

	mu    sync.Mutex
	buf   []byte // records not yet written to the file
	base  int64  // offset of buf
	slots []slot
	ids   [][32]byte
	raw   int64
	end   int64 // end of the records once the footer was appended
	fast  bool
	freed uint32
	crypt []byte // the payload that is being encrypted
	bound []byte // and what is authenticated with it
	err   error  // a failed write: the tail of the file is undefined
}

const appendBuffer = 1 << 20

func (s *Store) createContainer(file string, h header) (*container, error) {
	fsys, name := s.opts.FS, path.Join(s.opts.Dir, file)
	key, err := s.newSealer(&h)
	if err != nil {
		return nil, err
	}
	if err := makeDurableDir(fsys, path.Dir(name)); err != nil {
		return nil, err
	}
	f, err := fsys.Create(name)
	if err != nil {
		return nil, err
	}
	if err := fsys.SyncDir(path.Dir(name)); err != nil {
		return nil, errors.Join(err, f.Close(), fsys.Remove(name))
	}
	c := &container{id: h.id, gen: h.gen, path: name, class: h.class, owner: h.draft, sealer: key}
	c.state = State{ID: h.id, Gen: h.gen, Class: h.class}
	c.app = &appender{c: c, file: f, hdr: h, key: key, keys: s.opts.Keys, seed: newSeed(h.store, h.id), buf: h.encode()}
	return c, nil
}

// makeDurableDir makes a folder whose name survives a power cut.
func makeDurableDir(fsys vfs.FS, dir string) error {
	if _, err := fsys.Stat(dir); err == nil {
		return nil
	}
	if err := fsys.MkdirAll(dir); err != nil {
		return err
	}
	if err := fsys.SyncDir(path.Dir(dir)); err != nil {
		return errors.Join(err, fsys.Remove(dir)) // so that the next one does not take it for durable
	}
	return nil
}

func (a *appender) endLocked() int64 { return a.base + int64(len(a.buf)) }

// fits reports whether a record of n stored bytes still has room below limit.
func (a *appender) fits(n int, limit int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.key != nil && a.key.KeyID() != a.keys.Newest() { // what comes after a rotation is under the new key
		return false
	}
	return len(a.slots) == 0 || (a.endLocked()+int64(n) <= limit && len(a.slots) < maxSlots)
}

// append adds a record and returns its slot.
func (a *appender) append(r *record) (uint32, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return 0, a.err
	}
	r.slot = uint32(len(a.slots))
	if a.key != nil {
		plain := r.payload
		a.crypt, a.bound = sealRecord(a.key, &a.hdr, r, a.crypt, a.bound)
		r.payload = a.crypt
		defer func() { r.payload, r.flags = plain, r.flags&^flagEncrypted }()
	}
	off := a.endLocked()
	a.buf = appendRecord(a.buf, a.seed, r)
	a.slots = append(a.slots, slot{
		off: uint32(off), len: uint32(a.endLocked() - off),
		rawPages: uint16(len(r.aux) / hashBytes), kind: r.kind, codec: r.codec,
	})
	a.ids = append(a.ids, r.id)
	a.raw += int64(r.rawLen)
	a.fast = a.fast || r.fast
	if len(a.buf) >= appendBuffer {
		return r.slot, a.flushLocked()
	}
	return r.slot, nil
}

// skip adds n slots that hold nothing, as a record that says so.
func (a *appender) skip(n int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil || n == 0 {
		return a.err
	}
	a.buf = appendRecord(a.buf, a.seed, &record{kind: KindFreed, slot: uint32(len(a.slots)), rawLen: n})
	a.slots, a.ids = addFreed(a.slots, a.ids, n)
	a.freed += uint32(n)
	return nil
}

func (a *appender) flushLocked() error {
	if a.err != nil || len(a.buf) == 0 {
		return a.err
	}
	if _, err := a.file.WriteAt(a.buf, a.base); err != nil {
		a.err = err
		return err
	}
	a.base += int64(len(a.buf))
	a.buf = a.buf[:0]
	return nil
}

// sync makes all that was appended durable.
func (a *appender) sync() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.flushLocked(); err != nil {
		return err
	}
	if err := a.file.Sync(); err != nil {
		a.err = err
		a.c.mu.Lock()
		a.c.lost = true
		a.c.mu.Unlock()
		return err
	}
	return nil
}

// lookup returns a slot that may be read from the file.
func (a *appender) lookup(n uint32) (slot, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if int(n) >= len(a.slots) {
		return slot{}, errs.New(errs.Corrupt, "container %s has no slot %d", a.c.id, n)
	}
	s := a.slots[n]
	if int64(s.off)+int64(s.len) > a.base {
		if err := a.flushLocked(); err != nil {
			return slot{}, err
		}
	}
	return s, nil
}

// has reports whether the slot holds a record of this id.
func (a *appender) has(n uint32, id [32]byte) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return int(n) < len(a.ids) && a.ids[n] == id
}

// snapshot returns the state as of all that was appended.
func (a *appender) snapshot(sealed bool) State {
	a.mu.Lock()
	defer a.mu.Unlock()
	end := a.endLocked()
	if sealed {
		end = a.end
	}
	return State{
		ID: a.c.id, Gen: a.c.gen, Class: a.hdr.class, Bytes: end,
		Slots: uint32(len(a.slots)), Raw: a.raw, Sealed: sealed, Fast: a.fast, Freed: a.freed,
	}
}

// rollback forgets all that was appended behind st, and cuts the file there.
func (a *appender) rollback(st State) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.file.Truncate(st.Bytes); err != nil {
		return err
	}
	a.slots, a.ids = a.slots[:st.Slots], a.ids[:st.Slots]
	a.buf, a.base, a.raw, a.fast, a.err = a.buf[:0], st.Bytes, st.Raw, st.Fast, nil
	return nil
}

// seal writes the footer and makes the container durable and immutable.
func (a *appender) seal() error {
	a.mu.Lock()
	a.end = a.endLocked()
	a.buf = append(a.buf, encodeFooter(&a.hdr, a.end, a.slots, a.ids)...)
	a.mu.Unlock()
	return a.sync()
}
