package keyring

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"io"

	"livemount/internal/errs"
)

const (
	keyBytes   = 32
	saltBytes  = 32
	tagBytes   = sha256.Size
	nonceBytes = 12
	gcmTag     = 16
	wrapBytes  = nonceBytes + keyBytes + gcmTag // a wrapped key

	publicBytes = 1184 + 32                    // MLKEM768-X25519
	encBytes    = 1088 + 32                    // its ciphertext
	sealedBytes = encBytes + keyBytes + gcmTag // a KEK encrypted to a public key
)

// key is a secret of 256 bits.
type key [keyBytes]byte

// random is where new secrets come from: crypto/rand, and in tests a fixed stream. The ephemeral secret
// of HPKE does not come from here, the standard library draws it itself.
type random struct{ io.Reader }

func (r random) bytes(n int) []byte {
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		panic("keyring: no randomness: " + err.Error()) // crypto/rand never fails
	}
	return b
}

func (r random) key() key { return key(r.bytes(keyBytes)) }

// bind joins fields so that no two lists give the same bytes: each stands behind its length, big-endian.
func bind(label string, fields ...[]byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(label)))
	b = append(b, label...)
	for _, f := range fields {
		b = binary.BigEndian.AppendUint32(b, uint32(len(f)))
		b = append(b, f...)
	}
	return b
}

// derive is HKDF-SHA-256 (RFC 5869) of 32 bytes.
func derive(secret, salt []byte, label string) key {
	b, err := hkdf.Key(sha256.New, secret, salt, label, keyBytes)
	if err != nil {
		panic("keyring: " + err.Error()) // only for keys that are too long
	}
	return key(b)
}

func newGCM(k *key) cipher.AEAD {
	block, err := aes.NewCipher(k[:])
	if err != nil {
		panic("keyring: " + err.Error()) // only for a wrong length
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic("keyring: " + err.Error()) // only for a wrong block size
	}
	return aead
}

// wrap seals a key: nonce (12 bytes, fresh), ciphertext (32), tag (16).
func wrap(r random, under key, k key, aad []byte) []byte {
	nonce := r.bytes(nonceBytes)
	return newGCM(&under).Seal(nonce, nonce, k[:], aad)
}

// unwrap reverses wrap. It does not tell a wrong key from damage.
func unwrap(under key, b, aad []byte) (key, bool) {
	if len(b) != wrapBytes {
		return key{}, false
	}
	k, err := newGCM(&under).Open(nil, b[:nonceBytes], b[nonceBytes:], aad)
	if err != nil {
		return key{}, false
	}
	return key(k), true
}

// mac is HMAC-SHA-256.
func mac(k key, data []byte) []byte {
	h := hmac.New(sha256.New, k[:])
	h.Write(data)
	return h.Sum(nil)
}

// keyPair is the private half of a slot: HPKE (RFC 9180) with MLKEM768-X25519, HKDF-SHA-256, AES-256-GCM.
// Both ML-KEM and X25519 would have to be broken to open what is encrypted to it.
type keyPair struct{ private hpke.PrivateKey }

func newKeyPair(seed key) (keyPair, error) {
	private, err := hpke.MLKEM768X25519().NewPrivateKey(seed[:])
	return keyPair{private}, err
}

func (p keyPair) public() []byte { return p.private.PublicKey().Bytes() }

func (p keyPair) open(sealed, info []byte) (key, bool) {
	b, err := hpke.Open(p.private, hpke.HKDFSHA256(), hpke.AES256GCM(), info, sealed)
	if err != nil || len(b) != keyBytes {
		return key{}, false
	}
	return key(b), true
}

// sealTo encrypts a key to a public key, which is Corrupt when it is none.
func sealTo(public []byte, k key, info []byte) ([]byte, error) {
	p, err := hpke.MLKEM768X25519().NewPublicKey(public)
	if err != nil {
		return nil, errs.New(errs.Corrupt, "public key: %w", err)
	}
	b, err := hpke.Seal(p, hpke.HKDFSHA256(), hpke.AES256GCM(), info, k[:])
	if err != nil {
		return nil, errs.New(errs.Corrupt, "public key: %w", err) // a point of low order
	}
	return b, nil
}
