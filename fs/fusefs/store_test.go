package fusefs_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"
)

// TestStoreIsPOSIX runs go-fuse's suite, without what must fail: the space of a datastore is shared, so nothing is
// preallocated, and FcntlFlockLocksFile, which go-fuse leaves out as well, expects a process to shut itself out with
// record locks (fcntl(2): they are the process's).
func TestStoreIsPOSIX(t *testing.T) {
	for _, direct := range []bool{false, true} {
		m := store(t, config{DirectIO: direct})
		for name, test := range posixtest.All {
			if slices.Contains([]string{"Fallocate", "FallocateKeepSize", "FcntlFlockLocksFile"}, name) {
				continue
			}
			t.Run(fmt.Sprintf("direct=%v/%s", direct, name), func(t *testing.T) {
				dir := filepath.Join(m.dir, name)
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				test(t, dir)
			})
		}
	}
}

func stat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return st
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t testing.TB, path string, perm os.FileMode) {
	t.Helper()
	if err := os.Mkdir(path, perm); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, perm); err != nil { // the umask
		t.Fatal(err)
	}
}

func TestStoreOutlivesItsServer(t *testing.T) {
	c := config{Store: t.TempDir()}
	m := store(t, c)
	mkdir(t, m.dir+"/d", 0o751)
	write(t, m.dir+"/d/f", "content")
	if err := os.Symlink("d/f", m.dir+"/l"); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(m.dir+"/d/f", 7, 8); err != nil {
		t.Fatal(err)
	}
	at := time.Unix(-5, 7)
	if err := os.Chtimes(m.dir+"/d/f", at, at); err != nil {
		t.Fatal(err)
	}
	want := stat(t, m.dir+"/d/f")
	m.stop()
	m = store(t, c)
	got := stat(t, m.dir+"/d/f")
	got.Dev = want.Dev
	if got != want || got.Mtim.Sec != -5 || got.Uid != 7 || got.Gid != 8 {
		t.Errorf("%+v\nnot %+v", got, want)
	}
	if b, err := os.ReadFile(m.dir + "/l"); string(b) != "content" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if st := stat(t, m.dir+"/d"); st.Mode&0o7777 != 0o751 {
		t.Errorf("mode %o", st.Mode)
	}
}

func TestNewNodesBelongToTheCaller(t *testing.T) {
	m := store(t, config{})
	if err := os.Chmod(filepath.Dir(m.dir), 0o755); err != nil { // holds all folders of the test
		t.Fatal(err)
	}
	group, own := filepath.Join(m.dir, "group"), filepath.Join(m.dir, "own")
	mkdir(t, own, 0o777)
	mkdir(t, group, 0o777)
	if err := unix.Chown(group, 0, 500); err != nil {
		t.Fatal(err)
	}
	if err := unix.Chmod(group, 0o2777); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{own, group} {
		run(t, "setpriv", "--reuid=1234", "--regid=4321", "--clear-groups", "sh", "-c",
			`umask 027; cd "$0" && echo x > f && mkdir d && ln -s f l && mkfifo p 2>/dev/null; ln f f2 && test "$(cat f2)" = x`, dir)
	}
	for path, want := range map[string][3]uint32{
		"own/f": {unix.S_IFREG | 0o640, 1234, 4321}, "own/d": {unix.S_IFDIR | 0o750, 1234, 4321},
		"own/l": {unix.S_IFLNK | 0o777, 1234, 4321}, "group/f": {unix.S_IFREG | 0o640, 1234, 500},
		"group/d": {unix.S_IFDIR | 0o2750, 1234, 500}, "group/l": {unix.S_IFLNK | 0o777, 1234, 500},
	} {
		if st := stat(t, filepath.Join(m.dir, path)); [3]uint32{st.Mode, st.Uid, st.Gid} != want {
			t.Errorf("%s: %o %d %d", path, st.Mode, st.Uid, st.Gid)
		}
	}
	if _, err := os.Lstat(own + "/p"); !os.IsNotExist(err) {
		t.Errorf("a pipe was made: %v", err)
	}
	wantErr(t, "mkfifo", unix.Mkfifo(own+"/p", 0o600), unix.EPERM)
	if out, err := try(t, "setpriv", "--reuid=99", "--regid=99", "--clear-groups", "cat", own+"/f"); err == nil {
		t.Errorf("a stranger read %q", out)
	}
}

