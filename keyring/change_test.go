package keyring

import (
	"errors"
	"strings"
	"testing"
	"time"

	"livemount/internal/errs"
)

func TestRemovedSlotOpensNothing(t *testing.T) {
	phrase, file := passphrase(t, "leaked"), keyFile(t, 7)
	s, k := made(t, phrase)
	s, id := added(t, s, k, file, "machine")
	first := s.List()[0].ID
	less := removed(t, s, first)
	_, err := less.Open(testStore(), phrase)
	mustBe(t, err, errs.Denied)
	mustSame(t, opened(t, less, file), k)
	mustSame(t, opened(t, s, phrase), k) // the document before is what it was
	_, err = less.Remove(first)
	mustBe(t, err, errs.NotFound)
	_, err = less.Remove(id)
	mustBe(t, err, errs.Denied)
}

func TestLastWholeSlotStays(t *testing.T) {
	s, k := made(t, passphrase(t, "right"))
	s, id := added(t, s, k, keyFile(t, 7), "machine")
	s.doc.Slots[0].Salt[0] ^= 1
	_, err := s.Remove(id)
	mustBe(t, err, errs.Denied)
	s = removed(t, s, s.List()[0].ID)
	mustSame(t, opened(t, s, keyFile(t, 7)), k)
}

// One secret rotates; slots whose secrets are not at hand open the new keys all the same.
func TestRotationNeedsOneSecret(t *testing.T) {
	phrase, file := passphrase(t, "in the safe"), keyFile(t, 7)
	s, k := made(t, phrase)
	s, _ = added(t, s, k, file, "machine")
	next, keys := rotated(t, s, opened(t, reread(t, s), file))
	mustSame(t, opened(t, reread(t, next), phrase), keys)
	mustSame(t, opened(t, reread(t, next), file), keys)
	if keys.Newest() != 2 || len(keys.Epochs()) != 2 || len(next.Epochs()) != 2 {
		t.Fatalf("epochs %v", keys.Epochs())
	}
	mustEqual(t, keys.HashSecret(), k.HashSecret())
	for _, id := range []uint32{1, 2} {
		sealed := fileOf(t, keys, id, 1).Seal(nil, []byte("text"), nil, 3)
		f, err := k.File(id, [32]byte{1})
		if id == 2 {
			mustBe(t, err, errs.Denied)
			continue
		}
		if b, err := f.Open(nil, sealed, nil, 3); err != nil || string(b) != "text" {
			t.Fatalf("epoch %d: %q, %v", id, b, err)
		}
	}
}

// TestOldDocumentAndRemovedSecretEndAtTheRotation is what a rotation is for. The attacker has the old
// document, the leaked secret, so everything that they open, and the new document.
func TestOldDocumentAndRemovedSecretEndAtTheRotation(t *testing.T) {
	leaked, file := passphrase(t, "leaked"), keyFile(t, 7)
	s, k := made(t, leaked)
	old, _ := added(t, s, k, file, "machine")
	s = removed(t, old, old.List()[0].ID)
	s, keys := rotated(t, s, k)

	stolen := opened(t, reread(t, old), leaked)
	mustSame(t, stolen, k)
	before := fileOf(t, keys, 1, 5).Seal(nil, []byte("before"), nil, 0)
	if b, err := fileOf(t, stolen, 1, 5).Open(nil, before, nil, 0); err != nil || string(b) != "before" {
		t.Fatalf("what was written before the rotation: %q, %v", b, err)
	}
	_, err := stolen.File(2, [32]byte{5})
	mustBe(t, err, errs.Denied)
	_, err = s.Open(testStore(), leaked)
	mustBe(t, err, errs.Denied)
	mustOpenNothing(t, s, stolen.kek)
	pair := mustPair(t, &old.doc.Slots[0], leaked)
	for i := range s.doc.Slots {
		o := &s.doc.Slots[i]
		if _, ok := pair.open(o.KEK, o.identity(testStore(), "kek")); ok {
			t.Fatal("the removed slot's key pair opens the new KEK")
		}
	}
}

// mustOpenNothing tries a KEK on everything that is wrapped in a document.
func mustOpenNothing(t *testing.T, s *Slots, kek key) {
	t.Helper()
	if _, err := s.doc.unlock(testStore(), kek); !errs.Is(err, errs.Corrupt) {
		t.Fatalf("old KEK: %v", err)
	}
	for _, e := range s.doc.Epochs {
		if _, ok := unwrap(wrapKey(kek), e.Key, epochAAD(testStore(), e.ID, e.Created)); ok {
			t.Fatalf("old KEK opens epoch %d", e.ID)
		}
	}
	if _, ok := unwrap(wrapKey(kek), s.doc.Hash, hashAAD(testStore())); ok {
		t.Fatal("old KEK opens the hash secret")
	}
}

