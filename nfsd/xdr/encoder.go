package xdr

import (
	"encoding/binary"
	"slices"
)

// Encoder appends to B. The zero value begins an empty message.
type Encoder struct{ B []byte }

// Uint32 appends an unsigned integer, section 4.2.
func (e *Encoder) Uint32(v uint32) { e.B = binary.BigEndian.AppendUint32(e.B, v) }

// Uint64 appends an unsigned hyper integer, section 4.5.
func (e *Encoder) Uint64(v uint64) { e.B = binary.BigEndian.AppendUint64(e.B, v) }

// Bool appends a boolean, section 4.4.
func (e *Encoder) Bool(v bool) {
	if v {
		e.Uint32(1)
		return
	}
	e.Uint32(0)
}

// Fixed appends bytes without their length, filled up with zeroes, section 4.9.
func (e *Encoder) Fixed(b []byte) {
	e.B = append(e.B, b...)
	e.pad(len(b))
}

// Opaque appends the length of b and b, section 4.10.
func (e *Encoder) Opaque(b []byte) {
	e.Uint32(uint32(len(b)))
	e.Fixed(b)
}

// String appends a string, section 4.11.
func (e *Encoder) String(s string) {
	e.Uint32(uint32(len(s)))
	e.B = append(e.B, s...)
	e.pad(len(s))
}

// Reserve appends the body of n opaque bytes with its padding of zeroes and returns the place of the body, for
// a caller that reads from a disk right into the message. The body holds whatever was in memory: the caller
// must fill all of it or cut B back. The place is valid until B grows beyond its capacity.
func (e *Encoder) Reserve(n int) []byte {
	start := len(e.B)
	e.B = slices.Grow(e.B, n+padding(n))[:start+n]
	e.pad(n)
	return e.B[start : start+n : start+n]
}

func (e *Encoder) pad(n int) {
	for range padding(n) {
		e.B = append(e.B, 0)
	}
}
