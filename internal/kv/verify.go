package kv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/fb"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/ristretto/v2"
	"github.com/dgraph-io/ristretto/v2/z"

	"livemount/internal/errs"
)

// isMachine tells an error of the operating system, which a new folder would not cure.
func isMachine(err error) bool {
	for _, e := range []error{syscall.EIO, syscall.ENOSPC, syscall.EACCES, syscall.EPERM, syscall.EROFS, syscall.EMFILE, syscall.ENOMEM, syscall.ENFILE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// prepare verifies every table that Badger will open, so that none of its goroutines meets bad bytes, and
// removes what stands in its way: statistics, and the empty log files that a crash leaves between their
// creation and their first byte, which Badger refuses.
func prepare(dir string, key []byte) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	listed, keys, err := tablesOf(dir, key)
	if err != nil {
		return err
	}
	defer keys.close()
	for _, e := range entries {
		if err := prepareFile(dir, e, listed, keys); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// tablesOf returns the tables that belong to the database, and their keys.
func tablesOf(dir string, key []byte) (map[uint64]badger.TableManifest, *tableKeys, error) {
	listed, err := listedTables(dir)
	if err != nil {
		return nil, nil, err
	}
	keys, err := dataKeys(dir, key)
	return listed, keys, err
}

// Verify checks the tables of the database in dir and changes nothing: Corrupt when one is bad.
func Verify(dir string, key []byte) error {
	listed, keys, err := tablesOf(dir, key)
	if err != nil {
		return err
	}
	defer keys.close()
	for id, m := range listed {
		if err := verifyTable(filepath.Join(dir, fmt.Sprintf("%06d.sst", id)), keys, m.KeyID); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				err = errs.New(errs.Corrupt, "%w", err)
			}
			return err
		}
	}
	return nil
}

func prepareFile(dir string, e fs.DirEntry, listed map[uint64]badger.TableManifest, keys *tableKeys) error {
	path := filepath.Join(dir, e.Name())
	switch filepath.Ext(path) {
	case ".sst":
		if listed == nil { // Badger would remove all tables and begin anew
			return errs.New(errs.Corrupt, "%s is missing", filepath.Join(dir, badger.ManifestFilename))
		}
		id, ok := table.ParseFileID(e.Name())
		m, there := listed[id]
		if ok && !there {
			return nil // a crash left it half written, or not removed; Badger removes it
		}
		return verifyTable(path, keys, m.KeyID)
	case ".vlog", ".mem":
		info, err := e.Info()
		if err != nil || info.Size() > 0 {
			return err
		}
		return os.Remove(path)
	}
	if e.Name() == "DISCARD" {
		return os.Remove(path)
	}
	return nil
}

// listedTables returns the tables that belong to the database, or nil when there is no list.
func listedTables(dir string) (map[uint64]badger.TableManifest, error) {
	f, err := os.Open(filepath.Join(dir, badger.ManifestFilename))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m, _, err := badger.ReplayManifestFile(f, 0, badger.DefaultOptions(dir).WithLogger(nil))
	if err != nil && !isMachine(err) {
		err = errs.New(errs.Corrupt, "%s: %w", f.Name(), err)
	}
	return m.Tables, err
}

// tableKeys are the keys of the tables of an encrypted database. Badger decrypts the index of a table into a cache.
type tableKeys struct {
	*badger.KeyRegistry
	indexes *ristretto.Cache[uint64, *fb.TableIndex]
}

func (k *tableKeys) close() {
	if k != nil {
		k.indexes.Close()
	}
}

// dataKeys reads them; nil when the database is not encrypted, or new. Corrupt when they are bad, or the key is another.
func dataKeys(dir string, key []byte) (*tableKeys, error) {
	if key == nil {
		return nil, nil
	}
	if _, err := os.Stat(filepath.Join(dir, badger.KeyRegistryFileName)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	r, err := badger.OpenKeyRegistry(badger.KeyRegistryOptions{Dir: dir, ReadOnly: true, EncryptionKey: key})
	if err != nil {
		if !isMachine(err) {
			err = errs.New(errs.Corrupt, "keys of %s: %w", dir, err)
		}
		return nil, err
	}
	c, err := ristretto.NewCache(&ristretto.Config[uint64, *fb.TableIndex]{NumCounters: 1000, MaxCost: 32 << 20, BufferItems: 64})
	return &tableKeys{r, c}, err
}

// verifyTable checks the checksums of the index and of every block of a table.
func verifyTable(path string, keys *tableKeys, keyID uint64) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errs.New(errs.Corrupt, "table %s: %v", path, p)
		}
	}()
	mf, err := z.OpenMmapFile(path, os.O_RDONLY, 0)
	if err != nil {
		return fmt.Errorf("open table %s: %w", path, classify(err)) // an empty one cannot be mapped: EINVAL
	}
	o := table.Options{Compression: options.Snappy, BlockSize: 4096}
	if keys != nil {
		o.IndexCache = keys.indexes
		if o.DataKey, err = keys.DataKey(keyID); err != nil {
			mf.Close(-1) // opened for reading
			return errs.New(errs.Corrupt, "table %s: %w", path, err)
		}
	}
	t, err := table.OpenTable(mf, o)
	if err != nil {
		return errs.New(errs.Corrupt, "table %s: %w", path, err)
	}
	err = t.VerifyChecksum()
	if cerr := mf.Close(-1); err == nil && cerr != nil {
		return cerr
	}
	if err != nil {
		return errs.New(errs.Corrupt, "table %s: %w", path, err)
	}
	return nil
}
