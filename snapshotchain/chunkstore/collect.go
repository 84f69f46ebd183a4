package chunkstore

import (
	"context"
	"errors"
	"slices"

	"livemount/internal/errs"
)

// Condemn keeps everybody from pointing into containers from now on, and returns those of them that a Writer which
// has not ended may point into already.
func (s *Store) Condemn(ids []ContainerID) map[ContainerID]bool {
	s.setCondemned(ids, true)
	held := map[ContainerID]bool{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.writers {
		w.hitMu.Lock()
		for id := range w.hits {
			held[id] = true
		}
		w.hitMu.Unlock()
	}
	return held
}

// Absolve takes back what Condemn did.
func (s *Store) Absolve(ids []ContainerID) { s.setCondemned(ids, false) }

func (s *Store) setCondemned(ids []ContainerID, condemned bool) {
	for _, id := range ids {
		c, err := s.container(id)
		if err != nil {
			continue // it is gone
		}
		c.mu.Lock()
		c.condemned = condemned
		c.mu.Unlock()
	}
}

// Usage is what of a sealed container is in use, in bytes of its records.
type Usage struct {
	Live, Total int64
}

// Usage returns how much of a sealed container live wants. Corrupt when its table cannot be read.
func (s *Store) Usage(ctx context.Context, id ContainerID, live func(slot uint32) bool) (Usage, error) {
	var u Usage
	err := s.EachSlot(ctx, id, func(n uint32, bytes int64) {
		u.Total += bytes
		if live(n) {
			u.Live += bytes
		}
	})
	return u, err
}

// EachSlot calls fn with the stored bytes of each record of a container.
func (s *Store) EachSlot(ctx context.Context, id ContainerID, fn func(slot uint32, bytes int64)) error {
	c, err := s.container(id)
	if err != nil {
		return err
	}
	slots, err := s.slotsNow(ctx, c)
	if err != nil {
		return err
	}
	for n := range slots {
		if slots[n].len > 0 {
			fn(uint32(n), int64(slots[n].len))
		}
	}
	return nil
}

// slotsNow returns the slots of a container, also of one that is appended to.
func (s *Store) slotsNow(ctx context.Context, c *container) ([]slot, error) {
	c.mu.Lock()
	app := c.app
	c.mu.Unlock()
	if app == nil {
		return s.slots(ctx, c)
	}
	app.mu.Lock()
	defer app.mu.Unlock()
	return slices.Clone(app.slots), nil
}

// IsFreed reports whether a record was collected: its slot holds nothing.
func (s *Store) IsFreed(ctx context.Context, p Ptr) bool {
	c, err := s.container(p.Container)
	if err != nil {
		return false
	}
	c.mu.Lock()
	app := c.app
	c.mu.Unlock()
	if app != nil { // it has no table yet, and nothing of it was collected
		return false
	}
	slots, err := s.slots(ctx, c)
	return err == nil && int(p.Slot) < len(slots) && slots[p.Slot].kind == KindFreed
}

// Discard removes the files of containers that nobody points to, which was recorded durably. Those that could not be
// removed are removed when the store is opened again.
func (s *Store) Discard(ctx context.Context, ids []ContainerID) error {
	var list []error
	for _, id := range ids {
		c, err := s.container(id)
		if err != nil {
			continue
		}
		s.forgetIDs(ctx, c)
		list = append(list, s.clear(id))
	}
	return errors.Join(append(list, s.syncNames())...)
}

// forgetIDs removes the chunks of a container from the dedup index.
func (s *Store) forgetIDs(ctx context.Context, c *container) {
	ids, n, err := s.idsOf(ctx, c)
	if err != nil || c.class != ClassData {
		return
	}
	gone := map[ChunkID]Ptr{}
	for i := range min(len(ids), int(n)) {
		gone[ids[i]] = Ptr{c.id, uint32(i)}
	}
	s.dedup.forget(gone)
}

// clear removes the file of a container, if it is there.
func (s *Store) clear(id ContainerID) error {
	s.mu.Lock()
	c := s.containers[id]
	delete(s.containers, id)
	s.mu.Unlock()
	if c == nil {
		return nil
	}
	s.ids.Remove(id)
	if err := s.removeFile(c); err != nil && !errs.Is(err, errs.NotFound) {
		return err
	}
	return nil
}
