// Package cli runs the real programs, as a person would, from scripts (testdata/*.txtar): each with a
// livemountd and a folder of its own. Errors are compared with their text, advice and exit code, JSON as a
// whole, with ids, times and sizes of the store replaced by placeholders.
package cli

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain builds livemountd and mountctl once.
func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

const binEnv = "LIVEMOUNT_CLI_BIN"

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "lm-cli")
	if err == nil {
		defer os.RemoveAll(dir)
		err = build(dir)
	}
	if err == nil {
		err = os.Setenv(binEnv, dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func build(dir string) error {
	c := exec.Command("go", "build", "-buildvcs=false", "-o", dir, "livemount/cmd/...")
	c.Stdout, c.Stderr = os.Stderr, os.Stderr
	return c.Run()
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata", RequireExplicitExec: true, Setup: setup, UpdateScripts: os.Getenv("LIVEMOUNT_UPDATE") != "",
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"daemon": startDaemon, "end": stopDaemon, "disk": makeDisk, "write": writeDisk, "fails": fails, "json": normalize,
			"get": get, "holes": makeHole, "ambiguous": ambiguous, "extents": makeExtents,
			"relay": startRelay,
		},
	})
}

type daemonKey struct{}

// daemonOf is the daemon of a script, if it runs.
type daemonOf struct{ cmd *exec.Cmd }

func setup(env *testscript.Env) error {
	if strings.HasPrefix(env.WorkDir, "/") && len(env.WorkDir) > 80 {
		return fmt.Errorf("TMPDIR is too long for a socket: %s", env.WorkDir)
	}
	for _, name := range []string{"PORT", "NFSPORT"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		env.Setenv(name, fmt.Sprint(l.Addr().(*net.TCPAddr).Port))
		l.Close()
	}
	env.Setenv("PATH", os.Getenv(binEnv)+":"+env.Getenv("PATH")+":/usr/sbin:/sbin")
	env.Setenv("LIVEMOUNT_SERVER", "unix:"+filepath.Join(env.WorkDir, "store/livemountd.sock"))
	env.Setenv("TZ", "UTC")
	d := &daemonOf{}
	env.Values[daemonKey{}] = d
	env.Defer(func() {
		d.stop(syscall.SIGTERM)
		unmountBelow(env.WorkDir)
	})
	return nil
}

// stop ends the daemon, if it runs, and waits for it.
func (d *daemonOf) stop(sig syscall.Signal) error {
	if d.cmd == nil {
		return nil
	}
	defer func() { d.cmd = nil }()
	if err := d.cmd.Process.Signal(sig); err != nil {
		return err
	}
	err := d.cmd.Wait()
	if sig == syscall.SIGKILL {
		return nil
	}
	return err
}

// unmountBelow takes away what a script left mounted, so that its folder can be removed.
func unmountBelow(dir string) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return
	}
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			syscall.Unmount(f[4], syscall.MNT_DETACH)
		}
	}
}
