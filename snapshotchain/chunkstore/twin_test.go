package chunkstore

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/keyring"
)

// journalOf fills a journal and returns its one file.
func journalOf(t *testing.T, keys *keyring.Keys) (mem *vfs.Mem, name string, content []byte) {
	t.Helper()
	mem = vfs.NewMem()
	s := openWith(t, mem, keys)
	if _, err := s.Recover(t.Context(), Known{Trusted: true}); err != nil {
		t.Fatal(err)
	}
	s.Journal().SetNext(1)
	for i := range 5 {
		if _, err := s.Journal().Append(fmt.Appendf(nil, `{"change":%d,"and more":"%s"}`, i, bytes.Repeat([]byte{'a' + byte(i)}, 100*i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	names, err := mem.List("/c/journal")
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	name = "/c/journal/" + names[0]
	content, err = vfs.ReadFile(mem, name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return mem, name, content
}

func openWith(t *testing.T, mem *vfs.Mem, keys *keyring.Keys) *Store {
	if keys != nil {
		return openEncrypted(t, mem, keys)
	}
	return openMem(t, mem)
}

func put(t *testing.T, mem *vfs.Mem, name string, off int, b []byte) {
	t.Helper()
	f, err := mem.OpenRW(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, int64(off)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// Whatever byte of a journal rots, all of its changes are read; verifying finds the record, and mending gives the file
// exactly the bytes that it had.
func TestOneBadByteCostsTheJournalNothing(t *testing.T) {
	for _, keys := range []*keyring.Keys{nil, testKeys(t)} {
		mem, name, whole := journalOf(t, keys)
		rng := rand.New(rand.NewPCG(1, 1))
		mended := 0
		for at := headerBytes; at < len(whole); at += 1 + rng.IntN(9) {
			put(t, mem, name, at, []byte{whole[at] ^ 1<<rng.IntN(8)})
			s := openWith(t, mem, keys)
			n := 0
			rep, err := s.Journal().Read(t.Context(), 1, func(uint64, []byte) error { n++; return nil })
			if err != nil || n != 5 || len(rep.Gaps) > 0 {
				t.Fatalf("byte %d: %d changes, %v: %v", at, n, rep.Gaps, err)
			}
			id := s.AllSealed()[0].ID
			_, bad, err := s.VerifyContainer(t.Context(), id, func(context.Context, int64) (func(), error) { return func() {}, nil })
			if err != nil || len(bad) > 1 {
				t.Fatalf("byte %d: %v: %v", at, bad, err)
			}
			for _, p := range bad {
				if err := s.MendJournal(t.Context(), p); err != nil {
					t.Fatalf("byte %d: %v", at, err)
				}
				mended++
				got, err := vfs.ReadFile(mem, name, 1<<20)
				if err != nil || !bytes.Equal(got, whole) {
					t.Fatalf("byte %d: the file is not what it was: %v", at, err)
				}
			}
			put(t, mem, name, at, whole[at:at+1])
			if err := s.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if mended < 20 {
			t.Fatalf("%d records mended", mended)
		}
	}
}

// When both records of a change are bad, that is a gap, and nothing is made up.
func TestBothTwinsBadIsAGap(t *testing.T) {
	mem, name, whole := journalOf(t, nil)
	var at []int
	for off := headerBytes; len(at) < 10; off += recordAlign {
		if string(whole[off:off+4]) == recordMagic {
			at = append(at, off)
		}
	}
	for change := range 5 {
		for _, off := range at[2*change : 2*change+2] {
			put(t, mem, name, off+70, []byte{whole[off+70] ^ 1})
		}
		s := openMem(t, mem)
		n := 0
		rep, err := s.Journal().Read(t.Context(), 1, func(uint64, []byte) error { n++; return nil })
		if err != nil || n != 4 || len(rep.Gaps) == 0 {
			t.Errorf("change %d: %d read, %v: %v", change, n, rep.Gaps, err)
		}
		err = s.MendJournal(t.Context(), Ptr{s.AllSealed()[0].ID, uint32(2 * change)})
		if !errs.Is(err, errs.Corrupt) {
			t.Errorf("change %d: mended of nothing: %v", change, err)
		}
		put(t, mem, name, 0, whole)
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
