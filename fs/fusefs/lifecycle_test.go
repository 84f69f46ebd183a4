package fusefs_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"livemount/fs/fusefs"
	"livemount/internal/errs"
)

func TestMountIsKnownToTheSystem(t *testing.T) {
	m := mounted(t, config{Size: 1 << 20})
	info, err := fusefs.FindMount(m.dir)
	if err != nil || info.Type != "fuse.livemount" || info.Source != "livemount:7c1e" {
		t.Fatalf("%+v, %v", info, err)
	}
	text, err := os.ReadFile(filepath.Join("/sys/class/bdi", info.Device, "read_ahead_kb"))
	if strings.TrimSpace(string(text)) != "2048" {
		t.Errorf("read-ahead %q, %v", text, err)
	}
	if got := m.ask("unmount"); got != "ok" {
		t.Fatal(got)
	}
	if _, err := fusefs.FindMount(m.dir); !errs.Is(err, errs.NotFound) {
		t.Errorf("after unmount: %v", err)
	}
}

func TestUnmountFromOutsideIsNoticed(t *testing.T) {
	tool(t, "fusermount3", "fuse3")
	for _, command := range [][]string{{"umount"}, {"fusermount3", "-u"}, {"umount", "-l"}} {
		m := mounted(t, config{Size: 1 << 20})
		run(t, command[0], append(command[1:], m.dir)...)
		if got := m.ask("done"); got != "ok" {
			t.Errorf("%v: %s", command, got)
		}
		if got := m.ask("unmount"); got != "ok" {
			t.Errorf("unmount after %v: %s", command, got)
		}
	}
}

func TestAbortedMountLeavesNothing(t *testing.T) {
	m := mounted(t, config{Size: 1 << 20})
	f, err := os.Open(m.disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if out, err := try(t, "umount", "-f", m.dir); err == nil { // aborts, and then is busy
		t.Fatalf("umount -f of a mount in use succeeded: %s", out)
	}
	if got := m.ask("done"); got != "ok" {
		t.Fatal(got)
	}
	if info, err := fusefs.FindMount(m.dir); !errs.Is(err, errs.NotFound) {
		t.Errorf("left: %+v, %v", info, err)
	}
}

func TestUnmountWhileInUseIsBusy(t *testing.T) {
	m := mounted(t, config{Size: 1 << 20})
	f, err := os.Open(m.disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := m.ask("unmount"); !strings.HasPrefix(got, "error busy unmount "+m.dir) {
		t.Errorf("got %q", got)
	}
	f.Close()
	if got := m.ask("unmount"); got != "ok" {
		t.Error(got)
	}
}

func TestDeadMountIsCleaned(t *testing.T) {
	m := mounted(t, config{Size: 1 << 20})
	if dead, err := fusefs.CleanDead(t.Context(), m.dir); dead || err != nil {
		t.Fatalf("a living mount: %v, %v", dead, err)
	}
	if _, err := os.Stat(m.dir); err != nil { // attributes are in the kernel's memory now
		t.Fatal(err)
	}
	m.cmd.Process.Kill()
	m.cmd.Wait()
	if dead, err := fusefs.CleanDead(t.Context(), m.dir); !dead || err != nil {
		t.Fatalf("got %v, %v", dead, err)
	}
	mounted(t, config{Dir: m.dir, Size: 1 << 20})
}

func TestMountThatHangsIsNotCleaned(t *testing.T) {
	m := mounted(t, config{Size: 1 << 20})
	m.cmd.Process.Signal(syscall.SIGSTOP)
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(m.cmd.Process.Pid, &ws, syscall.WUNTRACED, nil); err != nil || !ws.Stopped() {
		t.Fatalf("stop: %v, %v", ws, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if dead, err := fusefs.CleanDead(ctx, m.dir); dead || !errs.Is(err, errs.Unreachable) {
		t.Errorf("got %v, %v", dead, err)
	}
	m.cmd.Process.Signal(syscall.SIGCONT)
	if dead, err := fusefs.CleanDead(t.Context(), m.dir); dead || err != nil {
		t.Errorf("after it went on: %v, %v", dead, err)
	}
}

func TestMountWithoutRoot(t *testing.T) {
	tool(t, "fusermount3", "fuse3")
	const nobody = 65534
	dir := t.TempDir()
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	m := start(t, config{Dir: dir, Size: 1 << 20, User: nobody})
	if st, err := os.Stat("/dev/fuse"); err != nil || st.Mode().Perm()&0o006 != 0o006 {
		if !strings.HasPrefix(m.first, "error denied") || !strings.Contains(m.first, "/dev/fuse") {
			t.Errorf("users may not open /dev/fuse: got %q", m.first)
		}
		return
	}
	if m.first != "ready" {
		t.Fatal(m.first)
	}
	if info, err := fusefs.FindMount(dir); err != nil || !info.Ours() || info.Source != "livemount:7c1e" {
		t.Errorf("%+v, %v", info, err)
	}
	if got := m.ask("unmount"); got != "ok" {
		t.Error(got)
	}
}

func TestCleanDeadLeavesOthersAlone(t *testing.T) {
	dir := t.TempDir()
	if dead, err := fusefs.CleanDead(t.Context(), dir); dead || err != nil {
		t.Errorf("no mount: %v, %v", dead, err)
	}
	run(t, "mount", "-t", "tmpfs", "none", dir)
	t.Cleanup(func() { run(t, "umount", dir) })
	if dead, err := fusefs.CleanDead(t.Context(), dir); dead || err != nil {
		t.Errorf("tmpfs: %v, %v", dead, err)
	}
}

func TestUnfitFolderIsRefused(t *testing.T) {
	full, base := t.TempDir(), t.TempDir()
	file := filepath.Join(full, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	used := mounted(t, config{Size: 1 << 20})
	for dir, kind := range map[string]errs.Kind{
		full: errs.Invalid, file: errs.Invalid, used.dir: errs.Busy, filepath.Join(base, "none"): errs.NotFound,
	} {
		_, err := fusefs.Mount(context.Background(), nil, fusefs.Options{Dir: dir})
		if !errs.Is(err, kind) || !strings.Contains(err.Error(), dir) || errs.TryOf(err) == "" {
			t.Errorf("%s: got %v (%v), try %q", dir, err, errs.KindOf(err), errs.TryOf(err))
		}
	}
}

func TestMountFollowsLinksAndOddNames(t *testing.T) {
	dir := filepath.Join(t.TempDir(), `a b\040`+"\tc")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	m := mounted(t, config{Dir: link, Size: 1 << 20})
	if _, err := os.Stat(filepath.Join(dir, "disk.raw")); err != nil {
		t.Error(err)
	}
	if got := m.ask("unmount"); got != "ok" {
		t.Error(got)
	}
}