func mustPair(t *testing.T, o *slot, secret Secret) keyPair {
	t.Helper()
	seed, ok := unwrap(o.secretKey(secret), o.Private, o.identity(testStore(), "private"))
	if !ok {
		t.Fatal("the leaked secret does not open its slot")
	}
	pair, err := newKeyPair(seed)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// A slot that is put back from an old document opens nothing after the rotation, and the next rotation
// does not give it the new KEK either.
func TestSlotOfAnOldDocumentIsNotTakenBack(t *testing.T) {
	leaked, file := passphrase(t, "leaked"), keyFile(t, 7)
	s, k := made(t, leaked)
	old, _ := added(t, s, k, file, "machine")
	s, keys := rotated(t, removed(t, old, old.List()[0].ID), k)
	spliced := reread(t, s.with(append(s.doc.Slots[:1:1], old.doc.Slots[0])))
	_, err := spliced.Open(testStore(), leaked)
	mustBe(t, err, errs.Corrupt)
	mustSame(t, opened(t, spliced, file), keys)
	_, _, err = spliced.Rotate(keys, testTime())
	mustBe(t, err, errs.Corrupt)
	if want := "mountctl key remove " + old.List()[0].ID.String(); errs.TryOf(err) != want {
		t.Fatalf("advice %q, want %q", errs.TryOf(err), want)
	}
	rotated(t, removed(t, spliced, old.List()[0].ID), keys)
}

// A public key that somebody put in place of a slot's own would get the new KEK.
func TestRotationRefusesAForeignPublicKey(t *testing.T) {
	s, k := made(t, passphrase(t, "right"))
	s, _ = added(t, s, k, keyFile(t, 7), "machine")
	pair, err := newKeyPair(key{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	s.doc.Slots[0].Public = pair.public()
	s.doc.Slots[0].CRC = s.doc.Slots[0].crc()
	_, _, err = reread(t, s).Rotate(k, testTime())
	mustBe(t, err, errs.Corrupt)
}

func TestKeysOfAnotherDocumentChangeNothing(t *testing.T) {
	secret := keyFile(t, 7)
	s, k := made(t, secret)
	next, _ := rotated(t, s, k)
	_, _, err := next.Rotate(k, testTime())
	mustBe(t, err, errs.Denied)
	_, _, err = next.add(testRandom(3), k, slotOf(secret, ""))
	mustBe(t, err, errs.Denied)
	k.Wipe()
	_, _, err = s.Rotate(k, testTime())
	mustBe(t, err, errs.Denied)
}

func TestChangesLeaveTheDocumentBefore(t *testing.T) {
	s, k := made(t, keyFile(t, 7))
	before := bytesOf(t, s)
	next, _ := added(t, s, k, keyFile(t, 8), "second")
	rotated(t, s, k)
	rotated(t, next, k)
	mustEqual(t, bytesOf(t, s), before)
}

func TestSlotsThatCannotBeAreInvalid(t *testing.T) {
	good := NewSlot{Secret: keyFile(t, 7), Created: testTime()}
	for name, change := range map[string]func(n *NewSlot){
		"no secret":     func(n *NewSlot) { n.Secret = Secret{} },
		"no time":       func(n *NewSlot) { n.Created = time.Time{} },
		"long label":    func(n *NewSlot) { n.Label = strings.Repeat("x", maxLabel+1) },
		"not UTF-8":     func(n *NewSlot) { n.Label = "\xff" },
		"escape":        func(n *NewSlot) { n.Label = "\x1b[31m" },
		"little memory": func(n *NewSlot) { n.Argon2 = Argon2{3, minArgonMemory - 1, 1} },
		"one pass":      func(n *NewSlot) { n.Argon2 = Argon2{1, 64 << 10, 4} },
		"much memory":   func(n *NewSlot) { n.Argon2 = Argon2{3, maxArgonMemory + 1, 4} },
		"many passes":   func(n *NewSlot) { n.Argon2 = Argon2{maxArgonTime + 1, 64 << 10, 4} },
		"many threads":  func(n *NewSlot) { n.Argon2 = Argon2{3, 64 << 10, maxArgonThreads + 1} },
		"no threads":    func(n *NewSlot) { n.Argon2 = Argon2{3, 64 << 10, 0} },
	} {
		n := good
		change(&n)
		if _, _, err := Create(testStore(), n); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What a document asks for is bounded before any memory is taken.
func TestHostileCostsAreNeverPaid(t *testing.T) {
	secret := passphrase(t, "right")
	s, _ := made(t, secret)
	for _, a := range []Argon2{{1 << 31, 8, 1}, {1, 1<<32 - 1, 1}, {1, 8, 255}, {0, 8, 1}, {1, 0, 1}, {1, 8, 0}, {1, 15, 2}} {
		*s.doc.Slots[0].Argon2 = a
		s.doc.Slots[0].CRC = s.doc.Slots[0].crc()
		_, err := reread(t, s).Open(testStore(), secret)
		mustBe(t, err, errs.Corrupt)
	}
}

func TestSlotIDsAreParsed(t *testing.T) {
	id, err := ParseSlotID("0102abff")
	if err != nil || id != (SlotID{1, 2, 0xab, 0xff}) || id.String() != "0102abff" {
		t.Fatalf("%v, %v", id, err)
	}
	for _, bad := range []string{"", "01", "0102abfg", "0102abff00"} {
		_, err := ParseSlotID(bad)
		mustBe(t, err, errs.Invalid)
	}
}

// A slot's id is drawn again while it is taken.
func TestSlotIDsAreUnique(t *testing.T) {
	s, _ := made(t, keyFile(t, 7))
	taken := s.doc.Slots[0].ID
	r := random{strings.NewReader(string(taken[:]) + string(taken[:]) + "\x01\x02\x03\x04")}
	if id := s.freeID(r); id != (SlotID{1, 2, 3, 4}) {
		t.Fatalf("id %v", id)
	}
}

func TestErrorsNameTheSlot(t *testing.T) {
	s, _ := made(t, passphrase(t, "right"))
	s.doc.Slots[0].Tag[0] ^= 1
	_, err := s.Open(testStore(), passphrase(t, "wrong"))
	var e *errs.Error
	if !errors.As(err, &e) || !strings.Contains(err.Error(), s.doc.Slots[0].ID.String()) {
		t.Fatal(err)
	}
}
