package snapshotchain

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"livemount/internal/errs"
	"livemount/internal/gate"
	"livemount/snapshotchain/chunkstore"
)

// ScrubState tells how far scrubbing is.
type ScrubState struct {
	Containers int       // sealed ones
	Bytes      int64     // of them
	Due        int       // that were not read within the age
	DueBytes   int64     //
	Oldest     time.Time // when the one that waits longest was read, or came to be known
}

// scrubbed is when a container was read last, as the generation that it had then.
type scrubbed struct {
	gen uint32
	at  time.Time
}

// loadScrubbed reads when containers were read last. What is lost is read again earlier than it must.
func (s *Store) loadScrubbed() error {
	return s.db.Each([]byte("c"), func(key, val []byte, err error) error {
		if err == nil && len(key) == 9 && len(val) == 12 {
			id := chunkstore.ContainerID(binary.BigEndian.Uint64(key[1:]))
			s.scrubs[id] = scrubbed{binary.BigEndian.Uint32(val[8:]), time.Unix(int64(binary.BigEndian.Uint64(val)), 0)}
		}
		return nil
	})
}

// scrubItem is a container and when it was read last.
type scrubItem struct {
	chunkstore.Sealed
	at time.Time
}

// scrubList lists the sealed containers, the one that waits longest first. Those that were never read get a moment
// within the age before now, each another, so that they do not come due at once.
func (s *Store) scrubList(now time.Time, age time.Duration) []scrubItem {
	var list []scrubItem
	s.scrubMu.Lock()
	defer s.scrubMu.Unlock()
	news := &puts{}
	there := map[chunkstore.ContainerID]bool{}
	for _, c := range s.chunks.AllSealed() {
		there[c.ID] = true
		last, ok := s.scrubs[c.ID]
		if !ok || last.gen != c.Gen || last.at.After(now) {
			last = scrubbed{c.Gen, now.Add(-spread(c.ID, age))}
			s.scrubs[c.ID] = last
			news.add(be64("c", uint64(c.ID)), last.encode())
		}
		list = append(list, scrubItem{c, last.at})
	}
	for id := range s.scrubs {
		if !there[id] {
			delete(s.scrubs, id)
		}
	}
	s.keepScrubs(news)
	slices.SortFunc(list, func(a, b scrubItem) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.ID, b.ID)) })
	return list
}

func (l scrubbed) encode() []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, uint64(l.at.Unix())), l.gen)
}

// keepScrubs makes durable since when containers wait. What is not kept waits longer.
func (s *Store) keepScrubs(news *puts) {
	for len(news.keys) > 0 {
		n := min(len(news.keys), statesAtOnce)
		if err := s.writeSpare(&puts{news.keys[:n], news.vals[:n]}); err != nil {
			s.opts.Log.Warn("times of scrubbing were not kept", "err", err)
			return
		}
		news = &puts{news.keys[n:], news.vals[n:]}
	}
}

// spread returns a part of the age, always the same for a container.
func spread(id chunkstore.ContainerID, age time.Duration) time.Duration {
	h := fnv.New64a()
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(id))) // never fails
	return time.Duration(float64(age) * float64(h.Sum64()>>11) / (1 << 53))
}

// ScrubState tells how far scrubbing is.
func (s *Store) ScrubState(age time.Duration) ScrubState {
	now := s.opts.Clock.Now()
	var st ScrubState
	for _, c := range s.scrubList(now, age) {
		if st.Containers == 0 {
			st.Oldest = c.at
		}
		st.Containers++
		st.Bytes += c.Bytes
		if now.Sub(c.at) >= age {
			st.Due++
			st.DueBytes += c.Bytes
		}
	}
	return st
}

// Scrubbed is what Scrub did.
type Scrubbed struct {
	Containers int
	ReadBytes  int64
	Bad        int // records
}

// Scrub reads all containers that were not read within the age once more, from the disk, and remembers what is bad:
// see Health. It goes on where it was when it is called again. pace is asked before each piece that is read; progress, unless
// it is nil, is told after each container.
func (s *Store) Scrub(ctx context.Context, age time.Duration, pace func(context.Context, int64) error, progress func(Scrubbed)) (Scrubbed, error) {
	var done Scrubbed
	enter := func(ctx context.Context, n int64) (func(), error) {
		if err := pace(ctx, n); err != nil {
			return nil, err
		}
		return s.opts.Gate.Enter(ctx, gate.Scrub)
	}
	began := s.opts.Clock.Now()
	for _, c := range s.scrubList(began, max(age, time.Nanosecond)) {
		if began.Sub(c.at) < age {
			break
		}
		read, bad, err := s.chunks.VerifyContainer(ctx, c.ID, enter)
		done.ReadBytes += read
		done.Bad += len(bad)
		if err == nil {
			err = s.noteScrubbed(c)
		}
		if errs.Is(err, errs.Corrupt) { // the file is missing, or nothing in it can be found
			s.addDamage(fmt.Sprintf("container %s: %v", c.ID, err))
			err = s.noteScrubbed(c)
		}
		if err != nil {
			return done, fmt.Errorf("scrub container %s: %w", c.ID, err)
		}
		done.Containers++
		if progress != nil {
			progress(done)
		}
	}
	return done, nil
}

func (s *Store) noteScrubbed(c scrubItem) error {
	now := scrubbed{c.Gen, s.opts.Clock.Now()}
	s.scrubMu.Lock()
	s.scrubs[c.ID] = now
	s.scrubMu.Unlock()
	p := &puts{}
	p.add(be64("c", uint64(c.ID)), now.encode())
	if err := s.writeSpare(p); err != nil && !errs.Is(err, errs.NoSpace) {
		return err
	}
	return nil
}
