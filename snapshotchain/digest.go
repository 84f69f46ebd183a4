package snapshotchain

import (
	"encoding/hex"

	"github.com/zeebo/blake3"

	"livemount/internal/errs"
)

// digest is the exclusive-or of a hash of each entry of a set of Badger records. The record above the
// set holds it, so that an entry that Badger lost or brought back from before is noticed.
type digest [16]byte

func entryDigest(key, val []byte) (d digest) {
	h := blake3.New()
	h.Write(key)
	h.Write([]byte{0})
	h.Write(val)
	var full [32]byte
	h.Sum(full[:0])
	copy(d[:], full[:])
	return d
}

func (d digest) xor(o digest) digest {
	for i := range d {
		d[i] ^= o[i]
	}
	return d
}

// MarshalText implements encoding.TextMarshaler.
func (d digest) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(d[:])), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *digest) UnmarshalText(text []byte) error {
	if n, err := hex.Decode(d[:], text[:min(len(text), 32)]); err != nil || n != 16 || len(text) != 32 {
		return errs.New(errs.Corrupt, "digest %q is not 32 hex digits", text)
	}
	return nil
}
