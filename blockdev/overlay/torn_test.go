package overlay

import (
	"bytes"
	"math/rand/v2"
	"syscall"
	"testing"

	"livemount/internal/vfs"
)

// tornFS lets a write fail after it has written everything, as a full disk may when it comes to the
// last blocks.
type tornFS struct {
	vfs.FS
	armed bool
}

type tornFile struct {
	vfs.File
	fs *tornFS
}

func (f *tornFS) Create(name string) (vfs.File, error) {
	file, err := f.FS.Create(name)
	return &tornFile{file, f}, err
}

func (f *tornFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	if f.fs.armed {
		f.fs.armed = false
		return n - 1, syscall.ENOSPC
	}
	return n, err
}

func TestFailedWriteThatReachedTheDiskIsNotFoundBesideLaterRecords(t *testing.T) {
	for seed := range uint64(200) {
		mem := vfs.NewMem()
		fs := &tornFS{FS: mem}
		o := testOptions(fs)
		o.SegmentBytes, o.PrewriteBytes = segmentBytesMin, []int64{-1, 4096}[seed%2]
		nodes := []Node{{ID: 1, Size: 20000}}
		must(t, mem.MkdirAll("/m"))
		must(t, mem.SyncDir("/"))
		l := mustCreate(t, o, nodes)
		d, model := mustDevice(t, l, 1), make([]byte, 20000)
		write := func(p []byte, off int64) {
			t.Helper()
			must(t, d.WriteAt(bg(), p, off))
			copy(model[off:], p)
		}
		write(stamp(4096, 1), 0)
		write(stamp(4096, 2), 4096)
		must(t, d.Sync(bg()))
		fs.armed = true
		if err := d.WriteAt(bg(), stamp(100, 3), 50); err == nil {
			t.Fatal("the write did not fail")
		}
		if seed%4 < 2 {
			write(stamp(4096, 4), 8192) // does not fit and begins a new segment
		} else {
			write(stamp(100, 4), 8192) // takes its place
		}
		write(stamp(10, 5), 0)
		if seed%8 < 4 {
			must(t, d.Sync(bg()))
		}
		o.FS = mem.CrashClone(rand.New(rand.NewPCG(seed, 6)))
		again, rep := mustOpen(t, o, nodes)
		got := readAllOf(t, mustDevice(t, again, 1))
		synced := seed%8 < 4
		if synced && !bytes.Equal(got, model) || rep.Rotten {
			t.Fatalf("seed %d: other bytes: %+v", seed, rep)
		}
		last, third := bytes.Equal(got[:10], stamp(10, 5)), bytes.Equal(got[8192:8292], stamp(4096, 4)[:100])
		if last && !third && !bytes.Equal(got[8192:8292], stamp(100, 4)) || bytes.Equal(got[50:150], stamp(100, 3)) {
			t.Fatalf("seed %d: no prefix: %+v", seed, rep)
		}
		must(t, again.Close())
		must(t, l.Close())
	}
}
