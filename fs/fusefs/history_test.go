package fusefs_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"livemount/fs"
	"livemount/fs/fstest"
	"livemount/fs/fusefs"
)

// serveHistory is the server of a History of a catalogue that is told to change.
func serveHistory(c config) error {
	cat := fstest.New(c.VMs, c.Points)
	cat.Add(fstest.BadVM, 1)
	h := fs.NewHistory(cat, fs.HistoryOptions{})
	s, err := fusefs.Mount(context.Background(), h, fusefs.Options{
		Dir: c.Dir, ReadOnly: true, Changing: true, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var name, to string
		var n uint64
		switch what, rest, _ := strings.Cut(in.Text(), " "); what {
		case "add":
			fmt.Sscan(rest, &name, &n)
			cat.Add(name, int(n))
		case "drop":
			fmt.Sscan(rest, &name, &n)
			cat.Drop(name, n)
		case "rename":
			fmt.Sscan(rest, &name, &to)
			cat.Rename(name, to)
		}
		fmt.Println(s.Known(), cat.Opened.Load(), cat.ID("vm-0001"), memory("VmRSS"), memory("VmHWM"))
	}
	return s.Detach(context.Background())
}

// memory reads a line of the process's own status, in KiB.
func memory(what string) (kib int) {
	text, _ := os.ReadFile("/proc/self/status")
	_, rest, _ := strings.Cut(string(text), what+":")
	fmt.Sscan(rest, &kib)
	return kib
}

// history is the state of such a server.
type history struct {
	known, opened int
	vm            uint64 // the first VM
	rss, peak     int    // KiB
}

func (m *mount) tell(command string) (h history) {
	m.t.Helper()
	answer := m.ask(command)
	if _, err := fmt.Sscan(answer, &h.known, &h.opened, &h.vm, &h.rss, &h.peak); err != nil {
		m.t.Fatalf("%s: %s: %v", command, answer, err)
	}
	return h
}

func nameOf(ordinal uint64) string { return fs.PointName(fstest.TimeOf(ordinal)) }

func list(t testing.TB, dir string) []string {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestHistoryIsListedAndRead(t *testing.T) {
	m := mounted(t, config{VMs: 2, Points: 300})
	if names := list(t, m.dir); len(names) != 3 {
		t.Errorf("root: %v", names)
	}
	vm := filepath.Join(m.dir, "vm-0001")
	if names := list(t, vm); len(names) != 301 || names[0] != "latest" || names[300] != nameOf(300) {
		t.Errorf("%d names in %s", len(names), vm)
	}
	if h := m.tell(""); h.opened != 0 {
		t.Errorf("%d disks were opened by looking", h.opened)
	}
	h := m.tell("")
	for path, n := range map[string]uint64{"latest": 300, nameOf(7): 7} {
		got, err := os.ReadFile(filepath.Join(vm, path, "sdb.raw"))
		if err != nil || !bytes.Equal(got, fstest.Content(h.vm, n, "sdb")) {
			t.Errorf("%s: content differs, %v", path, err)
		}
	}
	run(t, "diff", "-r", filepath.Join(vm, "latest", "."), filepath.Join(vm, nameOf(300)))
	if got := run(t, "find", vm, "-type", "f", "-printf", "%n %m %s %b\n"); strings.Count(got, "1 400 65546 128\n") != 600 {
		t.Errorf("find:\n%.300s", got)
	}
	if got := run(t, "find", m.dir, "-path", "*0002*", "-type", "d"); strings.Count(got, "\n") != 301 {
		t.Errorf("%d folders", strings.Count(got, "\n"))
	}
}

func TestHistoryIsReadOnly(t *testing.T) {
	m := mounted(t, config{VMs: 1, Points: 1})
	disk := filepath.Join(m.dir, "vm-0001/latest/sda.raw")
	for what, err := range map[string]error{
		"open": func() error { _, err := os.OpenFile(disk, os.O_RDWR, 0); return err }(), "mkdir": os.Mkdir(m.dir+"/a", 0o700),
		"remove": os.Remove(disk), "rename": os.Rename(m.dir+"/vm-0001", m.dir+"/b"), "chmod": os.Chmod(disk, 0o600),
		"truncate": os.Truncate(disk, 0), "link": os.Link(disk, m.dir+"/c"), "symlink": os.Symlink("x", m.dir+"/vm-0001/y"),
	} {
		wantErr(t, what, err, unix.EROFS)
	}
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	wantErr(t, "fsync", f.Sync(), nil)
	if off, err := unix.Seek(fd(f), 0, unix.SEEK_HOLE); off != 64<<10 || err != nil {
		t.Errorf("hole at %d, %v", off, err)
	}
	_, err = os.Readlink(disk)
	wantErr(t, "readlink of a file", err, unix.EINVAL)
}

func TestChangesOfAHistoryAreSeenAtOnce(t *testing.T) {
	m := mounted(t, config{VMs: 2, Points: 3})
	vm := filepath.Join(m.dir, "vm-0001")
	first := m.tell("").vm
	f, err := os.Open(filepath.Join(vm, "latest", "sda.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	latest := func(want uint64) {
		t.Helper()
		st, err := os.Stat(vm)
		if got, lerr := os.Readlink(filepath.Join(vm, "latest")); got != nameOf(want) || lerr != nil || err != nil || !st.ModTime().Equal(fstest.TimeOf(want)) {
			t.Errorf("latest is %s, not %s, %v; %v, %v", got, nameOf(want), lerr, st, err)
		}
	}
	latest(3)
	m.tell("add vm-0001 1")
	latest(4)
	if names := list(t, vm); len(names) != 5 {
		t.Errorf("after a backup: %v", names)
	}
	m.tell("drop vm-0001 3")
	m.tell("drop vm-0001 4")
	latest(2)
	_, err = os.Stat(filepath.Join(vm, nameOf(3), "sda.raw"))
	wantErr(t, "stat of what is gone", err, unix.ENOENT)
	got := make([]byte, fstest.SizeBytes)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, fstest.Content(first, 3, "sda")) {
		t.Errorf("open file of a point that is gone: %v", err)
	}
	folder, err := os.Open(vm)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	m.tell("rename vm-0001 other")
	_, err = os.Stat(vm)
	wantErr(t, "stat of the old name", err, unix.ENOENT)
	if names := list(t, filepath.Join(m.dir, "other")); len(names) != 3 {
		t.Errorf("under the new name: %v", names)
	}
	m.tell("rename other ")
	if names, err := folder.Readdirnames(-1); len(names) != 0 || err != nil {
		t.Errorf("open folder of a VM that is gone: %v, %v", names, err)
	}
	if names := list(t, m.dir); len(names) != 2 {
		t.Errorf("root: %v", names)
	}
}

func TestInodesOfAHistoryAreStable(t *testing.T) {
	inodes := func() (all []string) {
		m := mounted(t, config{VMs: 3, Points: 5})
		defer m.stop()
		return strings.Fields(run(t, "find", m.dir, "-printf", "%P:%i\n"))
	}
	a, b := inodes(), inodes()
	slices.Sort(a)
	slices.Sort(b)
	if len(a) < 50 || !slices.Equal(a, b) {
		t.Errorf("%v\n%v", a, b)
	}
}

func TestBadDiskOfAHistory(t *testing.T) {
	m := mounted(t, config{VMs: 1, Points: 1})
	f, err := os.Open(filepath.Join(m.dir, fstest.BadVM, "latest", "sda.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = f.ReadAt(make([]byte, 4096), 0)
	wantErr(t, "bad range", err, unix.EIO)
	_, err = f.ReadAt(make([]byte, 4096), 60<<10)
	wantErr(t, "good range", err, nil)
}

func TestNodesGoWhenTheKernelForgetsThem(t *testing.T) {
	m := mounted(t, config{VMs: 4, Points: 200})
	run(t, "find", m.dir, "-size", "+0")
	if h := m.tell(""); h.known < 4*200*3 {
		t.Fatalf("%d nodes are known", h.known)
	}
	for range 50 {
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err != nil {
			t.Fatal(err)
		}
		if m.tell("").known < 50 {
			return
		}
		time.Sleep(20 * time.Millisecond) // forgets are sent when the kernel gets to it
	}
	t.Errorf("%d nodes are left", m.tell("").known)
}

// TestAMillionPointsAreListedAtOnce looks at one of a thousand VMs with a thousand points each. The limit is
// some fifty times what it takes.
func TestAMillionPointsAreListedAtOnce(t *testing.T) {
	m := mounted(t, config{VMs: 1000, Points: 1000})
	for dir, want := range map[string]int{m.dir: 1001, m.dir + "/vm-0500": 1001} {
		began := time.Now()
		if names := list(t, dir); len(names) != want {
			t.Errorf("%d names in %s", len(names), dir)
		}
		if took := time.Since(began); took > 500*time.Millisecond {
			t.Errorf("%s took %v", dir, took)
		}
	}
	run(t, "ls", "-l", m.dir+"/vm-0500")
	if h := m.tell(""); h.known > 1100 || h.peak > 100<<10 {
		t.Errorf("%+v", h)
	}
}

// BenchmarkFind lists everything: go test ./fs/fusefs -run - -bench Find -benchtime 1x
func BenchmarkFind(b *testing.B) {
	for _, points := range []int{10, 1000} {
		b.Run(fmt.Sprintf("1000x%d", points), func(b *testing.B) {
			m := mounted(b, config{VMs: 1000, Points: points})
			for b.Loop() {
				out, err := exec.Command("bash", "-c", "time ls $0 | wc -l; time ls -l $0/vm-0500 | wc -l; time find $0 | wc -l", m.dir).CombinedOutput()
				b.Logf("ls, ls -l of a VM, find:\n%s%v", out, err)
			}
			h := m.tell("")
			b.ReportMetric(float64(h.known), "nodes")
			b.ReportMetric(float64(h.rss)/1024, "MiB")
			b.ReportMetric(float64(h.peak)/1024, "MiB-peak")
		})
	}
}
