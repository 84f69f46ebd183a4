package fusefs_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"livemount/fs/fusefs"
)

// mount is a server in another process.
type mount struct {
	t     testing.TB
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Reader
	dir   string
	disk  string
	first string // its first line: "ready", or why not
}

// start runs a server and takes care that its mount is gone after the test, whatever happens.
func start(t testing.TB, c config) *mount {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root for mounts and loop devices")
	}
	if c.Dir == "" {
		c.Dir = t.TempDir()
	}
	text, _ := json.Marshal(c)
	m := &mount{t: t, dir: c.Dir, disk: filepath.Join(c.Dir, "disk.raw"), cmd: exec.Command(os.Args[0])}
	if c.User != 0 {
		m.cmd = exec.Command(publicCopy(t, os.Args[0]))
		m.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.User, Gid: c.User}}
	}
	m.cmd.Env = append(os.Environ(), serverEnv+"="+string(text))
	m.cmd.Stderr = os.Stderr
	m.in, _ = m.cmd.StdinPipe()
	out, _ := m.cmd.StdoutPipe()
	m.out = bufio.NewReader(out)
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.stop)
	m.first = m.line()
	return m
}

// publicCopy copies a program to where every user may run it: the go command builds in a private folder.
func publicCopy(t testing.TB, program string) string {
	t.Helper()
	text, err := os.ReadFile(program)
	dir := t.TempDir()
	copied := filepath.Join(dir, "server")
	if err == nil {
		err = os.WriteFile(copied, text, 0o755)
	}
	if err == nil {
		err = os.Chmod(filepath.Dir(dir), 0o755) // holds all folders of the test
	}
	if err != nil {
		t.Fatal(err)
	}
	return copied
}

func mounted(t testing.TB, c config) *mount {
	t.Helper()
	m := start(t, c)
	if m.first != "ready" {
		t.Fatalf("server: %s", m.first)
	}
	return m
}

func (m *mount) stop() {
	m.in.Close()
	m.cmd.Wait()
	if i, err := fusefs.FindMount(m.dir); err == nil && i.Ours() {
		unix.Unmount(m.dir, unix.MNT_DETACH)
		m.t.Errorf("the server left its mount at %s", m.dir)
	}
}

func (m *mount) line() string {
	text, err := m.out.ReadString('\n')
	if err != nil {
		m.t.Errorf("server: %v", err)
	}
	return strings.TrimSpace(text)
}

func (m *mount) ask(command string) string {
	m.t.Helper()
	fmt.Fprintln(m.in, command)
	return m.line()
}

// stats returns the Syncs so far and the bytes zeroed and written.
func (m *mount) stats() (syncs, zeroes, writes int64) {
	m.t.Helper()
	fmt.Sscan(m.ask("stats"), &syncs, &zeroes, &writes)
	return syncs, zeroes, writes
}

// tool fails the test when a program is missing.
func tool(t testing.TB, name, debianPackage string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%s is missing: apt install %s", name, debianPackage)
	}
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := try(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func try(t testing.TB, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return string(out), err
}

// loopMount mounts the file system in a disk file and returns where.
func loopMount(t *testing.T, disk string, options string) string {
	t.Helper()
	dir := t.TempDir()
	run(t, "mount", "-o", "loop,"+options, disk, dir)
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}
