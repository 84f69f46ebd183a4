package overlay

import (
	"encoding/binary"

	"livemount/internal/errs"
	"livemount/keyring"
)

// form is how the files of a log are laid out: it is the number of bytes that sealing adds to a unit of payload. A log is
// sealed as a whole or not at all.
//
// The units of a payload are its blocks; those of a mirror record are its two copies, or one bad byte would cost both.
// Each is sealed (AES-256-GCM, NIST SP 800-38D) under the key of its segment, with the place where it begins in the segment
// as nonce, and bound to the mount, the segment and what its record does. A place is sealed once: after a failed write the segment is left, as
// it is after each open, and a new segment has a new key.
type form int64

const (
	plain  form = 0
	sealed form = keyring.Overhead
)

func (o Options) form() form {
	if o.Keys == nil {
		return plain
	}
	return sealed
}

// first is where the records of a segment begin. A sealed segment has its header twice, because without it all the rest is
// lost.
func (f form) first() int64 {
	if f == plain {
		return segmentHeaderBytes
	}
	return 2 * segmentHeaderBytes
}

// unit is how many bytes of payload are sealed as one.
func unit(e essentials) int64 {
	if e.kind == kindMirror {
		return max(1, e.length/2)
	}
	return blockBytes
}

func units(e essentials) int64 { return (e.payload() + unit(e) - 1) / unit(e) }

// stored is how many bytes the payload takes in its record.
func (f form) stored(e essentials) int64 {
	if f == plain {
		return e.payload()
	}
	return e.payload() + int64(f)*units(e)
}

// pitch is how many stored bytes are under one checksum.
func (f form) pitch(e essentials) int64 {
	if e.kind == kindMirror {
		return blockBytes + 2*int64(f)
	}
	return blockBytes + int64(f)
}

// bytes is the room of a record in its segment.
func (f form) bytes(e essentials) int64 { return e.payloadOffset() + align8(f.stored(e)) }

// dataBytes is the room that a data record of n payload bytes takes.
func (f form) dataBytes(n int64) int64 { return f.bytes(essentials{kind: kindData, length: n}) }

const bindingBytes = 49

// binding writes what is authenticated along with each unit of a record: whose it is, and what the record does.
func (s *segment) binding(b []byte, e essentials) []byte {
	le := binary.LittleEndian
	copy(b, s.mount[:])
	le.PutUint64(b[16:], s.number)
	b[24] = byte(e.kind)
	le.PutUint64(b[25:], e.node)
	le.PutUint64(b[33:], uint64(e.off))
	le.PutUint64(b[41:], uint64(e.length))
	return b[:bindingBytes]
}

// sealUnits seals the payload that lies at the end of stored, unit by unit, to its beginning. at is the place of stored in
// the segment.
func sealUnits(k *keyring.File, e essentials, stored, bound []byte, at int64) {
	rest := stored[int64(len(stored))-e.payload():]
	for len(rest) > 0 {
		n := min(unit(e), int64(len(rest)))
		to := stored[:n+int64(sealed)]
		copy(to, rest[:n])
		rest = rest[n:]
		k.Seal(to[:0], to[:n], bound, uint64(at))
		stored, at = stored[len(to):], at+int64(len(to))
	}
}

// unseal returns the payload of a record at off, of which stored was read, and how many of its units cannot be had: they
// are zeroes.
func (s *segment) unseal(off int64, e essentials, stored []byte) (payload []byte, bad int64) {
	if s.form == plain {
		return stored, 0
	}
	var b [bindingBytes]byte
	bound := s.binding(b[:], e)
	payload = make([]byte, 0, e.payload())
	at := off + e.payloadOffset()
	for left := e.payload(); left > 0; {
		n := min(unit(e), left)
		from := stored[:n+int64(sealed)]
		if _, err := s.openUnit(payload, from, bound, at); err != nil {
			bad++
			clear(payload[len(payload):][:n])
		}
		payload = payload[:int64(len(payload))+n]
		stored, at, left = stored[len(from):], at+int64(len(from)), left-n
	}
	return payload, bad
}

func (s *segment) openUnit(dst, from, bound []byte, at int64) ([]byte, error) {
	if s.key == nil {
		return nil, errs.New(errs.Corrupt, "both headers of segment %s are bad, and with them its key", s.name)
	}
	return s.key.Open(dst, from, bound, uint64(at))
}

// newKey makes the key of a new file; nil in a plain log.
func (l *Log) newKey() (*keyring.File, error) {
	if l.form == plain {
		return nil, nil
	}
	return l.opts.Keys.NewFile()
}

// admitKey says whether a file with this key id belongs into the log. In an encrypted store a plain file is a
// forgery.
func (f form) admitKey(file string, keyID uint32) error {
	switch {
	case f == plain && keyID != 0:
		return errs.New(errs.Denied, "%s is encrypted, and the log was opened without keys", file)
	case f == sealed && keyID == 0:
		return errs.New(errs.Denied, "%s is not encrypted, and everything in this log must be", file)
	}
	return nil
}
