package keyring

import (
	"bytes"
	"encoding/json"
	"testing"
)

// FuzzParse: hostile bytes give an error or a document that is written as it was read, and that opens to
// the keys it was made with or to none.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`{"version":1,"slots":[],"epochs":[],"hash":"","tag":""}`))
	f.Add(goldenBytes(f))
	whole, err := Parse(goldenBytes(f))
	if err != nil {
		f.Fatal(err)
	}
	secrets := []Secret{passphrase(f, "correct horse"), keyFile(f, 7)}
	made := opened(f, whole, secrets[0])
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Parse(b)
		if err != nil {
			return
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, b); err != nil {
			t.Fatal(err)
		}
		mustEqual(t, bytesOf(t, s), compact.Bytes())
		s.List()
		mustOpenOnly(t, s, secrets, made)
	})
}

// FuzzSlot gets behind the checksums: a slot of any content, in a document that is whole otherwise.
func FuzzSlot(f *testing.F) {
	s, k := made(f, passphrase(f, "right"))
	o := s.doc.Slots[0]
	secrets := []Secret{passphrase(f, "right"), keyFile(f, 7)}
	f.Add(string(o.Kind), o.Label, o.Argon2.Time, o.Argon2.MemoryKiB, o.Argon2.Threads, o.Salt, o.Public, o.Private, o.KEK)
	f.Add("keyfile", "", uint32(0), uint32(0), uint8(0), []byte{}, []byte{}, []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, kind, label string, passes, memory uint32, threads uint8, salt, public, private, kek []byte) {
		h := slot{ID: o.ID, Kind: Kind(kind), Label: label, Created: o.Created, Salt: salt, Public: public, Private: private, KEK: kek, Tag: o.Tag}
		if passes != 0 || memory != 0 || threads != 0 {
			h.Argon2 = &Argon2{passes, memory, threads}
		}
		h.CRC = h.crc()
		b := bytesOf(t, s.with([]slot{h}))
		hostile, err := Parse(b)
		if err != nil {
			return // a label that JSON cannot keep
		}
		mustOpenOnly(t, hostile, secrets, k)
		if _, next, err := hostile.Rotate(k, testTime()); err == nil && !bytes.Equal(public, o.Public) {
			t.Fatalf("a new KEK went to a foreign public key: %v", next)
		}
	})
}

// mustOpenOnly opens with all secrets, unless that is dear.
func mustOpenOnly(t *testing.T, s *Slots, secrets []Secret, made *Keys) {
	t.Helper()
	if costly(s, 1<<10) {
		return
	}
	for _, secret := range secrets {
		if k, err := s.Open(testStore(), secret); err == nil {
			mustSame(t, k, made)
		}
	}
}

// FuzzSecret: what is taken as a key file also opens what it closed, whatever the bytes.
func FuzzSecret(f *testing.F) {
	f.Add([]byte("correct horse\n"))
	f.Add(NewKeyFile())
	f.Add(bytes.Repeat([]byte{0}, 64))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := PassphraseLine(b); err == nil && (len(p.content) == 0 || !bytes.HasPrefix(b, p.content) || len(b)-len(p.content) > 2) {
			t.Fatalf("%q became %q", b, p.content)
		}
		k, err := KeyFile(b)
		if err != nil {
			return
		}
		if len(k.content) < minKeyFile-2 || different(k.content) < minKeyFileBytes {
			t.Fatalf("weak key file %q was taken", b)
		}
		s, keys := made(t, k)
		mustSame(t, opened(t, s, k), keys)
	})
}
