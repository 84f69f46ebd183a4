// Package space keeps the disk under a store from being full. Badger maps its files into memory, and a
// page that cannot be allocated kills the process (SIGBUS), so whoever writes asks before: an ingest stops
// first, writes of mounts next, and metadata has the rest, with a ballast that is given up when somebody
// else filled the disk.
package space

import (
	"errors"
	"log/slog"
	"path"
	"sync"

	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// Options of a Guard. FS and Dir are required.
type Options struct {
	FS  vfs.FS
	Dir string
	// ReserveBytes must stay free after an ingest wrote; half of it after a mount wrote. Default: a
	// twentieth of the file system, at least 96 MiB, at most 1 GiB.
	ReserveBytes int64
	Log          *slog.Logger
}

// Guard watches the file system of one folder. Its methods may be called from several goroutines.
type Guard struct {
	o       Options
	reserve int64

	mu      sync.Mutex
	ballast int64 // bytes that the ballast holds now
}

const (
	minReserve = 96 << 20
	maxReserve = 1 << 30
	// commitBytes is what a commit and the compaction behind it may take.
	commitBytes = 40 << 20
	// freeingBytes is what a small commit may take that lets files be removed.
	freeingBytes = 12 << 20
)

// New returns a guard with its ballast in place, as far as there is room for it. NoSpace when not even
// the metadata could be opened.
func New(o Options) (*Guard, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	sp, err := o.FS.Space(o.Dir)
	if err != nil {
		return nil, err
	}
	g := &Guard{o: o, reserve: o.ReserveBytes}
	if g.reserve <= 0 {
		g.reserve = min(max(sp.TotalBytes/20, minReserve), maxReserve)
	}
	if err := g.adoptBallast(); err != nil {
		return nil, err
	}
	if err := g.Commit(); err != nil {
		return nil, errs.WithTry(err, "make room on the file system of %s, then start livemountd again", o.Dir)
	}
	g.restore()
	return g, nil
}

func (g *Guard) path() string { return path.Join(g.o.Dir, "ballast") }

func (g *Guard) adoptBallast() error {
	info, err := g.o.FS.Stat(g.path())
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	g.ballast = info.SizeBytes
	return err
}

// Admit asks for room for n bytes of an ingest.
func (g *Guard) Admit(n int64) error {
	return g.admit(n, g.reserve, "backups", "make room there, then back up again")
}

// AdmitMount asks for room for n bytes of a mount's writes.
func (g *Guard) AdmitMount(n int64) error {
	return g.admit(n, g.reserve/2, "writes to mounts", "make room there; writing goes on by itself")
}

// AdmitFreeing asks for room for n bytes of a mount that will give more back: removing and discarding must not need
// the room that they make.
func (g *Guard) AdmitFreeing(n int64) error {
	return g.admit(n, g.reserve/4, "mounts, not even to remove files,", "make room there; it goes on by itself")
}

func (g *Guard) admit(n, reserve int64, who, try string) error {
	sp, err := g.o.FS.Space(g.o.Dir)
	if err != nil {
		return err
	}
	if sp.FreeBytes-n >= reserve {
		return nil
	}
	return errs.WithTry(errs.New(errs.NoSpace, "no space left for %s on the file system of %s: %d MiB free, %d MiB are kept for the store itself",
		who, g.o.Dir, sp.FreeBytes>>20, reserve>>20), "%s", try)
}

// Commit asks for room for a commit of metadata. It gives up the ballast when the disk is full without.
func (g *Guard) Commit() error { return g.commit(commitBytes) }

// CommitFreeing asks for room for a small commit of metadata that lets files be removed: a disk that somebody else
// filled must not keep the store from giving space back.
func (g *Guard) CommitFreeing() error { return g.commit(freeingBytes) }

func (g *Guard) commit(need int64) error {
	sp, err := g.o.FS.Space(g.o.Dir)
	if err != nil {
		return err
	}
	if sp.FreeBytes < commitBytes && g.release() {
		if sp, err = g.o.FS.Space(g.o.Dir); err != nil {
			return err
		}
	}
	if sp.FreeBytes < need {
		return errs.WithTry(errs.New(errs.NoSpace, "the file system of %s is full: %d MiB free, metadata needs %d", g.o.Dir, sp.FreeBytes>>20, need>>20),
			"make room there")
	}
	if sp.FreeBytes > g.reserve+commitBytes {
		g.restore()
	}
	return nil
}

// release removes the ballast; it reports whether there was one.
func (g *Guard) release() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ballast == 0 {
		return false
	}
	g.ballast = 0
	err := g.o.FS.Remove(g.path())
	g.o.Log.Warn("disk is nearly full, ballast given up", "dir", g.o.Dir, "err", err)
	return err == nil
}

// restore allocates the ballast again when there is ample room.
func (g *Guard) restore() {
	g.mu.Lock()
	defer g.mu.Unlock()
	size := g.reserve / 2
	sp, err := g.o.FS.Space(g.o.Dir)
	if g.ballast > 0 || err != nil || sp.FreeBytes < g.reserve+size {
		return
	}
	if err := g.allocate(size); err != nil {
		g.o.Log.Warn("ballast was not allocated", "dir", g.o.Dir, "err", err)
		return
	}
	g.ballast = size
}

func (g *Guard) allocate(size int64) error {
	f, err := g.o.FS.Create(g.path())
	if err != nil {
		return err
	}
	err = errors.Join(f.Allocate(0, size), f.Close())
	if err != nil {
		err = errors.Join(err, g.o.FS.Remove(g.path()))
	}
	return err
}

// Space tells what mounts may still write, for statfs.
func (g *Guard) Space() (vfs.Space, error) {
	sp, err := g.o.FS.Space(g.o.Dir)
	sp.FreeBytes = max(0, sp.FreeBytes-g.reserve/2)
	return sp, err
}
