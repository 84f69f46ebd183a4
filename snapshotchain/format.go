package snapshotchain

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"livemount/internal/errs"
	"livemount/internal/vfs"
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

// loadFormat reads DIR/FORMAT, or writes it for a new store.
func (s *Store) loadFormat() (chunkstore.StoreID, error) {
	path := filepath.Join(s.opts.Dir, "FORMAT")
	id, err := readFormat(path)
	if errs.Is(err, errs.NotFound) {
		return s.newFormat(path)
	}
	if errs.Is(err, errs.Corrupt) {
		return s.formatFromContainers(path, err)
	}
	return id, err
}

// readFormat reads a FORMAT: Corrupt when it is bad, Newer when a newer version wrote it.
func readFormat(path string) (id chunkstore.StoreID, err error) {
	b, err := vfs.ReadChecked(vfs.OS{}, path, 1<<20)
	if err != nil {
		return id, err
	}
	var f formatFile
	if err := json.Unmarshal(b, &f); err != nil {
		return id, errs.New(errs.Corrupt, "%s: %w", path, err)
	}
	if f.Format > FormatVersion || f.Encryption != nil {
		return id, errs.WithTry(
			errs.New(errs.Newer, "%s: format %d; this version knows %d", path, f.Format, FormatVersion), "install the newer livemountd")
	}
	if n, err := hex.Decode(id[:], []byte(f.Store)); err != nil || n != len(id) {
		return id, errs.New(errs.Corrupt, "%s: store id %q", path, f.Store)
	}
	return id, nil
}

// newFormat names a new store, unless containers say that FORMAT was lost.
func (s *Store) newFormat(path string) (chunkstore.StoreID, error) {
	id, err := chunkstore.FindStoreID(s.opts.FS, s.opts.Containers)
	if errs.Is(err, errs.NotFound) {
		rand.Read(id[:]) // never fails
		err = nil
	}
	if err != nil {
		return id, err
	}
	return id, s.writeFormat(path, id)
}

// formatFromContainers writes FORMAT again from what the headers of the containers say.
func (s *Store) formatFromContainers(path string, cause error) (chunkstore.StoreID, error) {
	id, err := chunkstore.FindStoreID(s.opts.FS, s.opts.Containers)
	if err != nil {
		return id, errs.New(errs.Corrupt, "%s: %w", path, cause)
	}
	s.opts.Log.Error("store format file was bad, written again", "path", path, "err", cause)
	return id, s.writeFormat(path, id)
}

func (s *Store) writeFormat(path string, id chunkstore.StoreID) error {
	f := formatFile{Format: FormatVersion, Store: id.String(), Created: s.opts.Clock.Now().UTC()}
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	return vfs.WriteChecked(vfs.OS{}, path, b)
}