func TestStoreRefusesAsPOSIXSays(t *testing.T) {
	m := store(t, config{})
	at := func(name string) string { return filepath.Join(m.dir, name) }
	mkdir(t, at("d"), 0o755)
	mkdir(t, at("full"), 0o755)
	write(t, at("full/x"), "x")
	write(t, at("f"), "f")
	long := at(strings.Repeat("n", 256))
	open := func(path string, flags int) error {
		f, err := os.OpenFile(path, flags, 0o600)
		f.Close()
		return err
	}
	renameat2 := func(from, to string, flags uint) error {
		return unix.Renameat2(unix.AT_FDCWD, at(from), unix.AT_FDCWD, at(to), flags)
	}
	for _, c := range []struct {
		name string
		err  error
		want error
	}{
		{"rmdir of a full folder", unix.Rmdir(at("full")), unix.ENOTEMPTY},
		{"rmdir of a file", unix.Rmdir(at("f")), unix.ENOTDIR},
		{"unlink of a folder", unix.Unlink(at("d")), unix.EISDIR},
		{"rename over a full folder", unix.Rename(at("d"), at("full")), unix.ENOTEMPTY},
		{"rename of a file over a folder", unix.Rename(at("f"), at("d")), unix.EISDIR},
		{"rename of a folder over a file", unix.Rename(at("d"), at("f")), unix.ENOTDIR},
		{"rename into itself", unix.Rename(at("full"), at("full/y")), unix.EINVAL},
		{"noreplace", renameat2("f", "d", unix.RENAME_NOREPLACE), unix.EEXIST},
		{"exchange", renameat2("f", "d", unix.RENAME_EXCHANGE), unix.EINVAL},
		{"whiteout", renameat2("f", "g", unix.RENAME_WHITEOUT), unix.EINVAL},
		{"link of a folder", unix.Link(at("d"), at("e")), unix.EPERM},
		{"link over a file", unix.Link(at("f"), at("full/x")), unix.EEXIST},
		{"exclusive", open(at("f"), os.O_CREATE|os.O_EXCL), unix.EEXIST},
		{"a long name", open(long, os.O_CREATE), unix.ENAMETOOLONG},
		{"lookup of a long name", open(long, 0), unix.ENAMETOOLONG},
		{"mkdir of a long name", unix.Mkdir(long, 0o700), unix.ENAMETOOLONG},
		{"a large file", unix.Truncate(at("f"), 1<<46+1), unix.EFBIG},
		{"a very large file", unix.Truncate(at("f"), 1<<63-1), unix.EFBIG},
		{"nothing", open(at("nothing"), 0), unix.ENOENT},
		{"nothing again", open(at("nothing"), 0), unix.ENOENT},
		{"made after it was nothing", open(at("nothing"), os.O_CREATE), nil},
		{"and now it is there", open(at("nothing"), 0), nil},
		{"renamed", renameat2("f", "g", unix.RENAME_NOREPLACE), nil},
	} {
		if c.want != nil || c.err != nil {
			wantErr(t, c.name, c.err, c.want)
		}
	}
	f := openRW(t, at("g"), 0)
	_, err := f.WriteAt([]byte("x"), 1<<46)
	wantErr(t, "a write behind the limit", err, unix.EFBIG)
	if n, err := unix.Pwrite(fd(f), []byte("xy"), 1<<46-1); n != 1 || err != nil {
		t.Errorf("write across the limit: %d, %v", n, err)
	}
}

func TestReadOnlyStoreRefuses(t *testing.T) {
	c := config{Store: t.TempDir()}
	m := store(t, c)
	write(t, m.dir+"/f", "x")
	m.stop()
	c.ReadOnly = true
	m = store(t, c)
	for what, err := range map[string]error{
		"create": os.WriteFile(m.dir+"/g", nil, 0o600), "mkdir": os.Mkdir(m.dir+"/d", 0o700), "remove": os.Remove(m.dir + "/f"),
		"rename": os.Rename(m.dir+"/f", m.dir+"/g"), "chmod": os.Chmod(m.dir+"/f", 0o600), "truncate": os.Truncate(m.dir+"/f", 0),
		"link": os.Link(m.dir+"/f", m.dir+"/c"), "symlink": os.Symlink("x", m.dir+"/y"),
		"open": func() error { _, err := os.OpenFile(m.dir+"/f", os.O_RDWR, 0); return err }(),
	} {
		wantErr(t, what, err, unix.EROFS)
	}
}

