package snapshotchain

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"livemount/internal/errs"
	"livemount/keyring"
	"livemount/snapshotchain/chunkstore"
)

// FormatVersion is the version of the store's format; a newer one is refused.
const FormatVersion = 1

// formatFile is DIR/FORMAT.
type formatFile struct {
	Format     int             `json:"format"`
	Store      string          `json:"store"`
	Created    time.Time       `json:"created"`
	Encryption json.RawMessage `json:"encryption,omitempty"` // key slots; a store without is not encrypted
	Serial     int             `json:"serial,omitempty"`     // of an encrypted store: the larger of FORMAT and its copy counts

	id    chunkstore.StoreID
	slots *keyring.Slots
}

// takeLock makes sure that one process owns the store. The kernel gives the lock back when the process ends.
func takeLock(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err = flock(f); err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errs.WithTry(errs.New(errs.Busy, "store %s is in use by another process", dir),
			"stop the other livemountd, or give this one another --data folder")
	}
	return nil, err
}

// flock waits a little for a process that was just killed: the kernel takes its time to give the lock back.
func flock(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for tries := 0; errors.Is(err, unix.EWOULDBLOCK) && tries < 20; tries++ {
		<-time.After(100 * time.Millisecond)
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	return err
}

// decode fills in what the text says.
func (f *formatFile) decode() (err error) {
	if n, err := hex.Decode(f.id[:], []byte(f.Store)); err != nil || n != len(f.id) {
		return fmt.Errorf("store id %q", f.Store)
	}
	if f.Encryption != nil {
		f.slots, err = keyring.Parse(f.Encryption)
	}
	return err
}

// loadFormat reads DIR/FORMAT, or writes it for a new store.
func (s *Store) loadFormat() (err error) {
	var differ bool
	s.format, differ, err = bestFormat(s.opts.Dir)
	if errs.Is(err, errs.NotFound) || errs.Is(err, errs.Corrupt) {
		err = s.makeFormat(err)
	} else if err == nil && differ {
		err = writeFormat(s.opts.Dir, s.format)
	}
	if err != nil {
		return err
	}
	s.id = s.format.id
	return s.unlock()
}

// makeFormat names a new store, unless containers say that FORMAT was lost: then it says what their headers say.
func (s *Store) makeFormat(cause error) error {
	f := &formatFile{Format: FormatVersion, Created: s.opts.Clock.Now().UTC()}
	var err error
	f.id, err = s.storeOf()
	switch {
	case errs.Is(err, errs.NotFound) && errs.Is(cause, errs.NotFound):
		rand.Read(f.id[:]) // never fails
	case errs.Is(err, errs.NotFound):
		return cause
	case err != nil:
		return err
	default:
		s.opts.Log.Error("store format file was bad, written again", "err", cause)
	}
	s.format = f
	return writeFormat(s.opts.Dir, f)
}
