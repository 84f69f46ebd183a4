package snapshotchain

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"livemount/internal/errs"
	"livemount/internal/gate"
	"livemount/snapshotchain/chunkstore"
)

// Unpacked returns how many bytes of sealed containers were stored with LevelFast and are to be compressed
// better by Pack.
func (s *Store) Unpacked() (n int64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, st := range s.cat.containers {
		if st.Sealed && st.Fast {
			n += st.Bytes
		}
	}
	return n
}

// Pack compresses what LevelFast stored as LevelDefault would have, one container after the other, until
// there is none left or ctx ends. Pointers stay what they are. One with a bad record stays as it is. It
// returns the bytes that came free.
func (s *Store) Pack(ctx context.Context) (freed int64, err error) {
	if s.distrusted {
		return 0, nil
	}
	if err := s.packing.take(ctx); err != nil {
		return 0, err
	}
	defer s.packing.leave()
	for _, id := range s.unpacked() {
		if err := ctx.Err(); err != nil {
			return freed, err
		}
		n, err := s.packOne(ctx, id)
		if errs.Is(err, errs.NoSpace) || errs.Is(err, errs.Canceled) || s.writable() != nil {
			return freed, err
		}
		if err != nil {
			s.opts.Log.Error("container was not packed", "container", id, "err", err)
		}
		freed += n
	}
	return freed, nil
}

func (s *Store) unpacked() []chunkstore.ContainerID {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var list []chunkstore.ContainerID
	for id, st := range s.cat.containers {
		if st.Sealed && st.Fast {
			list = append(list, id)
		}
	}
	slices.SortFunc(list, func(a, b chunkstore.ContainerID) int { return cmp.Compare(a, b) })
	return list
}

// enter waits for a slot of the class.
func (s *Store) enter(c gate.Class) func(context.Context) (func(), error) {
	return func(ctx context.Context) (func(), error) { return s.opts.Gate.Enter(ctx, c) }
}

// packOne writes a container anew, records that, and lets the old file go.
func (s *Store) packOne(ctx context.Context, id chunkstore.ContainerID) (int64, error) {
	return s.writeAnew(ctx, id, chunkstore.Wanted{})
}

func (s *Store) writeAnew(ctx context.Context, id chunkstore.ContainerID, want chunkstore.Wanted) (int64, error) {
	want.Enter = s.enter(gate.Collect)
	r, err := s.chunks.Repack(ctx, id, want)
	if err != nil {
		return 0, err
	}
	freed := r.Old.Bytes - r.State.Bytes
	if _, err := s.record(ctx, &change{Pack: &packChange{State: r.State, Freed: freed}}); err != nil {
		if s.writable() == nil { // the journal refused: the old file stays
			err = errors.Join(err, s.chunks.Drop(r))
		}
		return 0, err
	}
	return freed, s.chunks.Swap(r)
}
