package snapshotchain

import "livemount/snapshotchain/chunkstore"

// Hasher returns a new Hasher with the store's keys, for one goroutine.
func (s *Store) Hasher() *chunkstore.Hasher { return s.chunks.Hasher() }

// Encode compresses a chunk; see chunkstore.Store.Encode.
func (s *Store) Encode(id chunkstore.ChunkID, raw []byte, hashes []chunkstore.PageHash, buf []byte) (chunkstore.Encoded, error) {
	return s.chunks.Encode(id, raw, hashes, buf)
}

// StoredBytes returns what the draft has appended to containers so far.
func (d *Draft) StoredBytes() int64 { return d.writer.Stats().StoredBytes }
