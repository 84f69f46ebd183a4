// Package vfs is the only door to durable files. The engine's packages take an FS, so that tests can
// cut the power (Mem.CrashClone) and make any operation fail (Faulty).
//
// Durability follows POSIX at its strictest: the content of a file is safe after File.Sync, the name of
// a file after FS.SyncDir on its folder, and nothing else promises anything.
package vfs

import (
	"errors"
	"io"
	"path"

	"livemount/internal/errs"
)

// FS is a tree of files. Names are slash-separated paths.
type FS interface {
	// Create makes a new file, open for reading and writing; it fails with Exists when the name is taken.
	Create(name string) (File, error)
	// Open opens a file for reading.
	Open(name string) (File, error)
	// OpenRW opens an existing file for reading and writing.
	OpenRW(name string) (File, error)
	// Remove removes a file or an empty folder.
	Remove(name string) error
	// Rename replaces newname, in the same folder, in one step.
	Rename(oldname, newname string) error
	// Link gives a file a second name, in any folder of the same file system (else Invalid); it fails with
	// Exists when the name is taken. The file is there until its last name is removed.
	Link(oldname, newname string) error
	// MkdirAll makes a folder and those above it.
	MkdirAll(name string) error
	// List returns the sorted names in a folder.
	List(dir string) ([]string, error)
	// Stat tells what a name is.
	Stat(name string) (Info, error)
	// SyncDir makes the names in a folder durable.
	SyncDir(dir string) error
	// Space tells how many bytes the file system that holds dir has.
	Space(dir string) (Space, error)
}

// File is an open file. All methods may be called from several goroutines.
type File interface {
	io.ReaderAt
	io.WriterAt
	// Sync is fdatasync: content and size are on disk when it returns nil. After an error the content
	// written since the last successful Sync may be gone, and a second Sync proves nothing.
	Sync() error
	// Truncate sets the size in bytes.
	Truncate(size int64) error
	// Allocate reserves disk space for [off, off+n), extending the size when needed.
	Allocate(off, n int64) error
	// Size in bytes.
	Size() (int64, error)
	Close() error
}

// Info is what Stat tells.
type Info struct {
	SizeBytes int64
	IsDir     bool
}

// Space is what Space tells: bytes in all, and bytes that may still be written.
type Space struct {
	TotalBytes, FreeBytes int64
}

// ErrNoSyncDir is returned by Rename across folders, which no durable order of ours needs.
var ErrNoSyncDir = errors.New("rename across folders is not supported")

// WriteFile replaces a file as a whole and durably: after a crash it holds the old or the new content.
func WriteFile(fsys FS, name string, data []byte) error {
	tmp := name + ".tmp"
	if err := fsys.Remove(tmp); err != nil && !errs.Is(err, errs.NotFound) {
		return err
	}
	if err := writeNew(fsys, tmp, data); err != nil {
		return err
	}
	if err := fsys.Rename(tmp, name); err != nil {
		return err
	}
	return fsys.SyncDir(path.Dir(name))
}

func writeNew(fsys FS, name string, data []byte) error {
	f, err := fsys.Create(name)
	if err != nil {
		return err
	}
	if _, err = f.WriteAt(data, 0); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// ReadFile reads a whole file of at most limit bytes.
func ReadFile(fsys FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, errs.New(errs.Invalid, "%s: %d bytes, more than the %d allowed", name, size, limit)
	}
	data := make([]byte, size)
	if _, err := f.ReadAt(data, 0); err != nil && !(err == io.EOF && size == 0) {
		return nil, err
	}
	return data, nil
}

// RemoveAll removes a folder and all in it. What is missing is not an error.
func RemoveAll(fsys FS, dir string) error {
	info, err := fsys.Stat(dir)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.IsDir {
		names, err := fsys.List(dir)
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := RemoveAll(fsys, path.Join(dir, n)); err != nil {
				return err
			}
		}
	}
	return fsys.Remove(dir)
}
