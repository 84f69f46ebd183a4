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
		if _, err := s.Journal().Append(changeOf(i)); err != nil {
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

func changeOf(i int) []byte {
	return fmt.Appendf(nil, `{"change":%d,"and more":"%s"}`, i, bytes.Repeat([]byte{'a' + byte(i)}, 100*i))
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
			rep, err := s.Journal().Read(t.Context(), 1, func(_ uint64, b []byte) error {
				if !bytes.Equal(b, changeOf(n)) {
					t.Fatalf("byte %d: change %d is %q", at, n, b)
				}
				n++
				return nil
			})
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

// settled opens a journal that a crash left as b, and completes it as the store does when it has no gaps.
func settled(t *testing.T, keys *keyring.Keys, name string, b []byte) (changes int, s *Store, mem *vfs.Mem) {
	t.Helper()
	mem = vfs.NewMem()
	if err := mem.MkdirAll("/c/journal"); err != nil {
		t.Fatal(err)
	}
	f, err := mem.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	s = openWith(t, mem, keys)
	if err := s.SettleJournal(t.Context()); err != nil {
		t.Fatal(err)
	}
	rep, err := s.Journal().Read(t.Context(), 1, func(uint64, []byte) error { changes++; return nil })
	if err != nil || len(rep.Gaps) > 0 {
		t.Fatalf("%d bytes: %v: %v", len(b), rep.Gaps, err)
	}
	if err := s.FinishJournal(t.Context()); err != nil {
		t.Fatal(err)
	}
	return changes, s, mem
}

// Whatever part of the last change a crash left: it is whole or not there, scrubbing finds nothing, and the container has a
// footer, so that no byte of it, its header with the salt of the key included, is needed alone.
func TestTornChangeIsPairedUpOrCutOff(t *testing.T) {
	for _, keys := range []*keyring.Keys{nil, testKeys(t)} {
		_, name, whole := journalOf(t, keys)
		tr, err := parseTrailer(whole[len(whole)-trailerBytes:], int64(len(whole)))
		if err != nil {
			t.Fatal(err)
		}
		records := whole[:tr.off] // without the footer: it was never closed
		slots := scan(newSeed(testStoreID(), tr.id), records).slots
		first, second := slots[8], slots[9]
		var cases [][]byte
		for at := int(first.off); at <= len(records); at += 5 {
			cases = append(cases, records[:at])
		}
		for _, sl := range []slot{first, second} { // its bytes did not reach the disk, those of its twin did
			b := bytes.Clone(records)
			clear(b[sl.off+20 : sl.off+sl.len])
			cases = append(cases, b)
		}
		both := bytes.Clone(records)
		clear(both[first.off+70:])
		for i, b := range append(cases, both) {
			n, s, mem := settled(t, keys, name, bytes.Clone(b))
			if _, bad, err := s.VerifyContainer(t.Context(), tr.id, func(context.Context, int64) (func(), error) { return func() {}, nil }); err != nil || len(bad) > 0 {
				t.Fatalf("case %d: %v: %v", i, bad, err)
			}
			if done, err := s.JournalFinished(t.Context()); !done || err != nil {
				t.Fatalf("case %d: not finished: %v", i, err)
			}
			if err := s.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			put(t, mem, name, 20, []byte{0xff}) // in the header
			s = openWith(t, mem, keys)
			again := 0
			if rep, err := s.Journal().Read(t.Context(), 1, func(uint64, []byte) error { again++; return nil }); err != nil || len(rep.Gaps) > 0 || again != n || n < 4 {
				t.Fatalf("case %d: %d changes, then %d, %v: %v", i, n, again, rep.Gaps, err)
			}
			if err := s.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// What a crash cannot have left is no torn change.
func TestOtherBytesBehindTheJournalStay(t *testing.T) {
	_, name, whole := journalOf(t, nil)
	tr, err := parseTrailer(whole[len(whole)-trailerBytes:], int64(len(whole)))
	if err != nil {
		t.Fatal(err)
	}
	b := append(bytes.Clone(whole[:tr.off]), bytes.Repeat([]byte("no record"), 50)...)
	n, s, mem := settled(t, nil, name, b)
	got, err := vfs.ReadFile(mem, name, 1<<20)
	if n != 5 || err != nil || !bytes.Equal(got, b) {
		t.Fatalf("%d changes; the file changed: %v", n, err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A footer with a bad byte is written again.
func TestBadFooterOfTheJournalIsWrittenAgain(t *testing.T) {
	keys := testKeys(t)
	_, name, whole := journalOf(t, keys)
	b := bytes.Clone(whole)
	b[len(b)-5] ^= 1
	n, s, mem := settled(t, keys, name, b)
	got, err := vfs.ReadFile(mem, name, 1<<20)
	if n != 5 || err != nil || !bytes.Equal(got, whole) {
		t.Fatalf("%d changes; the footer is not what it was: %v", n, err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}
