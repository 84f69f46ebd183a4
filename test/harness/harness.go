// Package harness starts the real programs for the tests of the whole system and removes what they leave,
// also when a test fails: daemons, mounts, loop devices, folders.
//
// A test binary calls Main from TestMain. It is also its own helper: a Role runs in a child process, so that
// a mount is used by another process than the one that serves it, and so that it can be killed.
package harness

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const (
	envBin  = "LIVEMOUNT_TEST_BIN"
	envRole = "LIVEMOUNT_TEST_ROLE"
	envSeed = "LIVEMOUNT_SEED"
	envSoak = "LIVEMOUNT_SOAK"
)

// Role is what a test binary does as a child process. It returns the exit code.
type Role func(args []string) int

// Main builds livemountd and mountctl, runs the tests and removes the binaries. In a child process it runs
// the role instead. It returns the exit code for TestMain.
func Main(m *testing.M, roles map[string]Role) int {
	if name := os.Getenv(envRole); name != "" {
		return roles[name](os.Args[1:])
	}
	dir, err := os.MkdirTemp("", "lm-bin-")
	if err == nil {
		err = build(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	os.Setenv(envBin, dir)
	return m.Run()
}

func build(dir string) error {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	c := exec.Command("go", "build", "-buildvcs=false", "-o", dir, "./cmd/...")
	c.Dir = filepath.Dir(strings.TrimSpace(string(out)))
	if msg, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, msg)
	}
	return nil
}

func binary(name string) string { return filepath.Join(os.Getenv(envBin), name) }

// Child is the command that runs a role in a process of its own.
func Child(role string, args ...string) *exec.Cmd {
	c := exec.Command("/proc/self/exe", args...)
	c.Env = append(os.Environ(), envRole+"="+role)
	return c
}

// Seed prints the seed of a random test. LIVEMOUNT_SEED replays one.
func Seed(t testing.TB) uint64 {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv(envSeed); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("%s: %v", envSeed, err)
		}
	}
	t.Logf("replay with %s=%d", envSeed, seed)
	return seed
}

// Soak returns long when LIVEMOUNT_SOAK is set, and normal otherwise.
func Soak(normal, long int) int {
	if os.Getenv(envSoak) != "" {
		return long
	}
	return normal
}

// NeedRoot fails a test that mounts file systems.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts file systems: run it as root")
	}
}

// Tools fails when a program is missing. Each is "program package", the Debian package that has it.
func Tools(t testing.TB, list ...string) {
	t.Helper()
	for _, s := range list {
		program, pkg, _ := strings.Cut(s, " ")
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%s is missing: apt-get install %s", program, pkg)
		}
	}
}

// Run runs a program, and fails the test with its output when that fails.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := Try(name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// Try runs a program and returns all that it said.
func Try(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	return string(out), err
}

// Dir makes a folder with a short name (the path of a socket is bounded). When the test ends, everything
// mounted below it is detached and it is removed.
func Dir(t testing.TB) string {
	t.Helper()
	return dirIn(t, "")
}

// MemoryDir is Dir in memory, for stores that are only read and copied many times: nothing waits for a disk.
func MemoryDir(t testing.TB) string {
	t.Helper()
	if info, err := os.Stat("/dev/shm"); err != nil || !info.IsDir() {
		return dirIn(t, "")
	}
	return dirIn(t, "/dev/shm")
}

func dirIn(t testing.TB, parent string) string {
	t.Helper()
	dir, err := os.MkdirTemp(parent, "lm-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		detachBelow(t, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Mkdir makes a folder below dir and returns its path.
func Mkdir(t testing.TB, parts ...string) string {
	t.Helper()
	dir := filepath.Join(parts...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
