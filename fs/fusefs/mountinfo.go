package fusefs

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"livemount/internal/errs"
)

// MountType is what /proc/self/mountinfo and findmnt show for our mounts.
const MountType = "fuse." + typeName

const typeName = "livemount"

// Info is a mounted file system, as in /proc/self/mountinfo (Linux, Documentation/filesystems/proc.rst).
type Info struct {
	Dir    string // where it is mounted
	Device string // "MAJOR:MINOR"
	Type   string // "fuse.livemount" for ours
	Source string // for ours the FsName of the mount
}

// Ours says whether Livemount made the mount.
func (i Info) Ours() bool { return i.Type == MountType }

// FindMount returns what is mounted at dir, the topmost when there are several, or NotFound.
func FindMount(dir string) (Info, error) {
	path, err := RealDir(dir)
	if err != nil {
		return Info{}, err
	}
	return mountAt(path)
}

// mountAt is FindMount for a path without symbolic links. It does not touch what is mounted there.
func mountAt(path string) (Info, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return Info{}, err
	}
	defer f.Close()
	return findMount(f, path)
}

func findMount(r io.Reader, dir string) (Info, error) {
	var found *Info
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if i, ok := parseMount(lines.Text()); ok && i.Dir == dir {
			found = &i
		}
	}
	if err := lines.Err(); err != nil {
		return Info{}, err
	}
	if found == nil {
		return Info{}, errs.New(errs.NotFound, "nothing is mounted at %s", dir)
	}
	return *found, nil
}

// parseMount reads "36 35 98:0 /root /mnt opts [tags] - type source superopts".
func parseMount(line string) (Info, bool) {
	before, after, ok := strings.Cut(line, " - ")
	a, b := strings.Fields(before), strings.Fields(after)
	if !ok || len(a) < 6 || len(b) < 2 {
		return Info{}, false
	}
	return Info{Dir: unescape(a[4]), Device: a[2], Type: unescape(b[0]), Source: unescape(b[1])}, true
}

// unescape undoes the kernel's \ooo for space, tab, newline, backslash and number sign.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// linksMax is how many symbolic links are followed, as in the kernel.
const linksMax = 40

// RealDir is the absolute path of dir without symbolic links. The last element may be a mount: one of our
// own, one that no longer answers, or another user's, closed even to root. So it is never asked for anything
// (a process that is killed while it waits for its own mount can never end).
func RealDir(dir string) (string, error) {
	path, err := filepath.Abs(dir)
	for range linksMax {
		if err != nil || path == "/" {
			return path, err
		}
		var parent string
		if parent, err = filepath.EvalSymlinks(filepath.Dir(path)); err != nil {
			return "", err
		}
		path = filepath.Join(parent, filepath.Base(path))
		if _, err := mountAt(path); !errs.Is(err, errs.NotFound) {
			return path, err
		}
		target, err := os.Readlink(path)
		if errors.Is(err, unix.EINVAL) {
			return path, nil
		}
		if err != nil {
			return "", err
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(parent, target)
		}
		path = target
	}
	return "", &os.PathError{Op: "follow", Path: dir, Err: unix.ELOOP}
}

// CleanDead detaches the Livemount mount at dir when the process that served it is gone, and says whether
// there was one. Other mounts, and ours that answer, are left alone. ctx bounds the wait for a mount that
// hangs; the error then is ctx's.
func CleanDead(ctx context.Context, dir string) (bool, error) {
	info, err := FindMount(dir)
	if errs.Is(err, errs.NotFound) {
		return false, nil
	}
	if err != nil || !info.Ours() {
		return false, err
	}
	if dead, err := isDead(ctx, info.Dir); !dead {
		return false, err
	}
	if err := detach(ctx, info.Dir); err != nil {
		return false, errs.New(errs.KindOf(err), "detach dead mount %s: %w", info.Dir, err)
	}
	return true, nil
}

// isDead asks for the space of the mount: unlike attributes, the kernel never answers that from memory.
// When a server hangs, so does the question; its goroutine ends with the mount.
func isDead(ctx context.Context, dir string) (bool, error) {
	answer := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		answer <- unix.Statfs(dir, &st)
	}()
	select {
	case err := <-answer:
		if errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) {
			return true, nil
		}
		return false, nil // it answered, be it with an error
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// detach takes a mount away at once, though it may still be in use.
func detach(ctx context.Context, dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	return fusermount(ctx, "-u", "-z", "--", dir)
}

func fusermount(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "fusermount3", args...).CombinedOutput()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return errs.WithTry(errs.As(errs.Denied, err), "run as root, or install the package fuse3")
	case err != nil && strings.Contains(string(out), "busy"):
		return errs.New(errs.Busy, "%s", strings.TrimSpace(string(out)))
	case err != nil:
		return errs.New(errs.Other, "fusermount3: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
