package keyring

import (
	"crypto/hmac"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"time"
	"unicode"
	"unicode/utf8"

	"livemount/internal/errs"
)

// SlotID names a slot: 8 hex digits, random, not used twice in a document.
type SlotID [4]byte

// String is the id as it is stored and shown.
func (id SlotID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText is String.
func (id SlotID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

// UnmarshalText reads exactly 8 hex digits; anything else is Invalid.
func (id *SlotID) UnmarshalText(b []byte) error {
	if len(b) != hex.EncodedLen(len(id)) {
		return errs.New(errs.Invalid, "slot id %q: not 8 hex digits", b)
	}
	if _, err := hex.Decode(id[:], b); err != nil {
		return errs.New(errs.Invalid, "slot id %q: %w", b, err)
	}
	return nil
}

// ParseSlotID is the reverse of String.
func ParseSlotID(s string) (id SlotID, err error) {
	err = id.UnmarshalText([]byte(s))
	return id, err
}

const maxLabel = 64 // bytes

// slot is a slot as it is stored; FORMAT.md has the table.
type slot struct {
	ID      SlotID    `json:"id"`
	Kind    Kind      `json:"kind"`
	Label   string    `json:"label"`
	Created time.Time `json:"created"`
	Argon2  *Argon2   `json:"argon2id,omitempty"`
	Salt    []byte    `json:"salt"`
	Public  []byte    `json:"public"`
	Private []byte    `json:"private"`
	KEK     []byte    `json:"kek"`
	Tag     []byte    `json:"tag"`
	CRC     string    `json:"crc32c"`
}

// newSlot makes a slot that the secret opens; it holds no KEK yet.
func newSlot(r random, store [16]byte, id SlotID, n NewSlot) (slot, error) {
	s := slot{ID: id, Kind: n.Secret.kind, Label: n.Label, Created: stamp(n.Created), Salt: r.bytes(saltBytes)}
	if s.Kind == KindPassphrase {
		s.Argon2 = &n.Argon2
	}
	seed := r.key()
	pair, err := newKeyPair(seed)
	if err != nil {
		return slot{}, err
	}
	s.Public = pair.public()
	s.Private = wrap(r, s.secretKey(n.Secret), seed, s.identity(store, "private"))
	return s, nil
}

// identity is what the parts of a slot are bound to: the store, the slot, and how it is opened.
func (s *slot) identity(store [16]byte, part string) []byte {
	return bind("livemount 2026 slot "+part, store[:], s.ID[:], []byte(s.Kind), s.Argon2.encode(), s.Salt, s.Public)
}

func (s *slot) secretKey(secret Secret) key {
	if s.Kind == KindPassphrase {
		return key(s.Argon2.derive(secret.content, s.Salt))
	}
	return derive(secret.content, s.Salt, "livemount 2026 key file slot")
}

// give lets the slot open the KEK, and lets who has the KEK trust the slot's public key.
func (s *slot) give(store [16]byte, kek key) (err error) {
	if s.KEK, err = sealTo(s.Public, kek, s.identity(store, "kek")); err != nil {
		return fmt.Errorf("slot %s: %w", s.ID, err)
	}
	s.Tag = s.tag(store, kek)
	s.CRC = s.crc()
	return nil
}

// tag covers all of the slot but the KEK in it, which a rotation replaces.
func (s *slot) tag(store [16]byte, kek key) []byte {
	k := derive(kek[:], nil, "livemount 2026 tags")
	return mac(k, bind("livemount 2026 slot tag", s.identity(store, "tag"), []byte(s.Label), timeBytes(s.Created), s.Private))
}

// open returns the KEK. A secret that is not the slot's is Denied; a slot that is its own and holds no KEK is Corrupt.
func (s *slot) open(store [16]byte, secret Secret) (key, error) {
	seed, ok := unwrap(s.secretKey(secret), s.Private, s.identity(store, "private"))
	if !ok {
		return key{}, errs.New(errs.Denied, "slot %s: %s does not open it", s.ID, s.Kind)
	}
	pair, err := newKeyPair(seed)
	if err != nil || string(pair.public()) != string(s.Public) {
		return key{}, errs.New(errs.Corrupt, "slot %s: its keys are no pair", s.ID)
	}
	kek, ok := pair.open(s.KEK, s.identity(store, "kek"))
	if !ok {
		return key{}, errs.New(errs.Corrupt, "slot %s: key-encryption key does not pass", s.ID)
	}
	return kek, nil
}

// trusted says whether a new KEK may be encrypted to the slot: whoever wrote it had the KEK of now.
func (s *slot) trusted(store [16]byte, kek key) error {
	if err := s.damage(); err != nil {
		return err
	}
	if !hmac.Equal(s.Tag, s.tag(store, kek)) {
		return errs.New(errs.Corrupt, "slot %s: was written without the keys of this store", s.ID)
	}
	return nil
}

// damage is Corrupt unless the slot is as it was written.
func (s *slot) damage() error {
	if err := s.shape(); err != nil {
		return errs.New(errs.Corrupt, "slot %s: %w", s.ID, err)
	}
	if s.CRC != s.crc() {
		return errs.New(errs.Corrupt, "slot %s: checksum mismatch", s.ID)
	}
	return nil
}

// crc is the CRC32C of the slot's JSON with an empty checksum, 8 hex digits.
func (s *slot) crc() string {
	bare := *s
	bare.CRC = ""
	b, err := json.Marshal(bare)
	if err != nil {
		return "" // a time that JSON cannot say; stamped and parsed ones can
	}
	return fmt.Sprintf("%08x", crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

// shape says whether the slot can be opened without harm: lengths, kind, bounds of Argon2.
func (s *slot) shape() error {
	if len(s.Salt) != saltBytes || len(s.Public) != publicBytes || len(s.Private) != wrapBytes ||
		len(s.KEK) != sealedBytes || len(s.Tag) != tagBytes {
		return errs.New(errs.Invalid, "fields of wrong lengths")
	}
	if err := checkLabel(s.Label); err != nil {
		return err
	}
	switch {
	case s.Kind == KindKeyFile && s.Argon2 == nil:
		return nil
	case s.Kind == KindPassphrase && s.Argon2 != nil:
		return s.Argon2.check()
	}
	return errs.New(errs.Invalid, "kind %q with wrong parameters", s.Kind)
}

func checkLabel(label string) error {
	if len(label) > maxLabel || !utf8.ValidString(label) {
		return errs.New(errs.Invalid, "label of more than %d bytes, or not UTF-8", maxLabel)
	}
	for _, c := range label {
		if !unicode.IsPrint(c) {
			return errs.New(errs.Invalid, "label with the character %U", c)
		}
	}
	return nil
}

// stamp is a time as it is stored: UTC, seconds.
func stamp(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

func timeBytes(t time.Time) []byte { return []byte(t.Format(time.RFC3339Nano)) }

func checkTime(t time.Time) error {
	if y := t.UTC().Year(); y < 1970 || y > 9999 {
		return errs.New(errs.Invalid, "time %s: not between 1970 and 9999", t)
	}
	return nil
}
