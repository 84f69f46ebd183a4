package image_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"livemount/blockdev/image"
	"livemount/ingest"
	"livemount/internal/clock"
	"livemount/internal/errs"
)

// What is opened here can be backed up.
var _ ingest.Source = image.Source(nil)

// later is a clock that is ahead, so that files that were just written have settled.
func later() clock.Clock { return &clock.Fixed{T: time.Now().Add(time.Minute)} }

func openLater(t *testing.T, path, format string) image.Source {
	t.Helper()
	s, err := image.Open(path, image.OpenOptions{Format: format, BackingDir: filepath.Dir(path), Clock: later()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestIdentityTellsContent(t *testing.T) {
	qemuTools(t)
	dir := t.TempDir()
	base := create(t, dir, "base.qcow2", "", "1M")
	top := overlay(t, filepath.Join(dir, "top.qcow2"), base, "qcow2")
	one := openLater(t, top, "").Identity()
	if one == "" || one != openLater(t, top, "").Identity() {
		t.Fatalf("identities %q and %q", one, openLater(t, top, "").Identity())
	}
	if raw := openLater(t, top, "raw").Identity(); raw == one || !strings.HasPrefix(raw, "raw-1-") {
		t.Errorf("as raw %q, as qcow2 %q", raw, one)
	}
	s := openLater(t, top, "")
	qio(t, base, "qcow2", "write 0 4k")
	if got := s.Identity(); got != "" {
		t.Errorf("after a write to the image behind: %q", got)
	}
	if two := openLater(t, top, "").Identity(); two == one || two == "" {
		t.Errorf("after a write to the image behind, opened again: %q, before %q", two, one)
	}
}

func TestIdentityOfWhatWasJustWrittenIsUnknown(t *testing.T) {
	path, _ := sparse(t, 1<<20)
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	for after, known := range map[time.Duration]bool{-time.Hour: false, 0: false, 1900 * time.Millisecond: false, 2100 * time.Millisecond: true} {
		s, err := image.Open(path, image.OpenOptions{Clock: &clock.Fixed{T: st.ModTime().Add(after)}})
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Identity() != ""; got != known {
			t.Errorf("%v after the write: known is %v", after, got)
		}
		s.Close()
	}
}

func ranges(t *testing.T, s image.Source, identity string) ([]image.Range, bool) {
	t.Helper()
	list, ok, err := s.(*image.Qcow2).AllocatedSince(t.Context(), identity)
	if err != nil {
		t.Fatal(err)
	}
	return list, ok
}

func TestAllocatedSince(t *testing.T) {
	qemuTools(t)
	const k, m = 1 << 10, 1 << 20
	for _, format := range []string{"raw", "qcow2"} {
		t.Run(format, func(t *testing.T) {
			dir := t.TempDir()
			base := filepath.Join(dir, "base."+format)
			qimg(t, "create", "-q", "-f", format, base, "4M")
			qio(t, base, format, "write -P 1 0 4M")
			one := overlay(t, filepath.Join(dir, "one.qcow2"), base, format)
			qio(t, one, "qcow2", "write -P 2 64k 64k", "write -z 1M 64k")
			two := overlay(t, filepath.Join(dir, "two.qcow2"), one, "qcow2", "-o", "extended_l2=on", "6M")
			qio(t, two, "qcow2", "write -P 3 128k 2k", "write -P 4 3M 64k")
			baseID, oneID, twoID := openLater(t, base, "").Identity(), openLater(t, one, "").Identity(), openLater(t, two, "").Identity()
			s := openLater(t, two, "")
			for _, c := range []struct {
				id   string
				want []image.Range
				ok   bool
			}{
				{twoID, nil, true},
				{oneID, []image.Range{{Off: 128 * k, Len: 2 * k}, {Off: 3 * m, Len: 64 * k}, {Off: 4 * m, Len: 2 * m}}, true},
				{baseID, []image.Range{{Off: 64 * k, Len: 66 * k}, {Off: m, Len: 64 * k}, {Off: 3 * m, Len: 64 * k}, {Off: 4 * m, Len: 2 * m}}, true},
				{"", nil, false},
				{"raw-1-00", nil, false},
			} {
				if list, ok := ranges(t, s, c.id); ok != c.ok || !slices.Equal(list, c.want) {
					t.Errorf("since %.12s: %v, %v, want %v, %v", c.id, list, ok, c.want, c.ok)
				}
			}
			qio(t, base, format, "write -P 5 0 512")
			if _, ok := ranges(t, openLater(t, two, ""), baseID); ok {
				t.Error("the base was written and is still found")
			}
		})
	}
}

// TestAllocatedSinceCoversAllDifferences compares two images of a chain byte for byte.
func TestAllocatedSinceCoversAllDifferences(t *testing.T) {
	qemuTools(t)
	for _, sizes := range [][3]string{{"2M", "2M", "2M"}, {"2M", "1M", "2M"}, {"3M", "2M", "1M"}, {"1M", "2M", "3M"}} {
		dir, r := t.TempDir(), seeded(t)
		names := []string{filepath.Join(dir, "0.qcow2"), filepath.Join(dir, "1.qcow2"), filepath.Join(dir, "2.qcow2")}
		create(t, dir, "0.qcow2", "cluster_size=4k", sizes[0])
		overlay(t, names[1], names[0], "qcow2", "-o", "extended_l2=on,cluster_size=16k", sizes[1])
		overlay(t, names[2], names[1], "qcow2", sizes[2])
		for _, name := range names {
			qio(t, name, "qcow2", scribble(r, 1<<20, 6)...)
		}
		top := openLater(t, names[2], "")
		now := readAll(t, top)
		for _, name := range names[:2] {
			old := openLater(t, name, "")
			list, ok := ranges(t, top, old.Identity())
			if !ok {
				t.Fatalf("%v: %s is not found", sizes, name)
			}
			was := readAll(t, old)
			was = append(was, make([]byte, max(0, len(now)-len(was)))...)[:len(now)]
			for _, x := range list {
				copy(was[x.Off:x.Off+x.Len], now[x.Off:])
			}
			if at := firstDifference(was, now); at < len(now) {
				t.Errorf("%v: since %s: the difference at %d is in no range", sizes, name, at)
			}
		}
	}
}

func TestOpenGoesByNameOrWord(t *testing.T) {
	qemuTools(t)
	dir := t.TempDir()
	path := create(t, dir, "disk.QCOW2", "", "1M")
	if s := openLater(t, path, ""); s.Size() != 1<<20 {
		t.Errorf("%d bytes, want those of the disk in the image", s.Size())
	}
	raw := filepath.Join(dir, "disk.raw")
	if err := os.Rename(path, raw); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(raw)
	if err != nil {
		t.Fatal(err)
	}
	s := openLater(t, raw, "")
	if s.Size() != st.Size() || !strings.Contains(s.Changed(), "--format qcow2") {
		t.Errorf("%d bytes, note %q", s.Size(), s.Changed())
	}
	if s := openLater(t, raw, "qcow2"); s.Size() != 1<<20 || s.Changed() != "" {
		t.Errorf("%d bytes, note %q", s.Size(), s.Changed())
	}
	if _, err := image.Open(raw, image.OpenOptions{Format: "vmdk"}); !errs.Is(err, errs.Invalid) {
		t.Errorf("got %v, want Invalid", err)
	}
	none := filepath.Join(dir, "none.qcow2")
	os.WriteFile(none, make([]byte, 4096), 0o600)
	if _, err := image.Open(none, image.OpenOptions{}); !errs.Is(err, errs.Invalid) || !strings.Contains(errs.TryOf(err), "--format raw") {
		t.Errorf("got %v, want Invalid with advice", err)
	}
}

// TestBackingFormatIsNeverGuessedFromContent has a guest write a qcow2 header to its raw disk, which names a
// file of the host. The image in front of it does not record a format.
func TestBackingFormatIsNeverGuessedFromContent(t *testing.T) {
	qemuTools(t)
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret.raw")
	if err := os.WriteFile(secret, []byte(strings.Repeat("secret", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	base := overlay(t, filepath.Join(dir, "base.raw"), secret, "raw")
	st, err := os.Stat(base)
	if err != nil {
		t.Fatal(err)
	}
	b := craft()
	put64(b, 24, uint64(512))
	put64(b, craftL1, 0)
	put64(b, 8, 200)
	put32(b, 16, uint32(len("base.raw")))
	copy(b[200:], "base.raw")
	path := filepath.Join(dir, "top.qcow2")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4)
	if err := openQcow2(t, path).ReadAt(t.Context(), p, 0); err != nil || string(p) != "QFI\xfb" || st.Size() < 512 {
		t.Errorf("read %q, %v, want the guest's bytes", p, err)
	}
}
