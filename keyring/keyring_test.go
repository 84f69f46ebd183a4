package keyring

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"testing"
	"time"

	"livemount/internal/errs"
)

// Fixed inputs of all tests. Costs are as low as Argon2 allows; only the unexported constructors take them.

func testStore() (id [16]byte) {
	for i := range id {
		id[i] = byte(i)
	}
	return id
}

func testTime() time.Time { return time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC) }

func cheap() Argon2 { return Argon2{Time: 1, MemoryKiB: 8, Threads: 1} }

// testRandom is a stream that depends on the seed alone.
func testRandom(seed byte) random { return random{rand.NewChaCha8([32]byte{seed})} }

func passphrase(t testing.TB, s string) Secret {
	t.Helper()
	secret, err := Passphrase([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

func keyFile(t testing.TB, seed byte) Secret {
	t.Helper()
	secret, err := KeyFile(testRandom(seed).bytes(32))
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// slotOf is a slot at test costs.
func slotOf(secret Secret, label string) NewSlot {
	return NewSlot{Secret: secret, Label: label, Created: testTime(), Argon2: cheap()}
}

// made is a store with one slot.
func made(t testing.TB, first Secret) (*Slots, *Keys) {
	t.Helper()
	s, k, err := create(testRandom(1), testStore(), slotOf(first, "first"))
	if err != nil {
		t.Fatal(err)
	}
	return s, k
}

func added(t testing.TB, s *Slots, k *Keys, secret Secret, label string) (*Slots, SlotID) {
	t.Helper()
	next, id, err := s.add(testRandom(2), k, slotOf(secret, label))
	if err != nil {
		t.Fatal(err)
	}
	return next, id
}

func removed(t testing.TB, s *Slots, id SlotID) *Slots {
	t.Helper()
	next, err := s.Remove(id)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func rotated(t testing.TB, s *Slots, k *Keys) (*Slots, *Keys) {
	t.Helper()
	next, keys, err := s.Rotate(k, testTime())
	if err != nil {
		t.Fatal(err)
	}
	return next, keys
}

func opened(t testing.TB, s *Slots, secret Secret) *Keys {
	t.Helper()
	k, err := s.Open(testStore(), secret)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// reread is the document after it was stored.
func reread(t testing.TB, s *Slots) *Slots {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	next, err := Parse(b)
	if err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	return next
}

func bytesOf(t testing.TB, s *Slots) []byte {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// same says whether two sets of keys are equal in everything.
func same(a, b *Keys) bool {
	if a.store != b.store || a.kek != b.kek || a.hash != b.hash || a.newest != b.newest || len(a.epochs) != len(b.epochs) {
		return false
	}
	for id, one := range a.epochs {
		if other := b.epochs[id]; other == nil || *one != *other {
			return false
		}
	}
	return true
}

func mustSame(t testing.TB, a, b *Keys) {
	t.Helper()
	if !same(a, b) {
		t.Fatal("other keys than were made")
	}
}

func mustBe(t testing.TB, err error, kind errs.Kind) {
	t.Helper()
	if !errs.Is(err, kind) {
		t.Fatalf("error %v (%v), want kind %v", err, errs.KindOf(err), kind)
	}
}

func fileOf(t testing.TB, k *Keys, id uint32, salt byte) *File {
	t.Helper()
	f, err := k.File(id, [32]byte{salt})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func mustEqual(t testing.TB, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Fatalf("%x, want %x", got, want)
	}
}
