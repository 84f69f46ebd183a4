package chunkstore

import (
	"context"
	"sync"

	"livemount/internal/cache"
	"livemount/internal/vfs"
)

// files keeps a bounded number of containers open for reading.
type files struct {
	fs    vfs.FS
	cache *cache.Cache[string, *sharedFile]
}

// sharedFile is closed when the cache and all readers have let go of it.
type sharedFile struct {
	vfs.File
	mu     sync.Mutex
	refs   int
	closed bool
}

func newFiles(fs vfs.FS, limit int) *files {
	one := func(*sharedFile) int64 { return 1 }
	drop := func(_ string, f *sharedFile) { f.release() }
	return &files{fs: fs, cache: cache.New(int64(limit), one, drop)}
}

// acquire returns an open file; the caller releases it.
func (f *files) acquire(ctx context.Context, name string) (*sharedFile, error) {
	for {
		sf, err := f.cache.Get(ctx, name, func() (*sharedFile, error) {
			file, err := f.fs.Open(name)
			return &sharedFile{File: file, refs: 1}, err
		})
		if err != nil {
			return nil, err
		}
		if sf.retain() {
			return sf, nil
		}
	}
}

func (s *sharedFile) retain() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.refs++
	return true
}

func (s *sharedFile) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refs--; s.refs == 0 && !s.closed {
		s.closed = true
		s.File.Close() // opened for reading: nothing can be lost
	}
}
