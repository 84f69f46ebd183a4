package billyfs

import (
	"os"
	"sync"

	"livemount/fs"
)

// locks are those of files, as flock(2) has them: advisory, of a node, held by one open file. They live in this process.
type locks struct {
	mu      *sync.Mutex // guards the rest
	changed *sync.Cond
	holders map[fs.NodeID]*file
	closed  map[*file]bool // that closed while they waited
	waiting map[*file]int
}

func newLocks() locks {
	mu := &sync.Mutex{}
	return locks{mu, sync.NewCond(mu), map[fs.NodeID]*file{}, map[*file]bool{}, map[*file]int{}}
}

// Lock implements billy.File. It waits. A file that has the lock already keeps it.
func (f *file) Lock() error {
	if err := f.begin("lock", os.O_RDWR); err != nil {
		return err
	}
	l := &f.fs.locks
	l.mu.Lock()
	l.waiting[f]++
	f.end() // Close may come while it waits
	defer l.mu.Unlock()
	defer l.left(f)
	for {
		holder := l.holders[f.node.ID()]
		switch {
		case l.closed[f]:
			return &os.PathError{Op: "lock", Path: f.name, Err: os.ErrClosed}
		case holder == nil || holder == f:
			l.holders[f.node.ID()] = f
			return nil
		}
		l.changed.Wait()
	}
}

// left notes that a Lock is over. The caller holds mu.
func (l *locks) left(f *file) {
	if l.waiting[f]--; l.waiting[f] == 0 {
		delete(l.waiting, f)
		delete(l.closed, f)
	}
}

// Unlock implements billy.File.
func (f *file) Unlock() error {
	if err := f.begin("unlock", os.O_RDWR); err != nil {
		return err
	}
	defer f.end()
	l := &f.fs.locks
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free(f)
	return nil
}

// close ends the lock of a file, and its waiting for one.
func (l *locks) close(f *file) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free(f)
	if l.waiting[f] > 0 {
		l.closed[f] = true
		l.changed.Broadcast()
	}
}

// free gives a lock back. The caller holds mu.
func (l *locks) free(f *file) {
	if id := f.node.ID(); l.holders[id] == f {
		delete(l.holders, id)
		l.changed.Broadcast()
	}
}
