package chunkstore

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"testing"
	"time"

	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
)

func testStoreID() (id StoreID) {
	for i := range id {
		id[i] = byte(i)
	}
	return id
}

func openMem(t testing.TB, fsys vfs.FS) *Store {
	t.Helper()
	s, err := Open(Options{
		FS: fsys, Dir: "/c", Store: testStoreID(), Clock: &clock.Fixed{T: time.Unix(1_800_000_000, 0)}, ContainerBytes: 1 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func recovered(t testing.TB, fsys vfs.FS, k Known) (*Store, *Recovery) {
	t.Helper()
	s := openMem(t, fsys)
	rec, err := s.Recover(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	s.Journal().SetNext(1)
	return s, rec
}

func encodePage(t testing.TB, s *Store, b byte, n int) Encoded {
	t.Helper()
	h := s.Hasher()
	raw := bytes.Repeat([]byte{b}, n*PageSize)
	hashes := make([]PageHash, n)
	for i := range hashes {
		hashes[i] = h.Page(raw[i*PageSize:][:PageSize])
	}
	e, err := s.Encode(LevelDefault, Encoded{ID: h.Chunk(hashes), Hashes: hashes}, raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// golden compares with testdata; LIVEMOUNT_GOLDEN=write writes it, for a new format version only.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := "testdata/" + name
	text := hex.Dump(got)
	if os.Getenv("LIVEMOUNT_GOLDEN") == "write" {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Fatalf("the format of %s changed:\n%s", name, text)
	}
}

// A raw codec keeps the golden bytes free of what a compressor likes today.
func goldenChunk(s *Store) Encoded {
	h := s.Hasher()
	raw := make([]byte, PageSize)
	for i := range raw {
		raw[i] = byte(i * i >> 3)
	}
	hash := h.Page(raw)
	return Encoded{ID: h.Chunk([]PageHash{hash}), Hashes: []PageHash{hash}, Codec: CodecRaw, RawLen: PageSize, Payload: raw}
}

func TestGoldenContainer(t *testing.T) {
	m := vfs.NewMem()
	s, _ := recovered(t, m, Known{Trusted: true})
	s.nextID = 7
	w := s.NewWriter(0x1122334455667788)
	if _, _, err := w.PutChunk(t.Context(), goldenChunk(s)); err != nil {
		t.Fatal(err)
	}
	states, err := w.Commit()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Release(states); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	b, err := vfs.ReadFile(m, "/c/data/000000/0000000000000007.00000000.lmc", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "container.golden", b)
}

func TestGoldenJournalRecord(t *testing.T) {
	r := &record{kind: KindJournal, codec: CodecRaw, payload: []byte(`{"abort":{"draft":1}}`), rawLen: 21}
	r.id[0], r.id[8] = 5, 4
	golden(t, "journal.golden", appendRecord(nil, newSeed(testStoreID(), 3), r))
}

func TestGoldenSum(t *testing.T) {
	h := NewHasher(bytes.Repeat([]byte{7}, 16))
	s := h.Term(1, PageHash{1}).Add(h.Term(2, PageHash{2})).Sub(h.Term(1, PageHash{1}))
	golden(t, "sum.golden", s.Bytes())
	var back Sum
	if text, err := s.MarshalText(); err != nil || back.UnmarshalText(text) != nil || back != s {
		t.Fatal("a sum does not survive its text form")
	}
}

// sample is a container with several records, and what they hold.
func sample(t testing.TB) (content []byte, name string, states []State, want map[Ptr]byte) {
	t.Helper()
	m := vfs.NewMem()
	s, _ := recovered(t, m, Known{Trusted: true})
	w := s.NewWriter(1)
	want = map[Ptr]byte{}
	for i := range 5 {
		p, _, err := w.PutChunk(context.Background(), encodePage(t, s, byte(i+1), 1+i%2))
		if err != nil {
			t.Fatal(err)
		}
		want[p] = byte(i + 1)
	}
	states, err := w.Commit()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Release(states); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	name = "/c/" + fileName(ClassData, states[0].ID, 0)
	content, err = vfs.ReadFile(m, name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	states[0].Sealed = true
	return content, name, states, want
}

// withFile is a file system that holds just this container.
func withFile(t testing.TB, name string, content []byte) *vfs.Mem {
	t.Helper()
	m := vfs.NewMem()
	if err := m.MkdirAll("/c/data/000000"); err != nil {
		t.Fatal(err)
	}
	f, err := m.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	return m
}

// Each byte of a container is flipped in turn: every chunk reads right or is Corrupt, and what a flip does
// not touch still reads right.
func TestEveryFlippedByteIsCorruptOrHarmless(t *testing.T) {
	content, name, states, want := sample(t)
	for pos := range content {
		for _, sealed := range []bool{true, false} {
			spoiled := bytes.Clone(content)
			spoiled[pos] ^= 1 << (pos % 8)
			st := states[0]
			st.Sealed = sealed
			s, _ := recovered(t, withFile(t, name, spoiled), Known{States: []State{st}, Trusted: true})
			bad := 0
			for p, b := range want {
				got, err := s.Chunk(t.Context(), p)
				switch {
				case errs.Is(err, errs.Corrupt):
					bad++
				case err != nil:
					t.Fatalf("flip at %d: %v", pos, err)
				case len(got) == 0 || !bytes.Equal(got, bytes.Repeat([]byte{b}, len(got))):
					t.Fatalf("flip at %d: chunk %s holds other bytes", pos, p)
				}
			}
			if bad > 1 {
				t.Fatalf("flip at %d (sealed %v) spoiled %d chunks", pos, sealed, bad)
			}
		}
	}
}

func TestUncommittedRecordsAreCutAndCommittedOnesStay(t *testing.T) {
	m := vfs.NewMem()
	s, _ := recovered(t, m, Known{Trusted: true})
	w := s.NewWriter(1)
	p1, _, err := w.PutChunk(t.Context(), encodePage(t, s, 1, 3))
	if err != nil {
		t.Fatal(err)
	}
	states, err := w.Commit()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Release(states); err != nil {
		t.Fatal(err)
	}
	w2 := s.NewWriter(2) // goes on in the same container, then the process dies
	p2, _, err := w2.PutChunk(t.Context(), encodePage(t, s, 2, 3))
	if err != nil || p2.Container != p1.Container {
		t.Fatal(p2, err)
	}
	if _, err := w2.Commit(); err != nil {
		t.Fatal(err)
	}
	s, rec := recovered(t, m, Known{States: states, Drafts: map[DraftID]bool{2: true}, Trusted: true})
	if len(rec.Damage) > 0 || len(rec.Changed) != 1 || !rec.Changed[0].Sealed {
		t.Fatalf("%+v", rec)
	}
	if _, err := s.Chunk(t.Context(), p1); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Chunk(t.Context(), p2); !errs.Is(err, errs.Corrupt) {
		t.Fatal("an uncommitted record is still there", err)
	}
}

func TestANewerContainerIsRefused(t *testing.T) {
	content, name, states, _ := sample(t)
	h, err := parseContainerHeader(content)
	if err != nil {
		t.Fatal(err)
	}
	b := h.encode()
	b[8] = FormatVersion + 1
	fixCRC(b)
	copy(content, b)
	if _, err := parseContainerHeader(content); !errs.Is(err, errs.Newer) {
		t.Fatal(err)
	}
	m := withFile(t, name, content)
	s := openMem(t, m)
	if _, err := s.Recover(t.Context(), Known{Trusted: true}); !errs.Is(err, errs.Newer) {
		t.Fatal(err, states)
	}
}

func fixCRC(h []byte) {
	c := crc(h[:headerBytes-4])
	copy(h[headerBytes-4:], []byte{byte(c), byte(c >> 8), byte(c >> 16), byte(c >> 24)})
}

func FuzzRecord(f *testing.F) {
	s := newSeed(testStoreID(), 3)
	f.Add(appendRecord(nil, s, &record{kind: KindJournal, payload: []byte("x"), rawLen: 1}))
	f.Add(appendRecord(nil, s, &record{kind: KindChunk, aux: make([]byte, 32), payload: make([]byte, 50), rawLen: 8192}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(s, b)
		if err != nil {
			if !errs.Is(err, errs.Corrupt) {
				t.Fatal(err)
			}
			return
		}
		if again := appendRecord(nil, s, r); !bytes.Equal(again[:recordHeader], b[:recordHeader]) {
			t.Fatal("a record that was accepted encodes to another")
		}
	})
}

// FuzzContainer lets a hostile file be a container: no panic, and no bytes that do not pass a checksum.
func FuzzContainer(f *testing.F) {
	content, name, states, want := sample(f)
	f.Add(content)
	f.Add(content[:len(content)/2])
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, sealed := range []bool{true, false} {
			st := states[0]
			st.Sealed = sealed
			st.Bytes = min(st.Bytes, int64(len(b)))
			s := openMem(t, withFile(t, name, b))
			defer s.codecs.close()
			if _, err := s.Recover(t.Context(), Known{States: []State{st}, Trusted: true}); err != nil && !errs.Is(err, errs.Corrupt) && !errs.Is(err, errs.Newer) {
				t.Fatal(err)
			}
			for p := range want {
				if _, err := s.Chunk(t.Context(), p); err != nil && !errs.Is(err, errs.Corrupt) && !errs.Is(err, errs.Newer) {
					t.Fatal(err)
				}
			}
		}
	})
}

func FuzzCodec(f *testing.F) {
	c, err := newCodecs()
	if err != nil {
		f.Fatal(err)
	}
	codec, payload, err := c.encode(LevelDefault, bytes.Repeat([]byte("abcdefgh"), 1000), nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint8(codec), payload, 8000)
	f.Add(uint8(CodecS2), []byte{1, 2, 3}, 10)
	f.Fuzz(func(t *testing.T, codec uint8, payload []byte, n int) {
		if n < 0 || n > 1<<20 {
			return
		}
		b, err := c.decode(Codec(codec), payload, n)
		if err == nil && len(b) != n {
			t.Fatal(fmt.Sprint("decoded ", len(b), " bytes instead of ", n))
		}
	})
}
