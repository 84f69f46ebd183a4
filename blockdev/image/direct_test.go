package image

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// TestReadingPastThePageCacheGivesTheSameBytes reads what was just written, what the cache has, and what
// it does not have, aligned and not.
func TestReadingPastThePageCacheGivesTheSameBytes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.raw")
	want := make([]byte, 3<<20+1234)
	rand.NewChaCha8([32]byte{1}).Read(want)
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := OpenRaw(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.direct == nil {
		t.Logf("%s is on a file system without direct I/O", path)
	}
	for _, drop := range []bool{false, true, true} {
		for _, c := range []struct{ off, n int64 }{{0, 3<<20 + 1234}, {4096, 1 << 20}, {100, 1 << 20}, {2 << 20, 1<<20 + 1}, {3 << 20, 1234}} {
			if drop {
				if err := r.file.Sync(); err != nil {
					t.Fatal(err)
				}
				r.DropCache(0, r.size)
			}
			got := make([]byte, 4<<20)[:c.n] // large enough to begin on a page
			if err := r.ReadAt(t.Context(), got, c.off); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want[c.off:c.off+c.n]) {
				t.Fatalf("%d bytes at %d differ", c.n, c.off)
			}
		}
	}
}
