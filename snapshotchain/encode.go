package snapshotchain

import "livemount/snapshotchain/chunkstore"

// Hasher returns a new Hasher with the store's keys, for one goroutine.
func (s *Store) Hasher() *chunkstore.Hasher { return s.chunks.Hasher() }

// Level says how much work goes into compression; ParseLevel reads its name.
type Level = chunkstore.Level

// ParseLevel reads "fast", "default", "best" or "", which is the default. Anything else is Invalid.
func ParseLevel(name string) (Level, error) { return chunkstore.ParseLevel(name) }

// Encode compresses a chunk; see chunkstore.Store.Encode.
func (s *Store) Encode(level chunkstore.Level, e chunkstore.Encoded, raw, buf []byte) (chunkstore.Encoded, error) {
	return s.chunks.Encode(level, e, raw, buf)
}

// StoredBytes returns what the draft has appended to containers so far.
func (d *Draft) StoredBytes() int64 { return d.writer.Stats().StoredBytes }
