package image

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"livemount/internal/clock"
	"livemount/internal/errs"
)

// confined opens files that an image names, and only inside one folder. The names come from whoever made
// the image, who must not be able to read the host's files through us.
type confined struct {
	dir   string // as given; "" allows nothing
	clock clock.Clock
	real  string // dir without symbolic links
	root  *os.Root
}

func (c *confined) close() {
	if c.root != nil {
		c.root.Close() // only a descriptor of a folder
	}
}

// open opens a regular file that the image called from names. Symbolic links are followed, as QEMU does;
// what they lead to must lie inside the folder. It returns the name that further names are relative to.
func (c *confined) open(from, name, what string) (*Raw, string, error) {
	if err := checkName(from, name, what); err != nil {
		return nil, "", err
	}
	if c.dir == "" {
		err := errs.New(errs.Invalid, "image %s names the %s %q, and other files are not followed", from, what, name)
		return nil, "", errs.WithTry(err, "--backing-dir DIR, the folder that holds it")
	}
	if err := c.enter(); err != nil {
		return nil, "", err
	}
	if !filepath.IsAbs(name) {
		// Not filepath.Join, which would take ".." for a matter of text; behind a link it is not.
		name = from[:strings.LastIndexByte(from, '/')+1] + name
	}
	rel, err := c.inside(name)
	if err != nil {
		return nil, "", errs.New(errs.KindOf(err), "image %s: %s: %w", from, what, err)
	}
	r, err := c.openInside(rel)
	if err != nil {
		return nil, "", errs.New(errs.KindOf(err), "image %s: %s: %w", from, what, err)
	}
	return r, name, nil
}

// checkName refuses what QEMU would not take for a path: a name with a protocol (json:, nbd://).
func checkName(from, name, what string) error {
	first, _, _ := strings.Cut(name, "/")
	if name == "" || strings.ContainsRune(first, ':') || strings.ContainsRune(name, 0) {
		return errs.New(errs.Invalid, "image %s: the %s %q is not a plain path", from, what, name)
	}
	return nil
}

func (c *confined) enter() error {
	if c.root != nil {
		return nil
	}
	abs, err := filepath.Abs(c.dir)
	if err == nil {
		c.real, err = filepath.EvalSymlinks(abs)
	}
	if err == nil {
		c.root, err = os.OpenRoot(c.real)
	}
	if err != nil {
		return errs.New(errs.KindOf(err), "folder of backing files %s: %w", c.dir, err)
	}
	return nil
}

// inside returns the name relative to the folder, without symbolic links.
func (c *confined) inside(name string) (string, error) {
	path, err := filepath.EvalSymlinks(name)
	if err != nil {
		path = name // whether a file outside exists is not told either
	}
	abs, absErr := filepath.Abs(path)
	if absErr != nil {
		return "", absErr
	}
	rel, relErr := filepath.Rel(c.real, abs)
	if relErr != nil || !filepath.IsLocal(rel) {
		return "", errs.New(errs.Denied, "%s lies outside the folder %s", name, c.real)
	}
	return rel, err
}

// openInside opens what was found. Nothing that is exchanged meanwhile leads out of the folder: the kernel
// resolves the name below root.
func (c *confined) openInside(rel string) (*Raw, error) {
	path := filepath.Join(c.real, rel)
	// As in OpenRaw: opening a device can have effects, so look before, and again at what was opened.
	st, err := c.root.Stat(rel)
	if err != nil {
		return nil, readError(path, err)
	}
	if !st.Mode().IsRegular() {
		return nil, errs.New(errs.Invalid, "%s is not a regular file", path)
	}
	f, err := c.root.OpenFile(rel, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, readError(path, err)
	}
	r, err := newRaw(f, path, c.clock)
	if err == nil && r.dev {
		err = errs.New(errs.Invalid, "%s is not a regular file", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return r, nil
}

func sameFile(a, b *Raw) bool {
	sa, errA := a.file.Stat()
	sb, errB := b.file.Stat()
	return errA == nil && errB == nil && os.SameFile(sa, sb)
}
