package chunkstore

import "context"

// lookAhead is how many slots behind the last hit are looked at: what was stored together is mostly found
// together, and that costs no lookup in the index.
const lookAhead = 4

// Find looks for a stored chunk with this id that the Writer may point to: behind near, where the chunk
// before it was found (the zero Ptr for nowhere), then in the index.
func (w *Writer) Find(ctx context.Context, id ChunkID, near Ptr) (Ptr, bool) {
	if p, ok := w.follow(ctx, id, near); ok {
		return p, true
	}
	p, ok := w.s.dedup.get(id)
	if !ok {
		return Ptr{}, false
	}
	c, app, ok := w.mayPoint(p)
	if !ok {
		return Ptr{}, false
	}
	if app != nil {
		return p, app.has(p.Slot, id)
	}
	r, err := w.s.readHeader(ctx, Ptr{c.id, p.Slot})
	return p, err == nil && r.kind == KindChunk && r.id == id
}

// mayPoint reports whether the Writer may point to a record, were it the right one: it is committed or the
// Writer's own, and not known to be bad. app is set while its container is open for appending.
func (w *Writer) mayPoint(p Ptr) (c *container, app *appender, ok bool) {
	if w.s.IsBad(p) {
		return nil, nil, false
	}
	c, err := w.s.container(p.Container)
	if err != nil || c.class != ClassData {
		return nil, nil, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.owner == w.draft {
		return c, c.app, true
	}
	if c.condemned || p.Slot >= c.state.Slots {
		return nil, nil, false
	}
	w.hit(c.id) // under c.mu: whoever condemns it afterwards sees this
	return c, c.app, true
}

func (w *Writer) hit(id ContainerID) {
	w.hitMu.Lock()
	defer w.hitMu.Unlock()
	w.hits[id] = struct{}{}
}

func (w *Writer) follow(ctx context.Context, id ChunkID, near Ptr) (Ptr, bool) {
	if near.Container == 0 {
		return Ptr{}, false
	}
	for p := (Ptr{near.Container, near.Slot + 1}); p.Slot <= near.Slot+lookAhead; p.Slot++ {
		c, app, ok := w.mayPoint(p)
		if !ok {
			continue
		}
		if app != nil {
			ok = app.has(p.Slot, id)
		} else {
			ok = w.s.hasID(ctx, c, p.Slot, id)
		}
		if ok {
			return p, true
		}
	}
	return Ptr{}, false
}

// hasID looks into the ids of a sealed container. False when they cannot be read: then the chunk is stored
// again.
func (s *Store) hasID(ctx context.Context, c *container, slot uint32, id ChunkID) bool {
	ids, err := s.ids.Get(ctx, c.id, func() ([][32]byte, error) {
		f, err := s.files.acquire(ctx, c.path)
		if err != nil {
			return nil, err
		}
		defer f.release()
		_, ids, err := readFooter(f, c.id, true)
		return ids, err
	})
	return err == nil && int(slot) < len(ids) && ids[slot] == id
}
