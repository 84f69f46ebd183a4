package kv

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"livemount/internal/errs"
)

func fill(t *testing.T, dir string, n int) {
	t.Helper()
	db, err := Open(Options{Dir: dir, Sync: true})
	if err != nil {
		t.Fatal(err)
	}
	b := db.NewBatch()
	for i := range n {
		if err := b.Put(key(i), value(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func key(i int) []byte   { return fmt.Appendf(nil, "key-%06d", i) }
func value(i int) []byte { return bytes.Repeat([]byte{byte(i)}, 40) }

// Whatever byte of a table is flipped, opening says Corrupt, or every key reads right.
func TestFlippedTableBytesAreFoundBeforeBadgerOpensThem(t *testing.T) {
	master := t.TempDir()
	fill(t, master, 2000)
	tables, err := filepath.Glob(filepath.Join(master, "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatal("no table was written", err)
	}
	content, err := os.ReadFile(tables[0])
	if err != nil {
		t.Fatal(err)
	}
	for pos := 0; pos < len(content); pos += len(content)/400 + 1 {
		spoiled := bytes.Clone(content)
		spoiled[pos] ^= 0x40
		path := filepath.Join(t.TempDir(), filepath.Base(tables[0]))
		if err := os.WriteFile(path, spoiled, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := verifyTable(path, nil, 0); !errs.Is(err, errs.Corrupt) {
			t.Fatalf("flip at %d of %d: %v", pos, len(content), err)
		}
	}
}

// Whatever a table lost at its end, also all of it, opening says Corrupt.
func TestShortTableIsCorrupt(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, 2000)
	tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatal("no table was written", err)
	}
	for _, size := range []int64{4097, 4096, 100, 1, 0} {
		if err := os.Truncate(tables[0], size); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(Options{Dir: dir}); !errs.Is(err, errs.Corrupt) {
			t.Fatalf("cut to %d bytes: %v", size, err)
		}
	}
}

func TestSpoiledValueIsCorrupt(t *testing.T) {
	f := frame([]byte("k"), []byte("content"))
	for i := range f {
		bad := bytes.Clone(f)
		bad[i] ^= 1
		if _, err := unframe([]byte("k"), bad); !errs.Is(err, errs.Corrupt) {
			t.Fatalf("flip at %d: %v", i, err)
		}
	}
	if _, err := unframe([]byte("other"), f); !errs.Is(err, errs.Corrupt) {
		t.Fatal("a value moved to another key passed")
	}
}

func TestReopenedDatabaseHasWhatWasCommitted(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, 100)
	db, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	v, err := db.Get(key(42))
	if err != nil || !bytes.Equal(v, value(42)) {
		t.Fatal(v, err)
	}
	if _, err := db.Get([]byte("none")); !errs.Is(err, errs.NotFound) {
		t.Fatal(err)
	}
	n := 0
	if err := db.Each([]byte("key-"), func(_, _ []byte, err error) error { n++; return err }); err != nil || n != 100 {
		t.Fatal(n, err)
	}
}

// BenchmarkVerify measures what verifying the tables adds to opening a database.
func BenchmarkVerify(b *testing.B) {
	dir := b.TempDir()
	db, err := Open(Options{Dir: dir})
	if err != nil {
		b.Fatal(err)
	}
	w := db.NewBatch()
	for i := range 1_000_000 {
		if err := w.Put(key(i), value(i)); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		b.Fatal(err)
	}
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
	tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil {
		b.Fatal(err)
	}
	size := int64(0)
	for _, t := range tables {
		info, err := os.Stat(t)
		if err != nil {
			b.Fatal(err)
		}
		size += info.Size()
	}
	b.SetBytes(size)
	for b.Loop() {
		if err := prepare(dir, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// A crash leaves empty log files and tables that nothing lists; they are not corruption.
func TestWhatACrashLeavesDoesNotSpoilTheDatabase(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, 100)
	for _, name := range []string{"000777.vlog", "00777.mem", "000777.sst"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "000778.sst"), []byte("half a table"), 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for i := range 100 {
		if got, err := db.Get(key(i)); err != nil || !bytes.Equal(got, value(i)) {
			t.Fatalf("key %d: %v", i, err)
		}
	}
}

func TestLostListOfTablesIsCorrupt(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, 100)
	if err := os.Remove(filepath.Join(dir, "MANIFEST")); err != nil {
		t.Fatal(err)
	}
	if db, err := Open(Options{Dir: dir}); !errs.Is(err, errs.Corrupt) {
		t.Fatal(db, err)
	}
}

// An encrypted database shows nothing of what is in it, opens with its key alone, and a flipped byte of a table is found.
func TestEncryptedDatabaseIsVerifiedAndShowsNothing(t *testing.T) {
	dir, key := t.TempDir(), bytes.Repeat([]byte{7}, 32)
	for round := range 3 {
		db, err := Open(Options{Dir: dir, Sync: true, Key: key})
		if err != nil {
			t.Fatal(round, err)
		}
		if round > 0 {
			if got, err := db.Get([]byte("secret-key-1")); err != nil || string(got) != "a secret value" {
				t.Fatalf("%q: %v", got, err)
			}
		}
		b := db.NewBatch()
		for i := range 3000 {
			if err := b.Put(fmt.Appendf(nil, "secret-key-%d", i), []byte("a secret value")); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err != nil || bytes.Contains(b, []byte("secret")) {
			t.Errorf("%s shows what is stored: %v", f, err)
		}
	}
	for _, other := range [][]byte{bytes.Repeat([]byte{8}, 32), nil} {
		if _, err := Open(Options{Dir: dir, Key: other}); !errs.Is(err, errs.Corrupt) {
			t.Errorf("another key: %v", err)
		}
	}
	if err := Verify(dir, key); err != nil {
		t.Fatal(err)
	}
	tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatal("no table was written", err)
	}
	b, err := os.ReadFile(tables[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/3] ^= 1
	if err := os.WriteFile(tables[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Verify(dir, key); !errs.Is(err, errs.Corrupt) {
		t.Errorf("a flipped byte: %v", err)
	}
}
