package snapshotchain

import (
	"context"

	"livemount/internal/errs"
)

// Reading metadata whose key is known to exist: what Badger lost or spoiled is read from the journal or
// the map segment instead, so it never becomes a hole or an older version.

// sealOf returns the seal of a point of a lineage.
func (s *Store) sealOf(ctx context.Context, l LineageID, seq Seq) (*seal, error) {
	var sl seal
	raw, err := s.db.Get(keySeal(l, seq))
	if err == nil {
		err = decode(raw, &sl)
	}
	if err == nil {
		return &sl, nil
	}
	healed, herr := s.refold(ctx, func(key []byte) bool { return string(key) == string(keySeal(l, seq)) })
	if herr != nil {
		return nil, herr
	}
	raw, ok := healed[string(keySeal(l, seq))]
	if !ok {
		return nil, errs.New(errs.Corrupt, "seal of lineage %s, point %d: %w", l, seq, asCorrupt(err))
	}
	return &sl, decode(raw, &sl)
}

// asCorrupt is for a key that must exist: not found is corruption.
func asCorrupt(err error) error {
	if errs.Is(err, errs.NotFound) {
		return errs.New(errs.Corrupt, "lost by the metadata store: %v", err)
	}
	return err
}

// refold reads the whole journal again and returns the records that it puts under the wanted keys. They
// are written to Badger again, too.
func (s *Store) refold(ctx context.Context, want func(key []byte) bool) (map[string][]byte, error) {
	s.opts.Log.Warn("metadata is read again from the journal")
	cat, found := newCatalog(), map[string][]byte{}
	points := map[string]digest{}
	cat.hasPoint = func(key []byte, d digest) bool { return points[string(key)] == d }
	_, err := s.chunks.Journal().Read(ctx, 1, func(n uint64, payload []byte) error {
		ch, err := decodeChange(payload)
		if err != nil {
			return nil // reported when the store was opened
		}
		p, err := cat.apply(n, ch)
		if err != nil {
			return nil
		}
		if ch.Seal != nil {
			for i := range ch.Seal.Seals {
				p.add(keySeal(ch.Seal.Seals[i].Lineage, ch.Seal.Seals[i].Seq), mustJSON(&ch.Seal.Seals[i]))
			}
		}
		for i, key := range p.keys {
			if key[0] == 'p' {
				points[string(key)] = entryDigest(key, p.vals[i])
			}
			if want(key) {
				found[string(key)] = p.vals[i]
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return found, s.putAgain(found)
}

func (s *Store) putAgain(found map[string][]byte) error {
	p := &puts{}
	for key, val := range found {
		p.add([]byte(key), val)
	}
	if err := s.writeSpare(p); err != nil {
		s.opts.Log.Warn("metadata was not healed", "err", err)
	}
	return nil
}

// writeSpare writes what the truth holds anyway: not on a disk that is nearly full.
func (s *Store) writeSpare(p *puts) error {
	if err := s.opts.AdmitCommit(); err != nil {
		return err
	}
	return s.write(p)
}

// mapEntry returns a leaf or a directory page that a point added.
func (s *Store) mapEntry(ctx context.Context, kind PartKind, l LineageID, n uint32, seq Seq, check func([]byte) error) error {
	raw, err := s.db.Get(partKey(kind, l, n, seq))
	if err == nil {
		err = check(raw)
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if raw, err = s.fromSegment(ctx, kind, l, n, seq, err); err != nil {
		return err
	}
	s.healEntry(partKey(kind, l, n, seq), raw)
	return check(raw)
}

func (s *Store) healEntry(key, raw []byte) {
	p := &puts{}
	p.add(key, raw)
	if err := s.writeSpare(p); err != nil {
		s.opts.Log.Warn("metadata was not healed", "err", err)
		return
	}
	s.opts.Log.Warn("metadata was healed from its segment", "key", string(key[:1]))
}

// fromSegment finds an entry in the map segment of the point that added it.
func (s *Store) fromSegment(ctx context.Context, kind PartKind, l LineageID, n uint32, seq Seq, cause error) ([]byte, error) {
	sl, err := s.sealOf(ctx, l, seq)
	if err != nil {
		return nil, err
	}
	var found []byte
	if i := sl.part(kind, n); i >= 0 {
		err = s.eachInPart(ctx, sl, sl.Parts[i], func(m uint32, val []byte) error {
			if m == n {
				found = append([]byte{}, val...)
			}
			return nil
		})
	}
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, errs.New(errs.Corrupt, "block map of lineage %s, point %d, entry %d: %w", l, seq, n, asCorrupt(cause))
	}
	return found, nil
}
