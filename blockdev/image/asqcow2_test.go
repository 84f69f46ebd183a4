package image_test

import (
	"bytes"
	"context"
	"io"
	"iter"
	"os"
	"path/filepath"
	"testing"

	"livemount/blockdev"
	"livemount/blockdev/blocktest"
	"livemount/blockdev/image"
	"livemount/internal/errs"
)

// copyData writes the extents of data to their places.
func copyData(t *testing.T, w io.WriterAt, r blockdev.Reader) {
	t.Helper()
	for e, err := range r.Extents(t.Context(), 0, r.Size()) {
		if err != nil {
			t.Fatal(err)
		}
		for e.Kind == blockdev.Data && e.Len > 0 {
			p := make([]byte, min(e.Len, 4<<20))
			if err := r.ReadAt(t.Context(), p, e.Off); err != nil {
				t.Fatal(err)
			}
			if _, err := w.WriteAt(p, e.Off); err != nil {
				t.Fatal(err)
			}
			e.Off, e.Len = e.Off+int64(len(p)), e.Len-int64(len(p))
		}
	}
}

func asQcow2(t *testing.T, r blockdev.Reader) blockdev.Reader {
	t.Helper()
	out, err := image.AsQcow2(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// sparseFile makes a raw disk with data at some places.
func sparseFile(t *testing.T, size int64, at ...int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for i, off := range at {
		b := bytes.Repeat([]byte{byte(i + 1)}, int(min(70_001, size-off)))
		if _, err := f.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestAsQcow2IsWhatQemuCallsClean(t *testing.T) {
	qemuTools(t)
	const mib, gib = 1 << 20, 1 << 30
	var anywhere []int64
	for r := seeded(t); len(anywhere) < 100; {
		anywhere = append(anywhere, r.Int64N(3*gib-70_001))
	}
	for _, c := range []struct {
		name string
		size int64
		at   []int64
	}{
		{"Empty", 0, nil},
		{"OneByte", 1, []int64{0}},
		{"OddSize", 3*mib + 513, []int64{0, mib + 5, 3 * mib}},
		{"NoData", 700 * mib, nil},
		{"ManyGroups", 5 * gib, []int64{0, 512*mib - 7, 1500 * mib, 5*gib - 70_001}},
		{"Anywhere", 3 * gib, anywhere},
		{"OneTiB", 1 << 40, []int64{0, 1 << 38, 1<<40 - 100}},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw := sparseFile(t, c.size, c.at...)
			r := asQcow2(t, open(t, raw))
			path := filepath.Join(t.TempDir(), "out.qcow2")
			f, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			copyData(t, f, r)
			qimg(t, "check", "-q", path)
			qimg(t, "compare", "-q", "-f", "raw", "-F", "qcow2", raw, path)
			// Our own reader sees the same holes as in the raw disk.
			q := openQcow2(t, path)
			if want := (c.size + 511) &^ 511; q.Size() != want {
				t.Errorf("a disk of %d bytes, want %d", q.Size(), want)
			}
			again := asQcow2(t, q)
			if again.Size() != r.Size() {
				t.Errorf("made of itself it has %d bytes, not %d", again.Size(), r.Size())
			}
		})
	}
}

func TestAsQcow2Conforms(t *testing.T) {
	raw := sparseFile(t, 700<<20, 0, 300_000, 512<<20, 700<<20-5)
	r := asQcow2(t, open(t, raw))
	want, err := io.ReadAll(blockdev.Section(t.Context(), r, 0, r.Size()))
	if err != nil {
		t.Fatal(err)
	}
	blocktest.TestReader(t, r, want)
	if other := readAll(t, asQcow2(t, open(t, raw))); !bytes.Equal(other, want) {
		t.Error("the same disk gave other bytes")
	}
}

// TestAsQcow2GoesThroughAPipe streams the image as a download does.
func TestAsQcow2GoesThroughAPipe(t *testing.T) {
	raw := sparseFile(t, 3<<20+1, 5, 1<<20)
	r := asQcow2(t, open(t, raw))
	from, to := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(to, blockdev.Section(context.Background(), r, 0, r.Size()))
		to.CloseWithError(err)
		done <- err
	}()
	got, err := io.ReadAll(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, readAll(t, r)) {
		t.Error("streamed bytes differ from those read anywhere")
	}
}

func TestAsQcow2TellsThatTheDiskChanged(t *testing.T) {
	disk := blockdev.NewMem(1 << 20)
	if err := disk.WriteAt(t.Context(), []byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	r := asQcow2(t, disk)
	if err := disk.WriteAt(t.Context(), []byte{1}, 500_000); err != nil {
		t.Fatal(err)
	}
	if err := r.ReadAt(t.Context(), make([]byte, 512), r.Size()-512); !errs.Is(err, errs.Corrupt) {
		t.Errorf("got %v, want Corrupt", err)
	}
}

func TestAsQcow2RefusesWhatIsTooLarge(t *testing.T) {
	_, err := image.AsQcow2(t.Context(), sized{64<<40 + 1})
	if !errs.Is(err, errs.Invalid) {
		t.Errorf("got %v, want Invalid", err)
	}
	r := asQcow2(t, sized{64 << 40})
	if err := r.ReadAt(t.Context(), make([]byte, 1<<20), r.Size()-1<<20); err != nil {
		t.Error(err)
	}
}

// sized is a disk of any size that is all data.
type sized struct{ size int64 }

func (s sized) Size() int64                                       { return s.size }
func (s sized) ReadAt(_ context.Context, p []byte, _ int64) error { clear(p); return nil }
func (s sized) Close() error                                      { return nil }
func (s sized) Extents(_ context.Context, off, n int64) iter.Seq2[blockdev.Extent, error] {
	return blockdev.One(off, n, blockdev.Data)
}
