package fusefs_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func openRW(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

// fd keeps the file blocking, which Fd alone would not leave to chance.
func fd(f *os.File) int { return int(f.Fd()) }

// TestSyncedWritesSync allows for more Syncs than one: through the page cache the kernel sends its own.
func TestSyncedWritesSync(t *testing.T) {
	for _, direct := range []bool{false, true} {
		m := mounted(t, config{Size: 1 << 20, DirectIO: direct})
		page := bytes.Repeat([]byte{1}, 4096)
		plain, synced := openRW(t, m.disk, 0), openRW(t, m.disk, unix.O_SYNC)
		for _, c := range []struct {
			name  string
			syncs bool
			do    func() error
		}{
			{"plain write", false, func() error { _, err := plain.WriteAt(page, 0); return err }},
			{"write with O_SYNC", true, func() error { _, err := synced.WriteAt(page, 0); return err }},
			{"pwritev2 with RWF_DSYNC", true, func() error {
				_, err := unix.Pwritev2(fd(plain), [][]byte{page}, 0, unix.RWF_DSYNC)
				return err
			}},
			{"fsync", true, func() error { return unix.Fsync(fd(plain)) }},
			{"fdatasync", true, func() error { return unix.Fdatasync(fd(plain)) }},
		} {
			before, _, _ := m.stats()
			if err := c.do(); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			if after, _, _ := m.stats(); (after > before) != c.syncs {
				t.Errorf("direct %v: %s: %d syncs", direct, c.name, after-before)
			}
		}
	}
}

func TestSeekFindsDataAndHoles(t *testing.T) {
	for _, file := range []string{"", filepath.Join(t.TempDir(), "backing")} {
		const size = 1<<20 + 100
		m := mounted(t, config{Size: size, File: file})
		f := openRW(t, m.disk, 0)
		if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 8192), 64<<10); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			off, want int64
			whence    int
		}{
			{0, 64 << 10, unix.SEEK_DATA}, {0, 0, unix.SEEK_HOLE},
			{65 << 10, 65 << 10, unix.SEEK_DATA}, {64 << 10, 72 << 10, unix.SEEK_HOLE},
			{72 << 10, -1, unix.SEEK_DATA}, {size - 1, size - 1, unix.SEEK_HOLE},
			{size, -1, unix.SEEK_DATA}, {size, -1, unix.SEEK_HOLE},
		} {
			got, err := unix.Seek(fd(f), c.off, c.whence)
			if c.want < 0 {
				wantErr(t, "seek to nothing", err, unix.ENXIO)
			} else if got != c.want || err != nil {
				t.Errorf("seek %d from %d: got %d, %v, want %d", c.whence, c.off, got, err, c.want)
			}
		}
		f.WriteAt([]byte{1}, size-1)
		if got, err := unix.Seek(fd(f), size-1, unix.SEEK_HOLE); got != size || err != nil {
			t.Errorf("hole behind the last data: %d, %v", got, err)
		}
	}
}

const (
	punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	zero  = unix.FALLOC_FL_ZERO_RANGE
	keep  = unix.FALLOC_FL_KEEP_SIZE
)

