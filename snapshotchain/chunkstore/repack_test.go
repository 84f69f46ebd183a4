package chunkstore

import (
	"errors"
	"testing"
	"time"

	"livemount/internal/clock"
	"livemount/internal/vfs"
)

func TestAFailedRepackDoesNotKeepTheNextAway(t *testing.T) {
	fail := false
	fs := &vfs.Faulty{FS: vfs.NewMem(), Fail: func(op vfs.Op, name string) error {
		if fail && op == vfs.OpSyncDir {
			fail = false
			return errors.New("input/output error")
		}
		return nil
	}}
	s, err := Open(Options{FS: fs, Dir: "/c", Clock: &clock.Fixed{T: time.Unix(1_800_000_000, 0)}, ContainerBytes: 1 << 16})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recover(t.Context(), Known{Trusted: true}); err != nil {
		t.Fatal(err)
	}
	w := s.NewWriter(7)
	for i := range 40 {
		raw := make([]byte, 4*PageSize)
		for j := range raw {
			raw[j] = byte(j*7 + i*j>>5)
		}
		e, err := s.Encode(LevelFast, Encoded{ID: ChunkID{byte(i), 1}, Hashes: make([]PageHash, 4)}, raw, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := w.PutChunk(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	states, err := w.Commit()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Release(states); err != nil {
		t.Fatal(err)
	}
	for _, st := range states {
		if !st.Sealed || st.Class != ClassData {
			continue
		}
		fail = true
		if _, err := s.Repack(t.Context(), st.ID, Wanted{}); err == nil {
			t.Error("the first did not fail")
		}
		if _, err := s.Repack(t.Context(), st.ID, Wanted{}); err != nil {
			t.Errorf("second: %v", err)
		}
		return
	}
	t.Fatal("nothing sealed")
}
