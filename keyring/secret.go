package keyring

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"

	"livemount/internal/errs"
)

// Kind says what opens a slot; the strings are stored.
type Kind string

// The kinds of slots.
const (
	KindPassphrase Kind = "passphrase"
	KindKeyFile    Kind = "keyfile"
)

const (
	maxPassphrase   = 4096    // bytes
	minKeyFile      = 32      // bytes
	maxKeyFile      = 1 << 20 // bytes
	minKeyFileBytes = 8       // different byte values; 64 random hex digits have fewer once in 10^19 files
	minKeyFileHex   = 64      // digits, when there is nothing else: 256 bits
)

// Secret is what is kept outside the store and opens it. However it is printed, only its kind shows.
type Secret struct {
	kind    Kind
	content []byte
}

// Passphrase takes a passphrase byte for byte, in whatever encoding and Unicode normal form it was typed.
// One that is empty or longer than 4096 bytes is Invalid. The bytes are copied.
func Passphrase(b []byte) (Secret, error) {
	if len(b) == 0 {
		return Secret{}, errs.WithTry(errs.New(errs.Invalid, "passphrase is empty"), "give a passphrase, or use a key file")
	}
	if len(b) > maxPassphrase {
		return Secret{}, errs.WithTry(errs.New(errs.Invalid, "passphrase of %d bytes, more than %d", len(b), maxPassphrase),
			"use it as a key file")
	}
	return Secret{KindPassphrase, bytes.Clone(b)}, nil
}

// PassphraseLine is Passphrase for what was read from a file or from standard input: one newline at the
// end (LF or CR LF) does not belong to it, anything else does.
func PassphraseLine(b []byte) (Secret, error) { return Passphrase(withoutNewline(b)) }

// KeyFile takes the content of a key file. One newline at the end does not count, so that a copy that
// lost or gained it opens the same slot. What cannot hold 256 random bits is Invalid: less than 32 bytes,
// less than 64 hex digits, or fewer than 8 different bytes. The bytes are copied.
func KeyFile(content []byte) (Secret, error) {
	if err := weakness(content); err != nil {
		return Secret{}, errs.WithTry(err, "make a key file of random bytes: head -c 32 /dev/urandom > FILE")
	}
	return Secret{KindKeyFile, bytes.Clone(withoutNewline(content))}, nil
}

// NewKeyFile returns the content of a new key file: 64 hex digits and a newline.
func NewKeyFile() []byte {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return append(hex.AppendEncode(nil, b[:]), '\n')
}

// Kind says which slots the secret can open.
func (s Secret) Kind() Kind { return s.kind }

// Wipe overwrites the secret, also in copies of the Secret. Best effort: the runtime may have moved it.
func (s Secret) Wipe() { clear(s.content) }

// Format prints the kind alone, for all verbs.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, "secret ("+string(s.kind)+")") }

func withoutNewline(b []byte) []byte {
	if line, ok := bytes.CutSuffix(b, []byte("\n")); ok {
		return bytes.TrimSuffix(line, []byte("\r"))
	}
	return b
}

func weakness(content []byte) error {
	if len(content) < minKeyFile {
		return errs.New(errs.Invalid, "key file of %d bytes, less than %d", len(content), minKeyFile)
	}
	if len(content) > maxKeyFile {
		return errs.New(errs.Invalid, "key file of %d bytes, more than %d", len(content), maxKeyFile)
	}
	b := withoutNewline(content)
	if n := different(b); n < minKeyFileBytes {
		return errs.New(errs.Invalid, "key file is too regular: %d different bytes, less than %d", n, minKeyFileBytes)
	}
	if len(b) < minKeyFileHex && isHex(b) {
		return errs.New(errs.Invalid, "key file of %d hex digits, less than %d", len(b), minKeyFileHex)
	}
	return nil
}

func different(b []byte) (n int) {
	var seen [256]bool
	for _, c := range b {
		if !seen[c] {
			n++
		}
		seen[c] = true
	}
	return n
}

func isHex(b []byte) bool {
	return len(bytes.Trim(b, "0123456789abcdefABCDEF")) == 0
}
