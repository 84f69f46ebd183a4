package fusefs_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestCachedAttributesAreTrue makes random changes and, after each, compares what the kernel remembers of everything
// with what it is told when it must ask.
func TestCachedAttributesAreTrue(t *testing.T) {
	m := store(t, config{})
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	w := &walk{t: t, root: m.dir, rand: rand.New(rand.NewPCG(seed, 1))}
	mkdir(t, m.dir+"/d0", 0o755)
	mkdir(t, m.dir+"/d1", 0o755)
	t.Cleanup(func() {
		for _, f := range w.open {
			f.Close()
		}
	})
	w.compare("nothing")
	for range 400 {
		w.compare(w.step())
		if t.Failed() {
			return
		}
	}
}

type walk struct {
	t    *testing.T
	root string
	rand *rand.Rand
	open []*os.File
}

// path is one of a few names, so that they meet.
func (w *walk) path() string {
	dir := []string{"", "d0", "d1", "d0/sub0", "d1/sub1"}[w.rand.IntN(5)]
	return filepath.Join(w.root, dir, fmt.Sprintf("%s%d", []string{"f", "f", "sub"}[w.rand.IntN(3)], w.rand.IntN(2)))
}

// step makes a change, or has one refused.
func (w *walk) step() string {
	a, b := w.path(), w.path()
	size := w.rand.Int64N(20_000)
	switch k := w.rand.IntN(13); k {
	case 0, 1, 2:
		if f, err := os.OpenFile(a, os.O_RDWR|os.O_CREATE, 0o644); err == nil {
			w.open = append(w.open, f)
		}
		return "create " + a
	case 3:
		os.Mkdir(a, 0o755)
		return "mkdir " + a
	case 4:
		os.Link(a, b)
		return "link " + a + " " + b
	case 5, 6:
		os.Remove(a)
		return "remove " + a
	case 7, 8:
		os.Rename(a, b)
		return "rename " + a + " " + b
	case 9:
		os.Chmod(a, os.FileMode(w.rand.IntN(0o1000)))
		return "chmod " + a
	case 10:
		os.Truncate(a, size)
		return "truncate " + a
	case 11:
		os.Symlink(b, a)
		return "symlink " + a
	default:
		return w.change(size)
	}
}

// change changes a file that is open, and may have no name.
func (w *walk) change(size int64) string {
	if len(w.open) == 0 {
		return "nothing"
	}
	i := w.rand.IntN(len(w.open))
	f := w.open[i]
	switch w.rand.IntN(4) {
	case 0:
		f.WriteAt(make([]byte, 5000), size)
		return "write " + f.Name()
	case 1:
		unix.Fallocate(fd(f), zero, size, 3000)
		return "zero " + f.Name()
	case 2:
		unix.Fallocate(fd(f), punch, size, 3000)
		return "punch " + f.Name()
	default:
		f.Close()
		w.open = append(w.open[:i:i], w.open[i+1:]...)
		return "close " + f.Name()
	}
}

func (w *walk) compare(after string) {
	w.t.Helper()
	err := filepath.WalkDir(w.root, func(path string, _ os.DirEntry, err error) error {
		w.same(after, unix.AT_FDCWD, path)
		return err
	})
	if err != nil {
		w.t.Errorf("after %s: %v", after, err)
	}
	for _, f := range w.open {
		w.same(after, fd(f), "")
	}
}

func (w *walk) same(after string, dir int, path string) {
	w.t.Helper()
	const flags = unix.AT_SYMLINK_NOFOLLOW | unix.AT_EMPTY_PATH
	var cached, asked unix.Statx_t
	if err := unix.Statx(dir, path, flags, unix.STATX_BASIC_STATS, &cached); err != nil {
		w.t.Fatal(err)
	}
	if err := unix.Statx(dir, path, flags|unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &asked); err != nil {
		w.t.Fatal(err)
	}
	if cached != asked {
		w.t.Errorf("after %s: %s:\n%+v\nis remembered, and it is\n%+v", after, path, cached, asked)
	}
}
