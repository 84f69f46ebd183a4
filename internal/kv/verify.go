package kv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
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

// prepare removes what Badger only keeps as statistics and verifies every table, so that none of its
// goroutines meets bad bytes. Without a MANIFEST, Badger would remove the tables and begin anew.
func prepare(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	tables, manifest := 0, false
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case e.Name() == "MANIFEST":
			manifest = true
		case e.Name() == "DISCARD":
			err = os.Remove(path)
		case strings.HasSuffix(e.Name(), ".sst"):
			tables++
			err = verifyTable(path)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if tables > 0 && !manifest {
		return errs.New(errs.Corrupt, "%s is missing", filepath.Join(dir, "MANIFEST"))
	}
	return nil
}

// verifyTable checks the checksums of the index and of every block of a table.
func verifyTable(path string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errs.New(errs.Corrupt, "table %s: %v", path, p)
		}
	}()
	mf, err := z.OpenMmapFile(path, os.O_RDONLY, 0)
	if err != nil {
		return fmt.Errorf("open table %s: %w", path, err)
	}
	t, err := table.OpenTable(mf, table.Options{Compression: options.None, BlockSize: 4096})
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
