package image_test

import (
	"os"
	"path/filepath"
	"testing"

	"livemount/blockdev"
	"livemount/blockdev/image"
	"livemount/internal/errs"
)

// fuzzBytes bounds how much of a disk is looked at: a small file can say that it holds 64 TiB.
const fuzzBytes = 64 << 10

// FuzzQcow2 opens arbitrary bytes as an image. Whatever they are, an error is of a kind that somebody can
// act on, what is called a hole is zeroes, and two reads give the same.
func FuzzQcow2(f *testing.F) {
	f.Add(craft())
	f.Add(extend(3<<14|1<<63, 1<<40|5))
	for _, c := range append(hostileHeaders(), hostileTables()...) {
		if b := c.edit(craft()); len(b) <= 64<<10 {
			f.Add(b)
		}
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(dir, "fuzz.qcow2")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		q, err := image.OpenQcow2(path, image.Qcow2Options{Dir: dir})
		if err != nil {
			expected(t, err)
			return
		}
		defer q.Close()
		for _, off := range []int64{0, q.Size() / 2, max(0, q.Size()-fuzzBytes)} {
			lookAt(t, q, off, min(fuzzBytes, q.Size()-off))
		}
		if _, _, err := q.AllocatedSince(t.Context(), q.Identity()); err != nil {
			t.Error(err)
		}
	})
}

func expected(t *testing.T, err error) {
	t.Helper()
	switch errs.KindOf(err) {
	case errs.Corrupt, errs.Invalid, errs.Newer, errs.NotFound, errs.Denied:
	default:
		t.Errorf("an error of kind %v: %v", errs.KindOf(err), err)
	}
}

func lookAt(t *testing.T, q *image.Qcow2, off, n int64) {
	at := off
	for e, err := range q.Extents(t.Context(), off, n) {
		if err != nil {
			expected(t, err)
			return
		}
		if e.Off != at || e.Len <= 0 || e.End() > off+n {
			t.Fatalf("extent %+v at %d of %d+%d", e, at, off, n)
		}
		at = e.End()
		p := make([]byte, e.Len)
		if err := q.ReadAt(t.Context(), p, e.Off); err != nil {
			expected(t, err)
		} else if e.Kind != blockdev.Data && !blockdev.IsZero(p) {
			t.Fatalf("extent %+v is not zeroes", e)
		}
	}
	if at != off+n {
		t.Fatalf("extents of %d+%d end at %d", off, n, at)
	}
}
