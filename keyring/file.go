package keyring

import (
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"sync"

	"livemount/internal/errs"
)

// Overhead is how many bytes longer a sealed record is: the tag of AES-GCM.
const Overhead = gcmTag

// File is the cipher of one file: AES-256-GCM (NIST SP 800-38D) under a key of its own. It may be used
// concurrently and does not allocate, but for dst.
//
// The nonce is the record's number in the file, 96 bits big-endian. A number must be sealed once: with
// two plaintexts under one number both can be read, and forged. So a record that could not be written is
// written again as the same bytes, or under another number, or into a new file.
type File struct {
	keyID  uint32
	salt   [32]byte
	aead   cipher.AEAD
	nonces sync.Pool // of *[nonceBytes]byte: a nonce on the stack would escape through the interface
}

func newFile(keyID uint32, salt [32]byte, k key) *File {
	f := &File{keyID: keyID, salt: salt, aead: newGCM(&k)}
	f.nonces.New = func() any { return new([nonceBytes]byte) }
	return f
}

// KeyID is the epoch, for the header of the file.
func (f *File) KeyID() uint32 { return f.keyID }

// Salt is for the header of the file.
func (f *File) Salt() [32]byte { return f.salt }

// Overhead is the constant Overhead.
func (f *File) Overhead() int { return Overhead }

// Seal appends the encrypted plaintext and its tag to dst. aad is authenticated with it and must be given
// to Open as well. dst may be plaintext[:0]; other overlaps are not allowed.
func (f *File) Seal(dst, plaintext, aad []byte, nonce uint64) []byte {
	n := f.nonce(nonce)
	dst = f.aead.Seal(dst, n[:], plaintext, aad)
	f.nonces.Put(n)
	return dst
}

// Open appends what was sealed to dst. Corrupt when bytes, aad, nonce or key are not those of Seal. dst
// may be ciphertext[:0]; other overlaps are not allowed.
func (f *File) Open(dst, ciphertext, aad []byte, nonce uint64) ([]byte, error) {
	n := f.nonce(nonce)
	dst, err := f.aead.Open(dst, n[:], ciphertext, aad)
	f.nonces.Put(n)
	if err != nil {
		return nil, errs.New(errs.Corrupt, "record %d: authentication failed with the key of epoch %d", nonce, f.keyID)
	}
	return dst, nil
}

func (f *File) nonce(number uint64) *[nonceBytes]byte {
	n := f.nonces.Get().(*[nonceBytes]byte)
	binary.BigEndian.PutUint64(n[nonceBytes-8:], number)
	return n
}

// Format prints the epoch, for all verbs.
func (f *File) Format(s fmt.State, _ rune) { fmt.Fprintf(s, "cipher of epoch %d", f.keyID) }
