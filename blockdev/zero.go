package blockdev

import "bytes"

// zeroes is never written.
var zeroes [64 << 10]byte

// IsZero reports whether all bytes of p are zero.
func IsZero(p []byte) bool {
	for len(p) > len(zeroes) {
		if !bytes.Equal(p[:len(zeroes)], zeroes[:]) {
			return false
		}
		p = p[len(zeroes):]
	}
	return bytes.Equal(p, zeroes[:len(p)])
}
