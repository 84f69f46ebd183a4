package image_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"livemount/blockdev/image"
	"livemount/internal/errs"
)

func TestQcow2ReadsThroughBackingFiles(t *testing.T) {
	qemuTools(t)
	for _, c := range []struct {
		name, base        string // "raw", or options of a qcow2
		sizes             [3]string
		middleOpt, topOpt string
	}{
		{"RawBase", "raw", [3]string{"4M", "4M", "4M"}, "cluster_size=64k", "cluster_size=64k"},
		{"OtherClusters", "cluster_size=4k", [3]string{"4M", "4M", "4M"}, "cluster_size=2M", "cluster_size=512"},
		{"Growing", "raw", [3]string{"1000448", "2M", "4M"}, "cluster_size=64k", "cluster_size=64k,extended_l2=on"},
		{"Shrinking", "cluster_size=64k", [3]string{"4M", "3M", "1M"}, "cluster_size=64k", "cluster_size=64k"},
		{"SmallInTheMiddle", "raw", [3]string{"4M", "1M", "4M"}, "cluster_size=64k,extended_l2=on", "cluster_size=64k"},
		{"Version2", "compat=0.10", [3]string{"4M", "2M", "4M"}, "compat=0.10", "compat=0.10"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, r := t.TempDir(), seeded(t)
			base, format := filepath.Join(dir, "base"), "raw"
			if c.base == "raw" {
				qimg(t, "create", "-q", "-f", "raw", base, c.sizes[0])
			} else {
				base, format = create(t, dir, "base", c.base, c.sizes[0]), "qcow2"
			}
			qio(t, base, format, scribble(r, 900<<10, 16)...)
			middle := overlay(t, filepath.Join(dir, "middle.qcow2"), "base", format, "-o", c.middleOpt, c.sizes[1])
			qio(t, middle, "qcow2", scribble(r, 900<<10, 8)...)
			top := overlay(t, filepath.Join(dir, "top.qcow2"), middle, "qcow2", "-o", c.topOpt, c.sizes[2])
			qio(t, top, "qcow2", scribble(r, 900<<10, 4)...)
			conforms(t, top)
			mapped(t, top)
		})
	}
}

// levels makes a chain of n images, the last of which is raw, and returns the first.
func levels(t *testing.T, dir string, n int) string {
	t.Helper()
	last := filepath.Join(dir, "0.raw")
	qimg(t, "create", "-q", "-f", "raw", last, "1M")
	qio(t, last, "raw", "write -P 1 0 1M")
	one := overlay(t, filepath.Join(dir, "1.qcow2"), filepath.Join(dir, "00000.raw"), "raw", "-u", "1M")
	b, err := os.ReadFile(one)
	if err != nil {
		t.Fatal(err)
	}
	// All the others are copies with another name in them, which is much quicker than qemu-img.
	name, before := one, "0.raw"
	for i := 1; i < n; i++ {
		next := strings.Replace(string(b), filepath.Join(dir, "00000.raw"), fmt.Sprintf("%s/%s", dir, pad(before)), 1)
		if i > 1 {
			next = strings.Replace(next, "\xe2\x79\x2a\xca\x00\x00\x00\x03raw\x00\x00\x00\x00\x00", "\xe2\x79\x2a\xca\x00\x00\x00\x05qcow2\x00\x00\x00", 1)
		}
		name = filepath.Join(dir, fmt.Sprintf("%05d.qco", i))
		if err := os.WriteFile(name, []byte(next), 0o600); err != nil {
			t.Fatal(err)
		}
		before = filepath.Base(name)
	}
	return name
}

func pad(name string) string {
	if name == "0.raw" {
		return "././0.raw"
	}
	return name
}

func TestQcow2ChainsAreBounded(t *testing.T) {
	qemuTools(t)
	dir := t.TempDir()
	conforms(t, levels(t, dir, 64))
	_, err := image.OpenQcow2(levels(t, dir, 65), image.Qcow2Options{Dir: dir})
	if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "more than 64") {
		t.Errorf("got %v, want Invalid", err)
	}
}

func TestQcow2LoopsAreRefused(t *testing.T) {
	qemuTools(t)
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.qcow2"), filepath.Join(dir, "b.qcow2")
	overlay(t, a, b, "qcow2", "-u", "1M")
	overlay(t, b, "c.qcow2", "qcow2", "-u", "1M")
	if err := os.Symlink(a, filepath.Join(dir, "c.qcow2")); err != nil {
		t.Fatal(err)
	}
	_, err := image.OpenQcow2(a, image.Qcow2Options{Dir: dir})
	if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "loop") {
		t.Errorf("got %v, want Invalid", err)
	}
}

