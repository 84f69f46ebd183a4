// Package xdr reads and writes the external data representation of RFC 4506, as far as ONC RPC and NFS
// version 3 use it: big-endian words of four bytes, and bytes that are filled up to four.
//
// A Decoder never allocates and never copies: what it returns are parts of the message, valid as long as the
// message is. A length field is compared with its limit and with what remains before it is used, so a message
// that lies about a length costs nothing. The first mistake stays: all later calls return zero values, so a
// caller decodes all its fields and asks Err once.
//
// An Encoder appends to a slice that its owner provides. It must not be given lengths over 4 GiB.
package xdr

import (
	"encoding/binary"

	"livemount/internal/errs"
)

// Decoder reads a message from its beginning. The zero value is an empty message.
type Decoder struct {
	rest []byte
	bad  string // the first mistake; a text and not an error, so that hostile messages make no garbage
}

// NewDecoder reads b. It keeps b and never changes it.
func NewDecoder(b []byte) Decoder { return Decoder{rest: b} }

const (
	badShort   = "message ends early"
	badBool    = "boolean is neither 0 nor 1"
	badLength  = "length is over its limit"
	badTrailer = "bytes after the end"
)

func (d *Decoder) fail(what string) {
	if d.bad == "" {
		d.bad = what
	}
	d.rest = nil
}

// take returns the next n bytes, or nil after a mistake.
func (d *Decoder) take(n int) []byte {
	if n < 0 || n > len(d.rest) {
		d.fail(badShort)
		return nil
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b
}

// Uint32 reads an unsigned integer, section 4.2.
func (d *Decoder) Uint32() uint32 {
	if len(d.rest) < 4 {
		d.fail(badShort)
		return 0
	}
	v := binary.BigEndian.Uint32(d.rest)
	d.rest = d.rest[4:]
	return v
}

// Uint64 reads an unsigned hyper integer, section 4.5.
func (d *Decoder) Uint64() uint64 {
	if len(d.rest) < 8 {
		d.fail(badShort)
		return 0
	}
	v := binary.BigEndian.Uint64(d.rest)
	d.rest = d.rest[8:]
	return v
}

// Bool reads a boolean, section 4.4. Only 0 and 1 are valid.
func (d *Decoder) Bool() bool {
	v := d.Uint32()
	if v > 1 {
		d.fail(badBool)
		return false
	}
	return v == 1
}

// Fixed reads n bytes of opaque data and their padding, section 4.9. The padding must be there; its value is
// not looked at, because clients exist that send what they had in memory.
func (d *Decoder) Fixed(n int) []byte {
	b := d.take(n)
	d.take(padding(n))
	if d.bad != "" {
		return nil
	}
	return b
}

// Opaque reads opaque data of variable length, at most max bytes, section 4.10.
func (d *Decoder) Opaque(max int) []byte {
	n := d.Uint32()
	if uint64(n) > uint64(max) {
		d.fail(badLength)
		return nil
	}
	return d.Fixed(int(n))
}

// String reads a string of at most max bytes, section 4.11. It is a copy; its bytes are not checked.
func (d *Decoder) String(max int) string { return string(d.Opaque(max)) }

// Rest takes all that remains.
func (d *Decoder) Rest() []byte { return d.take(len(d.rest)) }

// Len is the number of bytes that remain. After a mistake it is 0.
func (d *Decoder) Len() int { return len(d.rest) }

// Err is the first mistake, of kind Invalid, or nil.
func (d *Decoder) Err() error {
	if d.bad == "" {
		return nil
	}
	return errs.New(errs.Invalid, "decode XDR: %s", d.bad)
}

// OK is Err() == nil without making an error.
func (d *Decoder) OK() bool { return d.bad == "" }

// Done is Err, and an error as well when bytes remain.
func (d *Decoder) Done() error {
	if len(d.rest) > 0 {
		d.fail(badTrailer)
	}
	return d.Err()
}

// padding is how many bytes fill n up to a multiple of four.
func padding(n int) int { return -n & 3 }
