package chunkstore

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"testing"
	"time"

	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/keyring"
)

func testKeys(t testing.TB) *keyring.Keys {
	t.Helper()
	secret, err := keyring.KeyFile(keyring.NewKeyFile())
	if err != nil {
		t.Fatal(err)
	}
	_, keys, err := keyring.Create(testStoreID(), keyring.NewSlot{Secret: secret, Created: time.Unix(1_800_000_000, 0)})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func openEncrypted(t testing.TB, fsys vfs.FS, keys *keyring.Keys) *Store {
	t.Helper()
	s, err := Open(Options{
		FS: fsys, Dir: "/c", Store: testStoreID(), Clock: &clock.Fixed{T: time.Unix(1_800_000_000, 0)}, ContainerBytes: 64 << 10, Keys: keys,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// eachFile calls fn with every container.
func eachFile(t testing.TB, fsys vfs.FS, fn func(name string, b []byte)) {
	t.Helper()
	var walk func(dir string)
	walk = func(dir string) {
		names, err := fsys.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			name := path.Join(dir, n)
			info, err := fsys.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			if info.IsDir {
				walk(name)
				continue
			}
			f, err := fsys.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			b, err := readAll(f, scanLimit)
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
			fn(name, b)
		}
	}
	walk("/c")
}

// sealedOnce remembers what was sealed under which key and nonce, and fails when that happens twice.
type sealedOnce map[string]string

func (o sealedOnce) look(t *testing.T, fsys vfs.FS) {
	t.Helper()
	eachFile(t, fsys, func(name string, b []byte) {
		h, err := parseContainerHeader(b)
		if err != nil {
			return // not written yet
		}
		if h.keyID == 0 || h.salt == [32]byte{} {
			t.Fatalf("%s is not encrypted", name)
		}
		sd := newSeed(testStoreID(), h.id)
		for n, sl := range scan(sd, b).slots {
			if sl.len < recordHeader {
				continue
			}
			r, err := parseRecord(sd, b[sl.off:sl.off+sl.len])
			if err != nil || r.flags&flagEncrypted == 0 {
				t.Fatalf("%s, slot %d: flags %d: %v", name, n, r.flags, err)
			}
			key := fmt.Sprintf("%x/%d", h.salt, r.slot)
			if old, ok := o[key]; ok && old != string(r.payload) {
				t.Fatalf("%s, slot %d was sealed twice under one key", name, n)
			}
			o[key] = string(r.payload)
		}
	})
}

// Whatever fails, is given up, crashes, or is written anew: no slot of a file is sealed twice, nothing is in the clear, and
// what was committed reads as it was.
func TestNoNonceIsUsedTwice(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 8))
		keys, mem := testKeys(t), vfs.NewMem()
		left := -1
		faulty := func(m *vfs.Mem) vfs.FS {
			return &vfs.Faulty{FS: m, Fail: func(op vfs.Op, _ string) error {
				if op != vfs.OpWrite || left < 0 {
					return nil
				}
				if left--; left < 0 {
					return errs.New(errs.NoSpace, "full")
				}
				return nil
			}}
		}
		states := map[ContainerID]State{}
		draft := DraftID(1)
		begun := map[DraftID]bool{}
		open := func() *Store {
			s := openEncrypted(t, faulty(mem), keys)
			known := Known{Trusted: true, Drafts: begun}
			for _, st := range states {
				known.States = append(known.States, st)
			}
			rec, err := s.Recover(t.Context(), known)
			if err != nil || len(rec.Damage) > 0 {
				t.Fatalf("seed %d: %v: %v", seed, rec.Damage, err)
			}
			for _, st := range rec.Changed {
				states[st.ID] = st
			}
			s.Journal().SetNext(1)
			return s
		}
		s := open()
		once, want := sealedOnce{}, map[Ptr][]byte{}
		secret := []byte("a text that must not be seen in any file ")
		for step := range 60 {
			left = -1
			if rng.IntN(3) == 0 {
				left = rng.IntN(4)
			}
			draft++
			begun[draft] = true
			w := s.NewWriter(draft)
			got := map[Ptr][]byte{}
			var err error
			for range rng.IntN(6) {
				raw := bytes.Repeat(append(secret, byte(rng.IntN(256)), byte(step)), 2*PageSize)[:(1+rng.IntN(3))*PageSize]
				if _, err = s.Journal().Append(raw[:200]); err != nil {
					break
				}
				h := s.Hasher()
				var hashes []PageHash
				for i := 0; i < len(raw); i += PageSize {
					hashes = append(hashes, h.Page(raw[i:i+PageSize]))
				}
				var e Encoded
				if e, err = s.Encode(Level(rng.IntN(2)), Encoded{ID: h.Chunk(hashes), Hashes: hashes}, raw, nil); err != nil {
					break
				}
				var p Ptr
				if p, _, err = w.PutChunk(t.Context(), e); err != nil {
					break
				}
				got[p] = raw
				if _, err = s.Chunk(t.Context(), p); err != nil { // it is in the file, or that fails
					break
				}
			}
			once.look(t, mem)
			var list []State
			if err == nil && rng.IntN(4) > 0 {
				list, err = w.Commit()
			} else if err == nil {
				err = errors.New("given up")
			}
			if err == nil {
				for _, st := range list {
					states[st.ID] = st
				}
				for p, raw := range got {
					want[p] = raw
				}
				if err := w.Release(list); err != nil {
					t.Fatal(err)
				}
			} else {
				w.Abort() // it may fail, too
			}
			left = -1
			once.look(t, mem)
			switch rng.IntN(8) {
			case 0:
				mem = mem.CrashClone(rng)
				s = open()
			case 1:
				for id, st := range states {
					if r, err := s.Repack(t.Context(), id, Wanted{}); err == nil {
						states[id] = r.State
						if err := s.Swap(r); err != nil {
							t.Fatal(err)
						}
						_ = st
						break
					}
				}
			}
			once.look(t, mem)
		}
		for p, raw := range want {
			got, err := s.Chunk(t.Context(), p)
			if err != nil || !bytes.Equal(got, raw) {
				t.Fatalf("seed %d: %s: %v", seed, p, err)
			}
		}
		eachFile(t, mem, func(name string, b []byte) {
			if bytes.Contains(b, secret[:20]) {
				t.Fatalf("%s shows what is stored", name)
			}
		})
	}
}

