package snapshotchain

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/snapshotchain/chunkstore"
)

func noPace(ctx context.Context, _ int64) error { return ctx.Err() }

// putPages makes a point of a VM whose leaf 0 has runs of 16 pages with the given contents at multiples of 100.
func putPages(t *testing.T, s *Store, vm string, full bool, contents ...uint64) Point {
	t.Helper()
	return putPagesAt(t, s, chunkstore.LevelDefault, vm, full, contents...)
}

// putPagesAt is putPages with a level of compression.
func putPagesAt(t *testing.T, s *Store, level chunkstore.Level, vm string, full bool, contents ...uint64) Point {
	t.Helper()
	d, err := s.Begin(t.Context(), vm, []DiskSpec{{Name: "sda", SizeBytes: 64 << 20, Full: full}})
	if err != nil {
		t.Fatal(err)
	}
	k := d.Disks()[0]
	var runs []Run
	var sum chunkstore.Sum
	pages := int64(0)
	for i, c := range contents {
		if c == 0 { // as before
			continue
		}
		e, _ := encodedChunk(t, s, level, c)
		p, _, err := k.Put(t.Context(), e)
		if err != nil {
			t.Fatal(err)
		}
		runs = append(runs, Run{Page: uint16(100 * i), Len: 16, Ptr: p})
		h := s.Hasher()
		for j, ph := range e.Hashes {
			sum = sum.Add(h.Term(int64(100*i+j), ph))
			pages++
		}
	}
	if !full && k.Parent() != nil { // what was there before goes
		var old [LeafPages]chunkstore.PageHash
		if err := k.Parent().PageHashes(t.Context(), 0, old[:], make([]bool, LeafPages)); err != nil {
			t.Fatal(err)
		}
		h := s.Hasher()
		for _, r := range runs {
			for j := int(r.Page); j < r.end(); j++ {
				if old[j] != (chunkstore.PageHash{}) {
					sum = sum.Sub(h.Term(int64(j), old[j]))
					pages--
				}
			}
		}
	}
	k.Account(sum, pages)
	if err := k.SetLeaf(t.Context(), 0, runs); err != nil {
		t.Fatal(err)
	}
	p, err := d.Seal(t.Context(), SealInfo{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func chunkOf(t *testing.T, s *Store, content uint64) (chunkstore.Encoded, []byte) {
	t.Helper()
	return encodedChunk(t, s, chunkstore.LevelDefault, content)
}

// compressible contents can be stored in less bytes.
const compressible = 1_000_000

func encodedChunk(t *testing.T, s *Store, level chunkstore.Level, content uint64) (chunkstore.Encoded, []byte) {
	t.Helper()
	rng := rand.New(rand.NewPCG(content, 2))
	raw := make([]byte, 16*chunkstore.PageSize)
	for i := range raw {
		if raw[i] = byte(rng.Uint32()); content >= compressible {
			raw[i] &= 3
		}
	}
	h := s.Hasher()
	var hashes []chunkstore.PageHash
	for i := range 16 {
		hashes = append(hashes, h.Page(raw[i*chunkstore.PageSize:][:chunkstore.PageSize]))
	}
	e, err := s.Encode(level, chunkstore.Encoded{ID: h.Chunk(hashes), Hashes: hashes}, raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	return e, raw
}

// spoil flips a byte in the middle of what is found in the files of a class.
func spoil(t *testing.T, dir, class string, what []byte) {
	t.Helper()
	var done bool
	err := filepath.WalkDir(filepath.Join(dir, "containers", class), func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || done {
			return err
		}
		b, err := os.ReadFile(path)
		if i := bytes.Index(b, what); err == nil && i >= 0 {
			b[i+len(what)/2] ^= 4
			done = true
			return os.WriteFile(path, b, 0o600)
		}
		return err
	})
	if err != nil || !done {
		t.Fatalf("nothing was spoiled: %v", err)
	}
}

func proofOf(t *testing.T, s *Store, p *Point) *Proof {
	t.Helper()
	proof, err := s.Verify(t.Context(), &p.Disks[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	return proof
}

func reopen(t *testing.T, s *Store, dir string, c clock.Clock) *Store {
	t.Helper()
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), Options{Dir: dir, FS: vfs.OS{}, Clock: c, ContainerBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A byte that rots in a chunk is found by scrubbing, listed with what it spoils, and healed when the same data comes
// in again.
func TestBadChunkIsFoundListedAndHealed(t *testing.T) {
	dir, c := t.TempDir(), &clock.Fixed{T: time.Unix(1_800_000_000, 0)}
	s, err := Open(t.Context(), Options{Dir: dir, FS: vfs.OS{}, Clock: c})
	if err != nil {
		t.Fatal(err)
	}
	a := putPages(t, s, "web", false, 1, 2, 3)
	b := putPages(t, s, "web", false, 4)
	other := putPages(t, s, "db", false, 7, 2)
	_, raw := chunkOf(t, s, 2)
	s = reopen(t, s, dir, c)
	for _, p := range []*Point{&a, &b, &other} {
		if proof := proofOf(t, s, p); len(proof.Bad) > 0 || proof.DataBytes == 0 {
			t.Fatalf("%+v", proof)
		}
	}
	spoil(t, dir, "data", raw)
	s = reopen(t, s, dir, c)
	done, err := s.Scrub(t.Context(), 0, noPace, nil)
	if err != nil || done.Bad != 1 || done.ReadBytes == 0 {
		t.Fatalf("%+v: %v", done, err)
	}
	touched, err := s.Touched(t.Context())
	if err != nil || len(touched) != 3 {
		t.Fatalf("%v: %v", touched, err)
	}
	for _, x := range touched {
		if x.Disk != "sda" || x.Offset != 100*4096 || x.Length != 16*4096 {
			t.Errorf("%+v", x)
		}
	}
	damage, _ := s.Health()
	if len(damage) != 1 || !strings.Contains(damage[0], "it spoils ") || !strings.Contains(damage[0], "and 2 more ranges") {
		t.Errorf("%q", damage)
	}
	if proof := proofOf(t, s, &b); len(proof.Bad) != 1 || proof.Bad[0].Offset != 100*4096 {
		t.Errorf("%+v", proof)
	}
	if n, err := s.Heal(t.Context()); n != 0 || err != nil {
		t.Fatalf("%d healed of nothing: %v", n, err)
	}
	putPages(t, s, "copy", true, 0, 0, 0, 2)
	if n, err := s.Heal(t.Context()); n != 1 || err != nil {
		t.Fatalf("%d healed: %v", n, err)
	}
	for range 2 {
		if damage, _ := s.Health(); len(damage) > 0 {
			t.Errorf("after healing: %q", damage)
		}
		for _, p := range []*Point{&a, &b, &other} {
			if proof := proofOf(t, s, p); len(proof.Bad) > 0 {
				t.Errorf("after healing: %+v", proof)
			}
		}
		s = reopen(t, s, dir, c)
	}
	s.Close(t.Context())
}

// A part of a map segment that rots is made again of the metadata, so that the metadata can be lost afterwards.
func TestBadMapPartIsHealedFromTheMetadata(t *testing.T) {
	dir, c := t.TempDir(), &clock.Fixed{T: time.Unix(1_800_000_000, 0)}
	s, err := Open(t.Context(), Options{Dir: dir, FS: vfs.OS{}, Clock: c})
	if err != nil {
		t.Fatal(err)
	}
	p := putPages(t, s, "web", false, 1, 2, 3)
	s = reopen(t, s, dir, c)
	spoil(t, dir, "map", []byte(partMagic)) // too short to be compressed
	s = reopen(t, s, dir, c)
	if done, err := s.Scrub(t.Context(), 0, noPace, nil); err != nil || done.Bad != 1 {
		t.Fatalf("%+v: %v", done, err)
	}
	if n, err := s.Heal(t.Context()); n != 1 || err != nil {
		t.Fatalf("%d healed: %v", n, err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "meta")); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, dir)
	defer s.Close(t.Context())
	if proof := proofOf(t, s, &p); len(proof.Bad) > 0 {
		t.Errorf("%+v", proof)
	}
	if damage, _ := s.Health(); len(damage) != 1 {
		t.Errorf("%q", damage)
	}
}

// Each container is read once within the age, the one that waits longest first, and an interrupted pass goes on.
func TestScrubGoesOnWhereItWas(t *testing.T) {
	dir, c := t.TempDir(), &clock.Fixed{T: time.Unix(1_800_000_000, 0)}
	s, err := Open(t.Context(), Options{Dir: dir, FS: vfs.OS{}, Clock: c, ContainerBytes: 256 << 10})
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(20) {
		putPages(t, s, "web", false, 1000+i)
	}
	const age = 30 * 24 * time.Hour
	s = reopen(t, s, dir, c)
	first := s.ScrubState(age)
	if first.Containers < 5 || first.Due > first.Containers/2 {
		t.Fatalf("%+v", first)
	}
	c.Advance(age)
	total := 0
	for rounds := 0; s.ScrubState(age).Due > 0; rounds++ {
		ctx, cancel := context.WithCancel(t.Context())
		done, err := s.Scrub(ctx, age, noPace, func(Scrubbed) { cancel() })
		if err != nil && !errs.Is(err, errs.Canceled) || rounds > 100 {
			t.Fatal(err, rounds)
		}
		cancel()
		total += done.Containers
		if rounds%3 == 0 {
			s = reopen(t, s, dir, c)
		}
	}
	if total < first.Containers || total > 2*first.Containers {
		t.Errorf("%d containers were read, there are %d", total, first.Containers)
	}
	s.Close(t.Context())
}

// A bad record that nobody needs any more goes with the next collection, and status is healthy again.
func TestBadRecordThatNobodyNeedsIsCollected(t *testing.T) {
	dir, c := t.TempDir(), &clock.Fixed{T: time.Unix(1_800_000_000, 0)}
	s, err := Open(t.Context(), Options{Dir: dir, FS: vfs.OS{}, Clock: c})
	if err != nil {
		t.Fatal(err)
	}
	a := putPages(t, s, "web", true, 1)
	b := putPages(t, s, "web", true, 2, 3, 4, 5, 6) // most of the container
	_, raw := chunkOf(t, s, 1)
	s = reopen(t, s, dir, c)
	spoil(t, dir, "data", raw)
	s = reopen(t, s, dir, c)
	defer func() { s.Close(t.Context()) }()
	if done, err := s.Scrub(t.Context(), 0, noPace, nil); err != nil || done.Bad != 1 {
		t.Fatalf("%+v: %v", done, err)
	}
	if err := s.Expire(t.Context(), "web", a.ID); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Collect(t.Context(), CollectOptions{}); err != nil || r.Rewritten == 0 || r.Damaged != 0 {
		t.Fatalf("%+v: %v", r, err)
	}
	if damage, _ := s.Health(); len(damage) > 0 {
		t.Error(damage)
	}
	if proof := proofOf(t, s, &b); len(proof.Bad) > 0 {
		t.Errorf("%+v", proof)
	}
}
