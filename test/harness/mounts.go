package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Mounted returns what is mounted at dir and below, the deepest first.
func Mounted(t testing.TB, dir string) []string {
	t.Helper()
	list, err := mounted(dir)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func mounted(dir string) ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var list []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 4 && (f[4] == dir || strings.HasPrefix(f[4], dir+"/")) {
			list = append(list, f[4])
		}
	}
	slices.Reverse(list)
	return list, nil
}

func detachBelow(t testing.TB, dir string) {
	t.Helper()
	if err := detach(dir); err != nil {
		t.Error(err)
	}
}

func detach(dir string) error {
	list, err := mounted(dir)
	for _, m := range list {
		if e := unix.Unmount(m, unix.MNT_DETACH); e != nil && !errors.Is(e, unix.EINVAL) {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", m, e))
		}
	}
	return err
}

// RemoveMain is the role of a process that waits until its test is gone, be it killed, and then detaches what
// is mounted below a folder and removes the folder. A test that mounts a device of its own starts one with
// RemoveWhatever.
func RemoveMain(args []string) int {
	_, _ = io.Copy(io.Discard, os.Stdin) // it ends when the test does
	if err := errors.Join(detach(args[0]), os.RemoveAll(args[0])); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// RemoveWhatever has dir removed with everything mounted below even if the test is killed, or interrupted.
// The test binary must give the role "remove" to RemoveMain.
func RemoveWhatever(t testing.TB, dir string) {
	t.Helper()
	c := Child("remove", dir)
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is not for it
	alive, err := c.StdinPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(alive.Close(), c.Wait()); err != nil {
			t.Error(err)
		}
	})
}

// Loop attaches a loop device to length bytes of a file from offset on (0: to its end).
func Loop(t testing.TB, file string, offset, length int64, more ...string) string {
	t.Helper()
	args := append([]string{"--find", "--show", "-o", strconv.FormatInt(offset, 10)}, more...)
	if length > 0 {
		args = append(args, "--sizelimit", strconv.FormatInt(length, 10))
	}
	args = append(args, file)
	out, err := Try("losetup", args...)
	for i := 0; err != nil && strings.Contains(out, "busy") && i < 50; i++ { // somebody else took the same one
		out, err = Try("losetup", args...)
	}
	if err != nil {
		t.Fatalf("losetup %s: %v\n%s", file, err, out)
	}
	dev := strings.TrimSpace(out)
	t.Cleanup(func() { Unloop(dev) })
	return dev
}

// Unloop detaches a loop device; one that is detached already is no error.
func Unloop(dev string) {
	_, _ = Try("losetup", "-d", dev)
}

// MountFS mounts a file system; the test's end detaches it.
func MountFS(t testing.TB, dev, dir string, options ...string) {
	t.Helper()
	args := []string{dev, dir}
	if len(options) > 0 {
		args = append(args, "-o", strings.Join(options, ","))
	}
	Run(t, "mount", args...)
	t.Cleanup(func() { detachBelow(t, dir) })
}

// FileSystem is a file system of its own, on a loop device.
func FileSystem(t testing.TB, sizeMiB int64) string {
	t.Helper()
	NeedRoot(t)
	Tools(t, "mkfs.ext4 e2fsprogs", "losetup mount")
	top := Dir(t)
	image := top + "/image"
	WriteSparse(t, image, sizeMiB<<20)
	Run(t, "mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
	dir := Mkdir(t, top, "fs")
	MountFS(t, Loop(t, image, 0, 0), dir)
	return dir
}

// WriteSparse makes a file of zeroes that takes up nothing.
func WriteSparse(t testing.TB, path string, size int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Namespace makes a network namespace that has nothing but a loopback, and returns what enters it in front of a command.
func Namespace(t testing.TB) []string {
	t.Helper()
	NeedRoot(t)
	Tools(t, "ip iproute2", "nsenter util-linux")
	name := "lm-" + strings.TrimPrefix(filepath.Base(Dir(t)), "lm-")
	Run(t, "ip", "netns", "add", name)
	t.Cleanup(func() { _, _ = Try("ip", "netns", "delete", name) })
	Run(t, "ip", "-n", name, "link", "set", "lo", "up")
	return []string{"nsenter", "--net=/run/netns/" + name}
}

// Poll asks until the answer is yes. It fails the test after a minute.
func Poll(t testing.TB, what string, ask func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ask() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain: %s", what)
		}
	}
}