// Records that are copied to another slot or container, that are replaced by ones in the clear, or belong to another
// store's keys, do not pass.
func TestForgedRecordsOfAnEncryptedStoreAreRefused(t *testing.T) {
	keys, mem := testKeys(t), vfs.NewMem()
	s := openEncrypted(t, mem, keys)
	if _, err := s.Recover(t.Context(), Known{Trusted: true}); err != nil {
		t.Fatal(err)
	}
	w := s.NewWriter(1)
	var ptrs []Ptr
	for i := range 3 {
		p, _, err := w.PutChunk(t.Context(), encodePage(t, s, byte(i+1), 1))
		if err != nil {
			t.Fatal(err)
		}
		ptrs = append(ptrs, p)
	}
	states, err := w.Commit()
	if err == nil {
		err = w.Release(states)
	}
	if err == nil {
		err = s.Close(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	id := ptrs[0].Container
	name := path.Join("/c", fileName(ClassData, id, 0))
	sd := newSeed(testStoreID(), id)
	forge := func(change func(r *record) *record) *vfs.Mem {
		m := mem.CrashClone(rand.New(rand.NewPCG(1, 1)))
		f, err := m.OpenRW(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b, err := readAll(f, scanLimit)
		if err != nil {
			t.Fatal(err)
		}
		sl := scan(sd, b).slots[1]
		r, err := parseRecord(sd, b[sl.off:sl.off+sl.len])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(appendRecord(nil, sd, change(r)), int64(sl.off)); err != nil {
			t.Fatal(err)
		}
		return m
	}
	read := func(m *vfs.Mem, k *keyring.Keys) error {
		s := openEncrypted(t, m, k)
		known := Known{Trusted: true}
		for _, st := range states {
			st.Sealed = false
			known.States = append(known.States, st)
		}
		if _, err := s.Recover(t.Context(), known); err != nil {
			t.Fatal(err)
		}
		_, err := s.Chunk(t.Context(), ptrs[1])
		return err
	}
	same := forge(func(r *record) *record { return r })
	if err := read(same, keys); err != nil {
		t.Fatal(err)
	}
	if err := read(same, testKeys(t)); err == nil {
		t.Error("the keys of another store opened it")
	}
	for what, change := range map[string]func(*record) *record{
		"in the clear": func(r *record) *record {
			r.flags, r.codec = 0, CodecRaw
			return r
		},
		"another id":     func(r *record) *record { r.id[3] ^= 1; return r },
		"another hash":   func(r *record) *record { r.aux = bytes.Clone(r.aux); r.aux[0] ^= 1; return r },
		"another codec":  func(r *record) *record { r.codec ^= 1; return r },
		"another length": func(r *record) *record { r.rawLen -= PageSize; return r },
		"a flipped bit":  func(r *record) *record { r.payload = bytes.Clone(r.payload); r.payload[5] ^= 1; return r },
	} {
		if err := read(forge(change), keys); !errs.Is(err, errs.Corrupt) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
