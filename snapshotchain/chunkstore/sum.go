package chunkstore

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/bits"
)

// Sum is the root hash of a disk's content: the sum modulo 2^256 of a keyed hash of (page number, page
// hash) over all pages that are not zero (AdHash: Bellare and Micciancio, "A New Paradigm for
// Collision-Free Hashing", 1997). An increment updates it from the changed pages alone, and it does not
// depend on how the disk was cut into chunks. Limbs are little-endian.
type Sum [4]uint64

// Add returns s + t.
func (s Sum) Add(t Sum) Sum {
	var c uint64
	for i := range s {
		s[i], c = bits.Add64(s[i], t[i], c)
	}
	return s
}

// Sub returns s - t.
func (s Sum) Sub(t Sum) Sum {
	var b uint64
	for i := range s {
		s[i], b = bits.Sub64(s[i], t[i], b)
	}
	return s
}

// Bytes returns the 32 bytes of the sum, little-endian.
func (s Sum) Bytes() []byte {
	out := make([]byte, 0, 32)
	for _, limb := range s {
		out = binary.LittleEndian.AppendUint64(out, limb)
	}
	return out
}

func (s Sum) String() string { return hex.EncodeToString(s.Bytes()) }

// MarshalText implements encoding.TextMarshaler.
func (s Sum) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Sum) UnmarshalText(text []byte) error {
	var raw [32]byte
	if len(text) != 64 {
		return fmt.Errorf("sum of %d characters, want 64", len(text))
	}
	if _, err := hex.Decode(raw[:], text); err != nil {
		return err
	}
	for i := range s {
		s[i] = binary.LittleEndian.Uint64(raw[8*i:])
	}
	return nil
}