func TestZeroedRangesAreZeroEverywhere(t *testing.T) {
	const size = 1 << 20
	m := mounted(t, config{Size: size})
	f := openRW(t, m.disk, 0)
	view, err := unix.Mmap(fd(f), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(view)
	want := bytes.Repeat([]byte{5}, size)
	if _, err := f.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	for i, mode := range []uint32{punch, zero, zero | keep} {
		off, n := int64(i*200_000+1), int64(100_000)
		view[off+7] = 9 // a dirty page in the range
		if err := unix.Fallocate(fd(f), mode, off, n); err != nil {
			t.Fatalf("mode %#x: %v", mode, err)
		}
		clear(want[off : off+n])
		got, err := os.ReadFile(m.disk)
		if err != nil || !bytes.Equal(got, want) || !bytes.Equal(view, want) {
			t.Errorf("mode %#x: wrong bytes (%v)", mode, err)
		}
	}
	if _, zeroes, _ := m.stats(); zeroes != 300_000 {
		t.Errorf("zeroed %d bytes", zeroes)
	}
}

func TestFallocateEndsWhereTheDiskEnds(t *testing.T) {
	const size = 1 << 20
	m := mounted(t, config{Size: size})
	f := openRW(t, m.disk, 0)
	for _, c := range []struct {
		mode   uint32
		off, n int64
		want   error
		zeroed int64
	}{
		{0, 0, size, nil, 0}, {keep, 0, size, nil, 0},
		{0, 0, size + 1, unix.EFBIG, 0}, {zero, size - 1, 2, unix.EFBIG, 0},
		{zero | keep, size - 1, 2, nil, 1}, {punch, size - 3, 1 << 40, nil, 3},
		{punch, size, 1, unix.EINVAL, 0}, {keep, size, 1, unix.EINVAL, 0},
		{unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096, unix.EOPNOTSUPP, 0},
		{unix.FALLOC_FL_INSERT_RANGE, 0, 4096, unix.EOPNOTSUPP, 0},
		{punch, 0, 10, nil, 10}, // still works after what was refused
	} {
		_, before, _ := m.stats()
		err := unix.Fallocate(fd(f), c.mode, c.off, c.n)
		if !errors.Is(err, c.want) {
			t.Errorf("mode %#x %d+%d: got %v, want %v", c.mode, c.off, c.n, err, c.want)
		}
		if _, after, _ := m.stats(); after-before != c.zeroed {
			t.Errorf("mode %#x %d+%d: zeroed %d, want %d", c.mode, c.off, c.n, after-before, c.zeroed)
		}
	}
}

func TestSizeIsFixed(t *testing.T) {
	const size = 1<<20 + 1
	m := mounted(t, config{Size: size})
	f := openRW(t, m.disk, 0)
	wantErr(t, "truncate to the same size", f.Truncate(size), nil)
	wantErr(t, "shrink", f.Truncate(size-1), unix.EPERM)
	wantErr(t, "grow", f.Truncate(size+1), unix.EFBIG)
	_, err := os.OpenFile(m.disk, os.O_RDWR|os.O_TRUNC, 0)
	wantErr(t, "open with O_TRUNC", err, unix.EPERM)
	n, err := unix.Pwrite(fd(f), make([]byte, 10), size-3)
	if n != 3 || err != nil {
		t.Errorf("write across the end: %d, %v", n, err)
	}
	_, err = unix.Pwrite(fd(f), make([]byte, 10), size)
	wantErr(t, "write behind the end", err, unix.EFBIG)
	n, err = unix.Pread(fd(f), make([]byte, 10), size-3)
	if n != 3 || err != nil {
		t.Errorf("read across the end: %d, %v", n, err)
	}
	if st, err := f.Stat(); err != nil || st.Size() != size {
		t.Errorf("size %d, %v", st.Size(), err)
	}
}

func TestReadOnlyIsReadOnly(t *testing.T) {
	m := mounted(t, config{Size: 1 << 20, ReadOnly: true})
	_, err := os.OpenFile(m.disk, os.O_RDWR, 0)
	wantErr(t, "open a disk for writing", err, unix.EROFS)
	wantErr(t, "create", os.WriteFile(filepath.Join(m.dir, "new"), nil, 0o600), unix.EROFS)
	wantErr(t, "remove", os.Remove(m.disk), unix.EROFS)
	wantErr(t, "truncate", os.Truncate(m.disk, 0), unix.EROFS)
	if p, err := os.ReadFile(m.disk); err != nil || len(p) != 1<<20 {
		t.Errorf("read: %d bytes, %v", len(p), err)
	}

	m = mounted(t, config{Size: 1 << 20})
	_, err = os.OpenFile(filepath.Join(m.dir, "reader.raw"), os.O_WRONLY, 0)
	wantErr(t, "open a read-only file for writing", err, unix.EROFS)
}

func TestNamesAreFixed(t *testing.T) {
	m := mounted(t, config{Size: 1 << 20})
	other := filepath.Join(m.dir, "other")
	wantErr(t, "create", os.WriteFile(other, nil, 0o600), unix.EPERM)
	wantErr(t, "mkdir", os.Mkdir(other, 0o700), unix.EPERM)
	wantErr(t, "remove", os.Remove(m.disk), unix.EPERM)
	wantErr(t, "rename", os.Rename(m.disk, other), unix.EPERM)
	wantErr(t, "link", os.Link(m.disk, other), unix.EPERM)
	wantErr(t, "symlink", os.Symlink(m.disk, other), unix.EPERM)
	_, err := os.Stat(other)
	wantErr(t, "stat", err, unix.ENOENT)
}

func TestAttributesAreTrue(t *testing.T) {
	m := mounted(t, config{Size: 1 << 20})
	var st unix.Stat_t
	if err := unix.Stat(m.disk, &st); err != nil {
		t.Fatal(err)
	}
	if st.Ino != diskID || st.Mode != unix.S_IFREG|0o600 || st.Size != 1<<20 || st.Blocks != allocatedBytes/512 {
		t.Errorf("disk: %+v", st)
	}
	var root unix.Stat_t
	if err := unix.Stat(m.dir, &root); err != nil || root.Ino != 1 || root.Mode&unix.S_IFMT != unix.S_IFDIR {
		t.Errorf("root: %+v, %v", root, err)
	}
	var vfs unix.Statfs_t
	if err := unix.Statfs(m.dir, &vfs); err != nil {
		t.Fatal(err)
	}
	if vfs.Blocks*uint64(vfs.Bsize) != totalBytes || vfs.Bavail*uint64(vfs.Bsize) != freeBytes || vfs.Namelen != 255 {
		t.Errorf("statfs: %+v", vfs)
	}
}

func TestTimes(t *testing.T) {
	m := mounted(t, config{Size: 1 << 20})
	old := time.Unix(1000, 5)
	if err := os.Chtimes(m.disk, old, old); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(m.disk); err != nil || !st.ModTime().Equal(old) {
		t.Errorf("after utimens: %v, %v", st, err)
	}
	if _, err := openRW(t, m.disk, 0).WriteAt([]byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(m.disk); err != nil || !st.ModTime().After(old) {
		t.Errorf("after a write: %v, %v", st, err)
	}
	wantErr(t, "chmod to the same", os.Chmod(m.disk, 0o600), nil)
	wantErr(t, "chmod", os.Chmod(m.disk, 0o644), unix.EPERM)
	wantErr(t, "chown", os.Chown(m.disk, 1, 1), unix.EPERM)
}

func TestFolderIsListed(t *testing.T) {
	m := mounted(t, config{Size: 1 << 20})
	dir, err := os.Open(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for range 2 {
		names, err := dir.Readdirnames(-1)
		if err != nil || len(names) != 4 || names[0] != "disk.raw" || names[3] != "slow.raw" {
			t.Errorf("%v, %v", names, err)
		}
		dir.Seek(0, io.SeekStart)
	}
	wantErr(t, "fsync of the folder", dir.Sync(), nil)
}

func TestWhatIsNotSupportedSaysSo(t *testing.T) {
	m := mounted(t, config{Size: 1 << 20})
	f := openRW(t, m.disk, 0)
	wantErr(t, "setxattr", unix.Setxattr(m.disk, "user.a", []byte("b"), 0), unix.ENOTSUP)
	_, err := unix.Getxattr(m.disk, "user.a", nil)
	wantErr(t, "getxattr", err, unix.ENOTSUP)
	_, err = unix.IoctlGetInt(fd(f), unix.BLKGETSIZE64)
	wantErr(t, "ioctl", err, unix.ENOTTY)
	// The kernel copies by itself when the server does not.
	f.WriteAt([]byte("abc"), 0)
	in, out := int64(0), int64(8192)
	if n, err := unix.CopyFileRange(fd(f), &in, fd(f), &out, 3, 0); n != 3 && !errors.Is(err, unix.ENOTSUP) {
		t.Errorf("copy_file_range: %d, %v", n, err)
	}
}

func TestMmapReadsAndWrites(t *testing.T) {
	for _, direct := range []bool{false, true} {
		const size = 1<<20 + 10
		m := mounted(t, config{Size: size, DirectIO: direct})
		f := openRW(t, m.disk, 0)
		f.WriteAt([]byte("hello"), size-5)
		view, err := unix.Mmap(fd(f), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Munmap(view)
		if string(view[size-5:]) != "hello" {
			t.Errorf("mapped %q", view[size-5:])
		}
		copy(view[size-5:], "world")
		copy(view[4090:], "across two pages")
		if err := unix.Msync(view, unix.MS_SYNC); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 16)
		if _, err := f.ReadAt(p, 4090); err != nil || string(p) != "across two pages" {
			t.Errorf("read %q, %v", p, err)
		}
		if _, _, writes := m.stats(); writes < 5 {
			t.Errorf("direct %v: %d bytes written", direct, writes)
		}
	}
}

func TestFailuresBecomeErrnos(t *testing.T) {
	m := mounted(t, config{Size: 1 << 20})
	f := openRW(t, filepath.Join(m.dir, "bad.raw"), unix.O_DIRECT)
	_, err := f.ReadAt(make([]byte, 4096), 0)
	wantErr(t, "corrupt", err, unix.EIO)
	_, err = f.ReadAt(make([]byte, 4096), 2<<20)
	wantErr(t, "bug", err, unix.EIO)
	_, err = f.WriteAt(make([]byte, 4096), 0)
	wantErr(t, "full", err, unix.ENOSPC)
	if _, err := os.ReadFile(m.disk); err != nil {
		t.Errorf("the other files: %v", err)
	}
}

func TestKilledReaderEndsItsRequest(t *testing.T) {
	m := mounted(t, config{Size: 1 << 20, DirectIO: true})
	cmd := exec.Command("dd", "if="+filepath.Join(m.dir, "slow.raw"), "of=/dev/null", "bs=4096")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if got := m.ask("started"); got != "ok" {
		t.Fatal(got)
	}
	cmd.Process.Kill()
	cmd.Wait() // hangs, and the test with it, if the request was not canceled
}
