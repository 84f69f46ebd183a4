package image_test

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"livemount/blockdev"
	"livemount/blockdev/blocktest"
	"livemount/blockdev/image"
	"livemount/internal/errs"
)

// sparse makes a file with data at the start and before the end, and a hole between.
func sparse(t *testing.T, size int64) (string, []byte) {
	t.Helper()
	want := make([]byte, size)
	for i := range min(size, 9000) {
		want[i], want[size-1-i] = byte(i+1), byte(i+2)
	}
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := min(size, 9000)
	f.Truncate(size)
	f.WriteAt(want[:n], 0)
	if _, err := f.WriteAt(want[size-n:], size-n); err != nil {
		t.Fatal(err)
	}
	return path, want
}

func open(t *testing.T, path string) *image.Raw {
	t.Helper()
	r, err := image.OpenRaw(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestRawConforms(t *testing.T) {
	for _, size := range []int64{0, 1, 511, 1 << 20, 1<<20 + 513} {
		path, want := sparse(t, size)
		blocktest.TestReader(t, open(t, path), want)
	}
}

func TestRawKnowsHoles(t *testing.T) {
	path, _ := sparse(t, 1<<20)
	var holes int64
	for e, err := range open(t, path).Extents(t.Context(), 0, 1<<20) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == blockdev.Hole {
			holes += e.Len
		}
	}
	if holes < 900<<10 {
		t.Errorf("holes of %d bytes, want most of the file", holes)
	}
}

func TestRawOfBlockDeviceConforms(t *testing.T) {
	path, want := sparse(t, 1<<20)
	out, err := exec.Command("losetup", "--find", "--show", "--read-only", path).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s (needs root; Debian package: mount)", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() { exec.Command("losetup", "-d", dev).Run() })
	blocktest.TestReader(t, open(t, dev), want)
}

func TestRawReadsTheSameAfterDropCache(t *testing.T) {
	path, want := sparse(t, 1<<20)
	r := open(t, path)
	r.DropCache(0, r.Size())
	blocktest.TestReader(t, r, want)
}

func TestRawThatShrankSaysSo(t *testing.T) {
	path, _ := sparse(t, 1<<20)
	r := open(t, path)
	if err := os.Truncate(path, 5000); err != nil {
		t.Fatal(err)
	}
	err := r.ReadAt(t.Context(), make([]byte, 8192), 0)
	if !errs.Is(err, errs.Invalid) || errs.TryOf(err) == "" {
		t.Fatalf("got %v, want an Invalid error with advice", err)
	}
	for _, part := range []string{path, "offset 5000", "1048576 bytes", "5000 now"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
	if err := r.Check(t.Context()); !errs.Is(err, errs.Invalid) {
		t.Errorf("check: got %v, want an Invalid error", err)
	}
	for _, err := range r.Extents(t.Context(), 0, r.Size()) {
		if err != nil {
			t.Errorf("extents: %v", err)
		}
	}
}

func TestRawNotesChanges(t *testing.T) {
	path, _ := sparse(t, 1<<20)
	r := open(t, path)
	if note, err := r.Changed(), r.Check(t.Context()); note != "" || err != nil {
		t.Fatalf("unchanged file: %q, %v", note, err)
	}
	if err := os.Chtimes(path, time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if note := r.Changed(); !strings.Contains(note, "written") {
		t.Errorf("after a write: %q", note)
	}
	os.Rename(path, path+".old")
	if note := r.Changed(); !strings.Contains(note, "gone") {
		t.Errorf("after a rename: %q", note)
	}
	os.WriteFile(path, bytes.Repeat([]byte{1}, 10), 0o600)
	if note := r.Changed(); !strings.Contains(note, "another file") {
		t.Errorf("after a replacement: %q", note)
	}
}

func TestRawRefusesWhatIsNoDisk(t *testing.T) {
	dir := t.TempDir()
	fifo, sock := filepath.Join(dir, "fifo"), filepath.Join(dir, "sock")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, path := range []string{dir, fifo, sock, "/dev/zero"} {
		if _, err := image.OpenRaw(path); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), path) {
			t.Errorf("open %s: got %v, want an Invalid error that names it", path, err)
		}
	}
	if _, err := image.OpenRaw(filepath.Join(dir, "none")); !errs.Is(err, errs.NotFound) {
		t.Errorf("got %v, want NotFound", err)
	}
}
