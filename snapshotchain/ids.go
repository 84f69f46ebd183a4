package snapshotchain

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"strconv"

	"livemount/internal/errs"
)

// ID is an identity of 64 bits, written as 16 lower-case hex digits. Its parameter keeps identities of
// different things apart.
type ID[Of any] uint64

type (
	ofVM      struct{}
	ofPoint   struct{}
	ofLineage struct{}
)

// VMID names a VM, PointID a point in time, LineageID the history of one disk.
type (
	VMID      = ID[ofVM]
	PointID   = ID[ofPoint]
	LineageID = ID[ofLineage]
)

// Seq numbers the points of a lineage from 1; 0 is none.
type Seq uint32

// NewID returns a random identity that is not zero.
func NewID[Of any]() ID[Of] {
	var b [8]byte
	for {
		rand.Read(b[:]) // never fails: crypto/rand aborts the program instead
		if id := binary.BigEndian.Uint64(b[:]); id != 0 {
			return ID[Of](id)
		}
	}
}

func (id ID[Of]) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// MarshalText implements encoding.TextMarshaler.
func (id ID[Of]) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ID[Of]) UnmarshalText(text []byte) error {
	v, err := strconv.ParseUint(string(text), 16, 64)
	if err != nil || len(text) != 16 {
		return errs.New(errs.Invalid, "%q is not an id of 16 hex digits", text)
	}
	*id = ID[Of](v)
	return nil
}