func TestQcow2FollowsOnlyWhatItMay(t *testing.T) {
	qemuTools(t)
	top := t.TempDir()
	dir, other := filepath.Join(top, "in"), filepath.Join(top, "out")
	for _, d := range []string{dir, filepath.Join(dir, "sub"), other} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{filepath.Join(dir, "base.raw"), filepath.Join(other, "secret.raw")} {
		if err := os.WriteFile(name, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	const null = 1<<8 | 3
	if err := syscall.Mknod(filepath.Join(dir, "device"), syscall.S_IFCHR|0o600, null); err != nil {
		t.Fatalf("mknod: %v (needs root)", err)
	}
	for link, to := range map[string]string{"leads-in": filepath.Join(dir, "base.raw"), "leads-out": "../out/secret.raw", "away": other, "null": "/dev/null"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		kind errs.Kind // Other means that it is opened
	}{
		{"base.raw", errs.Other},
		{"./sub/../base.raw", errs.Other},
		{"leads-in", errs.Other},
		{filepath.Join(dir, "base.raw"), errs.Other},
		{"../in/base.raw", errs.Other},
		{"../out/secret.raw", errs.Denied},
		{filepath.Join(other, "secret.raw"), errs.Denied},
		{filepath.Join(other, "none.raw"), errs.Denied},
		{"leads-out", errs.Denied},
		{"away/secret.raw", errs.Denied},
		{"/dev/zero", errs.Denied},
		{"null", errs.Denied},
		{"/etc/passwd", errs.Denied},
		{"none.raw", errs.NotFound},
		{"fifo", errs.Invalid},
		{"device", errs.Invalid},
		{"sub", errs.Invalid},
		{"json:{\"file\":\"base.raw\"}", errs.Invalid},
		{"nbd://host/disk", errs.Invalid},
		{"file:base.raw", errs.Invalid},
	} {
		t.Run(strings.ReplaceAll(c.name, "/", "_"), func(t *testing.T) {
			path := filepath.Join(dir, "top.qcow2")
			overlay(t, path, c.name, "raw", "-u", "1M")
			q, err := image.OpenQcow2(path, image.Qcow2Options{Dir: dir})
			if err == nil {
				q.Close()
			}
			if (err == nil) != (c.kind == errs.Other) || err != nil && !errs.Is(err, c.kind) {
				t.Errorf("got %v, want %v", err, c.kind)
			}
			_, err = image.OpenQcow2(path, image.Qcow2Options{})
			if !errs.Is(err, errs.Invalid) {
				t.Errorf("without a folder: got %v, want Invalid", err)
			}
			if c.kind != errs.Invalid && !strings.Contains(errs.TryOf(err), "--backing-dir") {
				t.Errorf("without a folder: no advice in %v", err)
			}
		})
	}
}

// TestQcow2KeepsToTheFolderWhileLinksMove exchanges a folder for a link while the image is opened.
func TestQcow2KeepsToTheFolderWhileLinksMove(t *testing.T) {
	qemuTools(t)
	top := t.TempDir()
	dir, out := filepath.Join(top, "in"), filepath.Join(top, "out")
	for d, b := range map[string]string{dir + "/sub": "inside", out: "secret"} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d, "base.raw"), []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path := overlay(t, filepath.Join(dir, "top.qcow2"), "sub/base.raw", "raw", "-u", "512")
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			os.Rename(dir+"/sub", dir+"/kept")
			os.Symlink(out, dir+"/sub")
			os.Remove(dir + "/sub")
			os.Rename(dir+"/kept", dir+"/sub")
		}
	}()
	defer func() { close(stop); <-done }()
	for range 300 {
		q, err := image.OpenQcow2(path, image.Qcow2Options{Dir: dir})
		if err != nil {
			continue
		}
		b := make([]byte, 6)
		if err := q.ReadAt(t.Context(), b, 0); err != nil || string(b) != "inside" {
			t.Fatalf("read %q, %v", b, err)
		}
		q.Close()
	}
}

func TestQcow2DataFileIsFollowedOnlyWhereItMay(t *testing.T) {
	qemuTools(t)
	dir, other := t.TempDir(), t.TempDir()
	path := create(t, dir, "disk.qcow2", "data_file="+filepath.Join(other, "data"), "1M")
	if _, err := image.OpenQcow2(path, image.Qcow2Options{Dir: dir}); !errs.Is(err, errs.Denied) {
		t.Errorf("got %v, want Denied", err)
	}
	if _, err := image.OpenQcow2(path, image.Qcow2Options{}); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "external data file") {
		t.Errorf("got %v, want Invalid", err)
	}
}
