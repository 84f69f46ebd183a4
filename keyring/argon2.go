package keyring

import (
	"encoding/binary"

	"golang.org/x/crypto/argon2"

	"livemount/internal/errs"
)

// Argon2 is the cost of Argon2id (RFC 9106) for one passphrase. Zero means DefaultArgon2.
type Argon2 struct {
	Time      uint32 `json:"time"`       // passes over the memory
	MemoryKiB uint32 `json:"memory_kib"` // KiB
	Threads   uint8  `json:"threads"`    // lanes
}

// DefaultArgon2 is the second recommendation of RFC 9106, section 4, with four times its memory: it is
// paid once for each slot that is tried when a store is opened (measured in docs/decisions/0019-keys.md).
func DefaultArgon2() Argon2 { return Argon2{Time: 3, MemoryKiB: 256 << 10, Threads: 4} }

// Bounds of what a document may ask for; more is taken for damage.
const (
	maxArgonTime    = 64
	maxArgonMemory  = 4 << 20 // KiB: 4 GiB
	maxArgonThreads = 16
	argonLane       = 8 // KiB at least for each lane (RFC 9106, section 3.1)
)

// Bounds of what a new slot may have: the least that OWASP's Password Storage Cheat Sheet allows.
const (
	minArgonTime   = 2
	minArgonMemory = 19 << 10 // KiB
)

// check says whether a derivation with these costs may be run at all.
func (a Argon2) check() error {
	switch {
	case a.Time < 1 || a.Time > maxArgonTime:
		return errs.New(errs.Invalid, "argon2id: time %d, not 1 to %d", a.Time, maxArgonTime)
	case a.Threads < 1 || a.Threads > maxArgonThreads:
		return errs.New(errs.Invalid, "argon2id: %d threads, not 1 to %d", a.Threads, maxArgonThreads)
	case a.MemoryKiB < argonLane*uint32(a.Threads) || a.MemoryKiB > maxArgonMemory:
		return errs.New(errs.Invalid, "argon2id: %d KiB of memory, not %d to %d", a.MemoryKiB, argonLane*uint32(a.Threads), maxArgonMemory)
	}
	return nil
}

// checkNew says whether a new slot may have these costs.
func (a Argon2) checkNew() error {
	if err := a.check(); err != nil {
		return err
	}
	if a.Time < minArgonTime || a.MemoryKiB < minArgonMemory {
		return errs.New(errs.Invalid, "argon2id: time %d and %d KiB of memory, less than %d and %d",
			a.Time, a.MemoryKiB, minArgonTime, minArgonMemory)
	}
	return nil
}

func (a Argon2) derive(passphrase, salt []byte) []byte {
	return argon2.IDKey(passphrase, salt, a.Time, a.MemoryKiB, a.Threads, keyBytes)
}

// encode is what goes into associated data; nil (a key file) is nothing.
func (a *Argon2) encode() []byte {
	if a == nil {
		return nil
	}
	be := binary.BigEndian
	return append(be.AppendUint32(be.AppendUint32(nil, a.Time), a.MemoryKiB), a.Threads)
}
