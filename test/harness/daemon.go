package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"livemount/server/api"
)

// Daemon is a livemountd on a store. It can be started and killed as often as needed.
type Daemon struct {
	Data   string
	Client *api.Client
	// OnStart, when set, sees the process as soon as it runs, before it answers.
	OnStart func(pid int)
	// Before is put in front of the daemon's command line, and must become it (exec): to enter a network namespace.
	Before []string

	t      testing.TB
	args   []string
	cmd    *exec.Cmd
	stderr *safeBuffer
	exited chan struct{}
}

// New returns a daemon that is not started yet.
func New(t testing.TB, data string, args ...string) *Daemon {
	t.Helper()
	c, err := api.NewClient("unix:" + filepath.Join(data, "livemountd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{Data: data, Client: c, t: t, args: append([]string{"--data", data}, args...)}
	t.Cleanup(d.cleanup)
	return d
}

func (d *Daemon) cleanup() {
	if d.Running() {
		d.Kill()
	}
	if d.t.Failed() && d.stderr != nil && d.stderr.String() != "" {
		d.t.Logf("the last livemountd said:\n%s", tail(d.stderr.String(), 8000))
	}
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// Start starts the daemon and waits until it answers.
func (d *Daemon) Start() {
	d.t.Helper()
	if err := d.TryStart(); err != nil {
		d.t.Fatal(err)
	}
}

// Exit says how a daemon ended.
type Exit struct {
	Code   int // -1 when a signal killed it
	Stderr string
}

func (e *Exit) Error() string {
	return fmt.Sprintf("livemountd ended with %d: %s", e.Code, tail(e.Stderr, 8000))
}

// TryStart starts the daemon. It returns nil when it answers, or an *Exit when it ended.
func (d *Daemon) TryStart() error {
	ready, err := d.Launch()
	if err != nil {
		return err
	}
	select {
	case err := <-ready:
		return err
	case <-d.exited:
		return d.exit()
	case <-time.After(2 * time.Minute):
		d.Kill()
		return fmt.Errorf("livemountd did not answer in two minutes: %s", d.stderr.String())
	}
}

// Launch starts the daemon and does not wait. The channel tells when it answers.
func (d *Daemon) Launch() (<-chan error, error) {
	if d.Running() {
		return nil, errors.New("livemountd runs already")
	}
	ready, path, err := notification()
	if err != nil {
		return nil, err
	}
	line := append(append([]string{}, d.Before...), binary("livemountd"))
	line = append(line, d.args...)
	d.cmd = exec.Command(line[0], line[1:]...)
	d.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path, "GOTRACEBACK=crash")
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	d.stderr, d.exited = &safeBuffer{}, make(chan struct{})
	d.cmd.Stderr, d.cmd.Stdout = d.stderr, d.stderr
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	cmd, exited := d.cmd, d.exited
	go func() {
		defer close(exited)
		_ = cmd.Wait() // its state says how it ended
		_ = ready.Close()
	}()
	if d.OnStart != nil {
		d.OnStart(cmd.Process.Pid)
	}
	answer := make(chan error, 1)
	go func() {
		defer os.RemoveAll(filepath.Dir(path))
		n, err := ready.Read(make([]byte, 64))
		if err == nil && n > 0 {
			answer <- nil
		}
	}()
	return answer, nil
}

// notification is a socket as sd_notify(3) wants it: the daemon says there that it is ready.
func notification() (*net.UnixConn, string, error) {
	dir, err := os.MkdirTemp("", "lm-notify-")
	if err != nil {
		return nil, "", err
	}
	path := filepath.Join(dir, "s")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	return c, path, err
}

// Running says whether the process is there.
func (d *Daemon) Running() bool {
	if d.cmd == nil {
		return false
	}
	select {
	case <-d.exited:
		return false
	default:
		return true
	}
}

// Exited is closed when the process that was started last is gone.
func (d *Daemon) Exited() <-chan struct{} { return d.exited }

// Pid is the process that was started last.
func (d *Daemon) Pid() int { return d.cmd.Process.Pid }

// Log is what the daemon wrote since it was started last.
func (d *Daemon) Log() string { return d.stderr.String() }

// Kill is kill -9.
func (d *Daemon) Kill() {
	_ = d.cmd.Process.Kill() // it is gone when this fails
	<-d.exited
}

// Terminate asks the daemon to stop and does not wait.
func (d *Daemon) Terminate() {
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // it is gone when this fails
}

// Stop ends the daemon cleanly.
func (d *Daemon) Stop() {
	d.t.Helper()
	d.Terminate()
	select {
	case <-d.exited:
	case <-time.After(time.Minute):
		_ = d.cmd.Process.Signal(syscall.SIGQUIT)
		<-d.exited
		d.t.Fatalf("livemountd did not stop in a minute: %s", d.stderr.String())
	}
	if e := d.exit(); e.Code != 0 {
		d.t.Fatal(e)
	}
}

func (d *Daemon) exit() *Exit {
	return &Exit{Code: d.cmd.ProcessState.ExitCode(), Stderr: d.stderr.String()}
}

// InitEncrypted makes an encrypted store, and a key file that opens it.
func InitEncrypted(t testing.TB, store, keyFile string) {
	t.Helper()
	Run(t, binary("livemountd"), "init", "--encrypt", "--data", store, "--key-file", keyFile)
}

// Result is what a run of mountctl gave.
type Result struct {
	Code     int
	Out, Err string
}

// Fsck checks the store of a stopped daemon, which must be good.
func (d *Daemon) Fsck() {
	d.t.Helper()
	Run(d.t, binary("livemountd"), "fsck", "--data", d.Data)
}

// Ctl runs mountctl.
func (d *Daemon) Ctl(args ...string) Result {
	d.t.Helper()
	c := d.Command(args...)
	var out, stderr bytes.Buffer
	c.Stdout, c.Stderr = &out, &stderr
	err := c.Run()
	var e *exec.ExitError
	if err != nil && !errors.As(err, &e) {
		d.t.Error(err) // not Fatal: it may be another goroutine than the test's
	}
	return Result{Code: c.ProcessState.ExitCode(), Out: out.String(), Err: stderr.String()}
}

// Command is mountctl with the address of this daemon.
func (d *Daemon) Command(args ...string) *exec.Cmd {
	c := exec.Command(binary("mountctl"), args...)
	c.Env = append(os.Environ(), "LIVEMOUNT_SERVER=unix:"+filepath.Join(d.Data, "livemountd.sock"))
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return c
}

// Must runs mountctl with --output json, which must succeed, and decodes what it says into out.
func (d *Daemon) Must(out any, args ...string) {
	d.t.Helper()
	r := d.Ctl(append(args, "--output", "json")...)
	if r.Code != 0 {
		d.t.Fatalf("mountctl %s: exit %d: %s", strings.Join(args, " "), r.Code, r.Err)
	}
	if out == nil {
		return
	}
	if err := json.Unmarshal([]byte(r.Out), out); err != nil {
		d.t.Fatalf("mountctl %s: %v: %s", strings.Join(args, " "), err, r.Out)
	}
}

// Backup takes disks in ("NAME=PATH") and returns the point.
func (d *Daemon) Backup(vm string, disks ...string) api.Backup {
	d.t.Helper()
	args := []string{"backup", vm}
	for _, disk := range disks {
		args = append(args, "--disk", disk)
	}
	var b api.Backup
	d.Must(&b, args...)
	return b
}

// Mount mounts a point and returns the mount.
func (d *Daemon) Mount(ref, dir string, more ...string) api.Mount {
	d.t.Helper()
	var m api.Mount
	d.Must(&m, append([]string{"mount", ref, dir}, more...)...)
	return m
}

// Mounts lists the mounts.
func (d *Daemon) Mounts() []api.Mount {
	d.t.Helper()
	var v api.Mounts
	d.get("/v1/mounts", nil, &v)
	return v.Mounts
}

// MountByID returns one mount.
func (d *Daemon) MountByID(id string) api.Mount {
	d.t.Helper()
	for _, m := range d.Mounts() {
		if m.Mount == id {
			return m
		}
	}
	d.t.Fatalf("mount %s is not listed", id)
	return api.Mount{}
}

// Points lists the points of a VM, oldest first.
func (d *Daemon) Points(vm string) []api.Point {
	d.t.Helper()
	var v api.Points
	d.get("/v1/points", url.Values{"vm": {vm}}, &v)
	return v.Points
}

// Status tells how the store is.
func (d *Daemon) Status() api.Status {
	d.t.Helper()
	var v api.Status
	d.get("/v1/status", nil, &v)
	return v
}

func (d *Daemon) get(path string, query url.Values, out any) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := d.Client.Do(ctx, "GET", path, query, nil, out); err != nil {
		d.t.Fatalf("GET %s: %v", path, err)
	}
}
