package billyfs_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/test"
	"github.com/go-git/go-billy/v5/util"
	"gopkg.in/check.v1"

	"livemount/fs"
	"livemount/fs/billyfs"
	"livemount/fs/datastore/dstest"
	"livemount/internal/vfs"
)

// open opens a datastore in memory; base is an empty folder of it.
func open(t testing.TB, o billyfs.Options) (base billyfs.Filesystem, ds *dstest.Opened) {
	t.Helper()
	ds, err := dstest.Open(context.Background(), dstest.Options{FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ds.Close(context.Background()) })
	return billyfs.New(ds, o), ds
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

// suite runs the tests of go-billy, each in a tree of its own: an empty one, or an empty folder of one.
type suite struct {
	test.FilesystemSuite
	t      *testing.T
	chroot bool
}

// SetUpTest is called before each test.
func (s *suite) SetUpTest(c *check.C) {
	b, _ := open(s.t, billyfs.Options{})
	c.Assert(util.RemoveAll(b, "web"), check.IsNil)
	if !s.chroot {
		s.FilesystemSuite = test.NewFilesystemSuite(b)
		return
	}
	c.Assert(b.MkdirAll("some/where", 0o700), check.IsNil)
	inner, err := b.Chroot("some/where")
	c.Assert(err, check.IsNil)
	s.FilesystemSuite = test.NewFilesystemSuite(inner)
}

// TestTempFileMany makes 100,000 files, which is enough once.
func (s *suite) TestTempFileMany(c *check.C) {
	if s.chroot {
		c.Skip("done in the root")
	}
	s.TempFileSuite.TestTempFileMany(c)
}

// TestTempFileManyWithUtil does so, too.
func (s *suite) TestTempFileManyWithUtil(c *check.C) {
	if s.chroot {
		c.Skip("done in the root")
	}
	s.TempFileSuite.TestTempFileManyWithUtil(c)
}

func TestConformsToBilly(t *testing.T) {
	for _, chroot := range []bool{false, true} {
		r := check.Run(&suite{t: t, chroot: chroot}, &check.RunConf{})
		if !r.Passed() || r.Succeeded < 60 {
			t.Errorf("chroot %v: %s", chroot, r)
		}
	}
}

func TestPathsStayInside(t *testing.T) {
	b, ds := open(t, billyfs.Options{})
	must(t, util.WriteFile(b, "secret", []byte("s"), 0o600))
	must(t, b.MkdirAll("in/d", 0o755))
	must(t, util.WriteFile(b, "in/f", []byte("f"), 0o600))
	for name, target := range map[string]string{
		"up": "../secret", "abs": "/secret", "around": "d/../../secret", "far": strings.Repeat("../", 50) + "secret",
		"dir": "..", "loop": "loop", "inside": "/in/f", "back": "d/../f",
	} {
		_, err := ds.Make(t.Context(), idOf(t, ds, "in"), name, fs.Make{Type: os.ModeSymlink, Target: target}, nil)
		must(t, err)
	}
	in, err := b.Chroot("in")
	must(t, err)
	for _, path := range []string{"up", "abs", "around", "far", "dir/secret", "../secret", "d/../../secret", "/../in/f", "dir/in/f"} {
		_, err := in.Stat(path)
		if !errors.Is(err, billy.ErrCrossedBoundary) {
			t.Errorf("%s: %v", path, err)
		}
		_, err = in.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if !errors.Is(err, billy.ErrCrossedBoundary) {
			t.Errorf("create %s: %v", path, err)
		}
	}
	for _, path := range []string{"inside", "back", "/f", "d/../f"} {
		if got, err := util.ReadFile(in, path); string(got) != "f" || err != nil {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	_, err = in.Stat("loop")
	wantErr(t, "loop", err, syscall.ELOOP)
	if got, err := util.ReadFile(b, "in/far"); string(got) != "s" || err != nil { // the root is its own parent
		t.Errorf("far: %q, %v", got, err)
	}
	if target, err := in.Readlink("inside"); target != "/f" || err != nil {
		t.Errorf("readlink: %q, %v", target, err)
	}
}

func idOf(t *testing.T, ds *dstest.Opened, name string) fs.NodeID {
	t.Helper()
	n, err := ds.Root().Lookup(t.Context(), name)
	must(t, err)
	return n.ID()
}

func TestLinksAreFollowedFortyDeep(t *testing.T) {
	b, _ := open(t, billyfs.Options{})
	must(t, util.WriteFile(b, "l0", []byte("x"), 0o600))
	name := func(i int) string { return "l" + strings.Repeat("i", i) }
	must(t, b.Rename("l0", name(0)))
	for i := range 41 {
		must(t, b.Symlink(name(i), name(i+1)))
	}
	_, err := b.Stat(name(40))
	must(t, err)
	_, err = b.Stat(name(41))
	wantErr(t, "41 links", err, syscall.ELOOP)
}

func TestErrorsAreThoseOfOS(t *testing.T) {
	b, _ := open(t, billyfs.Options{})
	_, err := b.Stat("nothing")
	if !os.IsNotExist(err) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stat: %v", err)
	}
	_, err = b.OpenFile("web/web.vmx", os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if !os.IsExist(err) || !errors.Is(err, os.ErrExist) {
		t.Errorf("exclusive: %v", err)
	}
	var path *os.PathError
	if !errors.As(err, &path) || path.Path != "web/web.vmx" {
		t.Errorf("%#v", err)
	}
	must(t, b.MkdirAll("d", 0o755))
	_, err = b.Stat("web/web.vmx/x")
	wantErr(t, "below a file", err, syscall.ENOTDIR)
	_, err = b.ReadDir("web/web.vmx")
	wantErr(t, "list of a file", err, syscall.ENOTDIR)
	_, err = b.Open("web")
	wantErr(t, "open of a folder", err, syscall.EISDIR)
	wantErr(t, "remove of a full folder", b.Remove("web"), syscall.ENOTEMPTY)
	wantErr(t, "remove of the root", b.Remove("/"), syscall.EBUSY)
	wantErr(t, "rename over a full folder", b.Rename("d", "web"), syscall.ENOTEMPTY)
	wantErr(t, "rename into itself", b.Rename("web", "web/x"), syscall.EINVAL)
	wantErr(t, "rename of nothing", b.Rename("nothing", "x"), os.ErrNotExist)
	wantErr(t, "a long name", b.MkdirAll(strings.Repeat("x", 256), 0o755), syscall.ENAMETOOLONG)
	_, err = b.Readlink("web")
	wantErr(t, "readlink of a folder", err, syscall.EINVAL)
}

func TestReadOnlyRefuses(t *testing.T) {
	_, ds := open(t, billyfs.Options{})
	b := billyfs.New(ds, billyfs.Options{ReadOnly: true})
	if billy.CapabilityCheck(b, billy.WriteCapability) || !billy.CapabilityCheck(b, billy.ReadCapability) {
		t.Errorf("capabilities %b", b.Capabilities())
	}
	_, created := b.Create("x")
	_, temporary := b.TempFile("", "x")
	for what, err := range map[string]error{
		"create": created, "temporary": temporary, "mkdir": b.MkdirAll("a/b", 0o700), "remove": b.Remove("web/web.vmx"),
		"rename": b.Rename("web", "x"), "link": b.Symlink("a", "b"), "chmod": b.Chmod("web", 0o700),
		"chown": b.Chown("web", 1, 1), "lchown": b.Lchown("web", 1, 1), "chtimes": b.Chtimes("web", time.Now(), time.Now()),
	} {
		wantErr(t, what, err, syscall.EROFS)
	}
	if got, err := util.ReadFile(b, "web/web.vmx"); len(got) == 0 || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAttributesAreSet(t *testing.T) {
	b, _ := open(t, billyfs.Options{UID: 5, GID: 6})
	must(t, util.WriteFile(b, "f", []byte("12345"), 0o640))
	must(t, b.Symlink("f", "l"))
	check := func(path string, mode os.FileMode, uid, gid uint32) {
		t.Helper()
		i, err := b.Lstat(path)
		must(t, err)
		st := i.Sys().(*syscall.Stat_t)
		if i.Mode() != mode || st.Uid != uid || st.Gid != gid || st.Ino == 0 || st.Nlink != 1 || st.Size != i.Size() {
			t.Errorf("%s: %v %+v", path, i.Mode(), st)
		}
	}
	check("f", 0o640, 5, 6)
	check("l", os.ModeSymlink|0o777, 5, 6)
	must(t, b.Chmod("l", 0o4711))
	must(t, b.Chmod("l", os.ModeSetuid|0o711))
	must(t, b.Chown("l", 7, -1))
	must(t, b.Lchown("l", -1, 8))
	at, mt := time.Unix(100, 1), time.Unix(200, 2)
	must(t, b.Chtimes("l", at, mt))
	check("f", os.ModeSetuid|0o711, 7, 6)
	check("l", os.ModeSymlink|0o777, 5, 8)
	i, err := b.Stat("l")
	must(t, err)
	if st := i.Sys().(*syscall.Stat_t); !i.ModTime().Equal(mt) || st.Atim.Nano() != at.UnixNano() || i.Name() != "l" || i.Size() != 5 {
		t.Errorf("%v %+v", i.ModTime(), st)
	}
}

// TestClosedIsOnDisk cuts the power after Close of one file and while another is open.
func TestClosedIsOnDisk(t *testing.T) {
	mem := vfs.NewMem()
	ds, err := dstest.Open(t.Context(), dstest.Options{FS: mem})
	must(t, err)
	b := billyfs.New(ds, billyfs.Options{})
	must(t, util.WriteFile(b, "a/b/closed", []byte("content"), 0o600))
	ds2, err := dstest.Open(t.Context(), dstest.Options{FS: mem.CrashClone(rand.New(rand.NewPCG(1, 2)))})
	must(t, err)
	if got, err := util.ReadFile(billyfs.New(ds2, billyfs.Options{}), "a/b/closed"); string(got) != "content" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	must(t, ds2.Close(t.Context()))
	must(t, ds.Close(t.Context()))
}

func TestOpenFileOutlivesItsName(t *testing.T) {
	b, ds := open(t, billyfs.Options{})
	before := ds.Len()
	f, err := b.Create("f")
	must(t, err)
	must(t, b.Remove("f"))
	if _, err := f.Write([]byte("hello")); err != nil {
		t.Error(err)
	}
	w := f.(io.WriterAt)
	if n, err := w.WriteAt([]byte("J"), 0); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	got := make([]byte, 9)
	if n, err := f.ReadAt(got, 0); string(got[:n]) != "Jello" || !errors.Is(err, io.EOF) {
		t.Errorf("%q, %v", got[:n], err)
	}
	must(t, f.Close())
	if after := ds.Len(); after != before {
		t.Errorf("%d nodes, %d before", after, before)
	}
	wantErr(t, "close twice", f.Close(), os.ErrClosed)
	_, err = f.Read(got)
	wantErr(t, "read after close", err, os.ErrClosed)
}

func TestLocksExcludeFiles(t *testing.T) {
	b, _ := open(t, billyfs.Options{})
	inner, err := b.Chroot("web")
	must(t, err)
	first, err := b.OpenFile("web/web.vmx", os.O_RDWR, 0)
	must(t, err)
	second, err := inner.Open("web.vmx")
	must(t, err)
	third, err := b.Open("web/web.vmx")
	must(t, err)
	must(t, first.Lock())
	must(t, first.Lock())
	order := make(chan string, 3)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := third.Lock(); !errors.Is(err, os.ErrClosed) && err != nil {
			t.Error(err)
		}
		third.Close()
	})
	wg.Go(func() {
		if err := second.Lock(); err != nil {
			t.Error(err)
		}
		order <- "second"
		second.Unlock()
	})
	third.Close()
	order <- "first"
	must(t, first.Close())
	wg.Wait()
	if got := <-order; got != "first" {
		t.Errorf("%s was first", got)
	}
}

func TestAppendsDoNotOverwrite(t *testing.T) {
	b, _ := open(t, billyfs.Options{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			f, err := b.OpenFile("log", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
			if err != nil {
				t.Error(err)
				return
			}
			for range 50 {
				f.Write([]byte("line\n"))
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got, err := util.ReadFile(b, "log"); string(got) != strings.Repeat("line\n", 400) || err != nil {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
