package chunkstore

import (
	"math/rand/v2"
	"path"
	"testing"

	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// fillContainers stores n chunks of one page each and seals what it fills; the last container stays open.
func fillContainers(t *testing.T, s *Store, n int) ([]Ptr, []State) {
	t.Helper()
	w := s.NewWriter(7)
	var ptrs []Ptr
	for i := range n {
		rng := rand.New(rand.NewPCG(uint64(i), 3))
		raw := make([]byte, PageSize)
		for j := range raw {
			raw[j] = byte(rng.Uint32())
		}
		h := s.Hasher()
		hashes := []PageHash{h.Page(raw)}
		e, err := s.Encode(LevelDefault, Encoded{ID: h.Chunk(hashes), Hashes: hashes}, raw, nil)
		if err != nil {
			t.Fatal(err)
		}
		p, _, err := w.PutChunk(t.Context(), e)
		if err != nil {
			t.Fatal(err)
		}
		ptrs = append(ptrs, p)
	}
	states, err := w.Commit()
	if err == nil {
		err = w.Release(states)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ptrs, states
}

func TestContainerWithoutWhatIsNotWantedKeepsItsSlots(t *testing.T) {
	fs := vfs.NewMem()
	s, _ := recovered(t, fs, Known{Trusted: true})
	ptrs, states := fillContainers(t, s, 600)
	old := states[0]
	if !old.Sealed {
		t.Fatal("the first container is not full")
	}
	want := map[Ptr][]byte{}
	live := func(slot uint32) bool { return slot%5 == 3 || slot/100 == 1 }
	for _, p := range ptrs {
		if p.Container == old.ID {
			b, err := s.Chunk(t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			want[p] = b
		}
	}
	r, err := s.Repack(t.Context(), old.ID, Wanted{Live: live})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Swap(r); err != nil {
		t.Fatal(err)
	}
	if r.State.Slots != old.Slots || r.State.Bytes >= old.Bytes*6/10 {
		t.Fatalf("%+v became %+v", old, r.State)
	}
	check := func(s *Store) {
		t.Helper()
		s.DropCaches()
		for p, b := range want {
			got, err := s.Chunk(t.Context(), p)
			if live(p.Slot) && (err != nil || string(got) != string(b)) {
				t.Fatalf("%s: %v", p, err)
			}
			if !live(p.Slot) && !errs.Is(err, errs.Corrupt) {
				t.Fatalf("%s was collected and reads: %v", p, err)
			}
		}
	}
	check(s)
	// Without its footer the table is made again of the records alone.
	name := path.Join("/c", fileName(ClassData, old.ID, r.State.Gen))
	f, err := fs.OpenRW(name)
	if err != nil {
		t.Fatal(err)
	}
	size, err := f.Size()
	if err == nil {
		err = firstError(f.Truncate(size-1), f.Sync(), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	states[0] = r.State
	again, rec := recovered(t, fs, Known{States: states, Trusted: true})
	if len(rec.Damage) > 0 {
		t.Fatal(rec.Damage)
	}
	check(again)
	// It can be collected once more, also all of it.
	r2, err := again.Repack(t.Context(), old.ID, Wanted{Live: func(uint32) bool { return false }})
	if err != nil {
		t.Fatal(err)
	}
	if r2.State.Slots != old.Slots || r2.State.Raw != 0 {
		t.Fatalf("%+v", r2.State)
	}
}

func TestCondemnedContainersAreNotPointedTo(t *testing.T) {
	s, _ := recovered(t, vfs.NewMem(), Known{Trusted: true})
	e := encodePage(t, s, 9, 1)
	w := s.NewWriter(1)
	p, _, err := w.PutChunk(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	states, err := w.Commit()
	if err == nil {
		err = w.Release(states)
	}
	if err != nil {
		t.Fatal(err)
	}
	near := Ptr{p.Container, p.Slot - 1}
	early := s.NewWriter(2)
	if got, ok := early.Find(t.Context(), e.ID, near); !ok || got != p {
		t.Fatal("a stored chunk was not found")
	}
	if held := s.Condemn([]ContainerID{p.Container}); !held[p.Container] {
		t.Fatal("a writer that found the chunk does not hold its container")
	}
	late := s.NewWriter(3)
	if _, ok := late.Find(t.Context(), e.ID, near); ok {
		t.Fatal("a chunk of a condemned container was found")
	}
	if err := early.Abort(); err != nil {
		t.Fatal(err)
	}
	if held := s.Condemn([]ContainerID{p.Container}); held[p.Container] {
		t.Fatal("a writer that has ended holds a container")
	}
	s.Absolve([]ContainerID{p.Container})
	if _, ok := late.Find(t.Context(), e.ID, near); !ok {
		t.Fatal("a chunk of an absolved container was not found")
	}
}

func TestGoneContainerIsRemovedAfterACrash(t *testing.T) {
	fs := vfs.NewMem()
	s, _ := recovered(t, fs, Known{Trusted: true})
	_, states := fillContainers(t, s, 300)
	gone := states[0]
	states[0] = State{ID: gone.ID, Gone: true}
	for range 2 { // also when it is not there any more
		_, rec := recovered(t, fs, Known{States: states, Trusted: true})
		if len(rec.Cleared) != 1 || len(rec.Damage) > 0 || len(rec.Unknown) > 0 {
			t.Fatalf("%+v", rec)
		}
		if _, err := fs.Stat(path.Join("/c", fileName(ClassData, gone.ID, gone.Gen))); !errs.Is(err, errs.NotFound) {
			t.Fatal("the file is there", err)
		}
	}
}
