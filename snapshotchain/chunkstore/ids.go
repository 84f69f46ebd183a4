package chunkstore

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/zeebo/blake3"
)

// PageSize is the size of a page in bytes; chunks start and end on pages.
const PageSize = 4096

// MaxChunkPages is the largest chunk, in pages (256 KiB).
const MaxChunkPages = 64

// StoreID names a store; it is part of every checksum seed and of the hash keys.
type StoreID [16]byte

func (id StoreID) String() string { return hex.EncodeToString(id[:]) }

// ChunkID is the keyed BLAKE3 of the page hashes of a chunk, in order.
type ChunkID [32]byte

func (id ChunkID) String() string { return hex.EncodeToString(id[:]) }

// PageHash is the first 16 bytes of the keyed BLAKE3 of a page. The zero PageHash stands for a page of
// zeroes and is never computed.
type PageHash [16]byte

// ContainerID names a container. It is never used again; 0 is none.
type ContainerID uint64

func (id ContainerID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// Ptr points to a record: its container and its slot there.
type Ptr struct {
	Container ContainerID `json:"container"`
	Slot      uint32      `json:"slot"`
}

func (p Ptr) String() string { return fmt.Sprintf("%s/%d", p.Container, p.Slot) }

// DraftID names the writer of records that may not have been committed yet; 0 is none.
type DraftID uint64

func (id DraftID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// Hasher computes page hashes and chunk ids with the store's key. It is not safe for concurrent use.
type Hasher struct {
	page, chunk, term *blake3.Hasher
}

// NewHasher derives the keys from the store's secret: the store id, or the repository key when the
// store is encrypted.
func NewHasher(secret []byte) *Hasher {
	return &Hasher{
		page:  keyed("livemount 2026 page hash", secret),
		chunk: keyed("livemount 2026 chunk id", secret),
		term:  keyed("livemount 2026 disk sum term", secret),
	}
}

func keyed(purpose string, secret []byte) *blake3.Hasher {
	var key [32]byte
	blake3.DeriveKey(purpose, secret, key[:])
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic("blake3 refused a 32-byte key: " + err.Error()) // cannot happen: the length is fixed
	}
	return h
}

func sum32(h *blake3.Hasher) (out [32]byte) {
	h.Sum(out[:0])
	return out
}

// Page returns the hash of a page that is not all zeroes.
func (h *Hasher) Page(p []byte) PageHash {
	h.page.Reset()
	h.page.Write(p)
	full := sum32(h.page)
	return PageHash(full[:16])
}

// Chunk returns the id of the chunk whose pages have these hashes.
func (h *Hasher) Chunk(pages []PageHash) ChunkID {
	h.chunk.Reset()
	for i := range pages {
		h.chunk.Write(pages[i][:])
	}
	return sum32(h.chunk)
}

// Term returns what a page adds to its disk's Sum; a page of zeroes adds nothing.
func (h *Hasher) Term(page int64, hash PageHash) Sum {
	if hash == (PageHash{}) {
		return Sum{}
	}
	var in [24]byte
	binary.LittleEndian.PutUint64(in[:8], uint64(page))
	copy(in[8:], hash[:])
	h.term.Reset()
	h.term.Write(in[:])
	full := sum32(h.term)
	var s Sum
	for i := range s {
		s[i] = binary.LittleEndian.Uint64(full[8*i:])
	}
	return s
}