func TestUnlinkedFilesStayWhileOpen(t *testing.T) {
	for _, direct := range []bool{false, true} {
		m := store(t, config{DirectIO: direct})
		before, _ := m.count()
		path := m.dir + "/f"
		write(t, path, "before")
		f := openRW(t, path, 0)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		write(t, path, "another")
		if err := os.Rename(path, m.dir+"/g"); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("after, and longer"), 0); err != nil {
			t.Error(err)
		}
		if err := f.Truncate(9); err != nil {
			t.Error(err)
		}
		got := make([]byte, 100)
		if n, err := unix.Pread(fd(f), got, 0); string(got[:max(n, 0)]) != "after, an" || err != nil {
			t.Errorf("%q, %v", got[:n], err)
		}
		wantErr(t, "fsync", f.Sync(), nil)
		if nodes, _ := m.count(); nodes != before+2 {
			t.Errorf("%d nodes, %d before", nodes, before)
		}
		f.Close()
		wantNodes(t, m, before+1)
	}
}

// wantNodes waits until the kernel has forgotten, which it does when it gets to it.
func wantNodes(t *testing.T, m *mount, want int) {
	t.Helper()
	for range 2000 {
		if nodes, _ := m.count(); nodes == want {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	nodes, _ := m.count()
	t.Errorf("%d nodes are left, not %d", nodes, want)
}

func TestRemovedFolderStaysWhileOpen(t *testing.T) {
	m := store(t, config{})
	before, _ := m.count()
	mkdir(t, m.dir+"/d", 0o755)
	d, err := os.Open(m.dir + "/d")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(m.dir + "/d"); err != nil {
		t.Fatal(err)
	}
	var st unix.Statx_t
	if err := unix.Statx(fd(d), "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_ALL, &st); err != nil || st.Nlink != 0 {
		t.Errorf("%d links, %v", st.Nlink, err)
	}
	if names, err := d.Readdirnames(-1); len(names) > 0 {
		t.Errorf("%v, %v", names, err)
	}
	_, err = unix.Openat(fd(d), "f", unix.O_CREAT|unix.O_RDWR, 0o600)
	wantErr(t, "create in it", err, unix.ENOENT)
	d.Close()
	wantNodes(t, m, before)
}

// TestUnmountReleasesWhatWasHeld removes a file that is open while the mount is taken away under it.
func TestUnmountReleasesWhatWasHeld(t *testing.T) {
	m := store(t, config{})
	before, _ := m.count()
	write(t, m.dir+"/f", "x")
	f := openRW(t, m.dir+"/f", 0)
	if err := os.Remove(m.dir + "/f"); err != nil {
		t.Fatal(err)
	}
	if out, err := try(t, "umount", "-f", m.dir); err == nil {
		t.Fatalf("umount -f of a mount in use succeeded: %s", out)
	}
	wantNodes(t, m, before)
	_, known := m.count()
	f.Close()
	if known != 1 {
		t.Errorf("%d nodes are known", known)
	}
}

func TestOtherProtocolsAreSeenAtOnce(t *testing.T) {
	m := store(t, config{DirectIO: true})
	path := m.dir + "/f"
	exists := func(path string, want bool) {
		t.Helper()
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
	tell := func(command string) {
		t.Helper()
		if got := m.ask(command); got != "ok" {
			t.Fatalf("%s: %s", command, got)
		}
	}
	exists(path, false)
	tell("make f")
	exists(path, true)
	tell("write f hello")
	if b, err := os.ReadFile(path); string(b) != "hello" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	tell("rename f g")
	exists(path, false)
	exists(m.dir+"/g", true)
	tell("make f")
	wantErr(t, "noreplace", unix.Renameat2(unix.AT_FDCWD, m.dir+"/g", unix.AT_FDCWD, path, unix.RENAME_NOREPLACE), unix.EEXIST)
	f := openRW(t, m.dir+"/g", 0)
	tell("remove g")
	exists(m.dir+"/g", false)
	got := make([]byte, 10)
	if n, err := f.ReadAt(got, 0); string(got[:n]) != "hello" {
		t.Errorf("removed, and open: %q, %v", got[:n], err)
	}
	write(t, m.dir+"/g", "new")
	if b, err := os.ReadFile(m.dir + "/g"); string(b) != "new" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
}

func TestFallocateOfFilesThatGrow(t *testing.T) {
	m := store(t, config{})
	path := m.dir + "/f"
	want := bytes.Repeat([]byte{7}, 20_000)
	write(t, path, string(want))
	f := openRW(t, path, 0)
	for _, c := range []struct {
		mode   uint32
		off, n int64
		want   error
		size   int64
	}{
		{0, 0, 100, unix.EOPNOTSUPP, 20_000}, {keep, 0, 100, unix.EOPNOTSUPP, 20_000}, {0, 0, 1 << 20, unix.EOPNOTSUPP, 20_000},
		{punch, 5000, 5000, nil, 20_000}, {punch, 19_000, 1 << 40, nil, 20_000}, {punch, 30_000, 1, nil, 20_000},
		{zero | keep, 100, 50, nil, 20_000}, {zero, 200, 50, nil, 20_000}, {zero, 19_000, 3000, nil, 22_000},
		{zero, 1<<46 - 10, 11, unix.EFBIG, 22_000}, {unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096, unix.EOPNOTSUPP, 22_000},
	} {
		err := unix.Fallocate(fd(f), c.mode, c.off, c.n)
		if err != nil || c.want != nil {
			wantErr(t, fmt.Sprintf("mode %#x %d+%d", c.mode, c.off, c.n), err, c.want)
		}
		if err == nil {
			want = append(want, make([]byte, max(0, c.size-int64(len(want))))...)
			at := min(c.off, c.size)
			clear(want[at:min(c.size, at+min(c.n, c.size))])
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, want) || int64(len(got)) != c.size {
			t.Errorf("mode %#x %d+%d: %d bytes, %v", c.mode, c.off, c.n, len(got), err)
		}
	}
}

// TestFallocateCutsNothingOff: what another protocol wrote behind a range that is zeroed at the same time stays.
func TestFallocateCutsNothingOff(t *testing.T) {
	m := store(t, config{})
	for i := range 300 {
		name := fmt.Sprint("f", i)
		write(t, m.dir+"/"+name, "start")
		f := openRW(t, m.dir+"/"+name, 0)
		done := make(chan error)
		go func() { done <- unix.Fallocate(fd(f), zero, 0, 100_000) }()
		if got := m.ask("grow " + name); got != "ok" {
			t.Fatal(got)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if got := m.ask("tail " + name); got != "end" {
			t.Fatalf("%s: %q", name, got)
		}
		f.Close()
	}
}

func TestHolesOfFilesThatGrow(t *testing.T) {
	m := store(t, config{})
	f, err := os.Create(m.dir + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, 4096), 1<<40); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("end"), 1<<40+4096); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][3]int64{{0, unix.SEEK_HOLE, 0}, {5, unix.SEEK_DATA, 1<<40 + 4096}, {1<<40 + 4096, unix.SEEK_HOLE, 1<<40 + 4099}} {
		got, err := unix.Seek(fd(f), c[0], int(c[1]))
		if err != nil || got != c[2] && got != 1<<40 { // zeroes that were written may count as data
			t.Errorf("seek %v: %d, %v", c, got, err)
		}
	}
	if st := stat(t, m.dir+"/f"); st.Blocks > 64 || st.Size != 1<<40+4099 {
		t.Errorf("%d blocks, %d bytes", st.Blocks, st.Size)
	}
	var space unix.Statfs_t
	if err := unix.Statfs(m.dir, &space); err != nil || space.Ffree == 0 || space.Bavail*uint64(space.Bsize) != freeBytes {
		t.Errorf("%+v, %v", space, err)
	}
}
