package keyring

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"livemount/internal/errs"
)

func TestEachSecretOpensTheSameKeys(t *testing.T) {
	phrase, file := passphrase(t, "correct horse"), keyFile(t, 7)
	s, k := made(t, phrase)
	s, _ = added(t, s, k, file, "machine")
	s, _ = added(t, s, k, passphrase(t, "staple"), "")
	s = reread(t, s)
	for _, secret := range []Secret{phrase, file, passphrase(t, "staple")} {
		mustSame(t, opened(t, s, secret), k)
	}
}

func TestPublicConstructorsUseRealCosts(t *testing.T) {
	store, file := testStore(), keyFile(t, 7)
	s, k, err := Create(store, NewSlot{Secret: file, Created: testTime()})
	if err != nil {
		t.Fatal(err)
	}
	least := Argon2{Time: minArgonTime, MemoryKiB: minArgonMemory, Threads: 1}
	s, id, err := s.Add(k, NewSlot{Secret: passphrase(t, "x"), Created: testTime(), Argon2: least})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.List()[1]; got.ID != id || *got.Argon2 != least {
		t.Fatalf("slot %+v", got)
	}
	mustSame(t, opened(t, reread(t, s), passphrase(t, "x")), k)
	_, other, err := Create(store, NewSlot{Secret: file, Created: testTime()})
	if err != nil || same(k, other) {
		t.Fatalf("two stores with the same keys, or %v", err)
	}
}

func TestWrongSecretIsDeniedAndTheAdviceNamesTheSlots(t *testing.T) {
	s, k := made(t, passphrase(t, "right"))
	s, _ = added(t, s, k, keyFile(t, 7), "machine")
	for _, wrong := range []Secret{passphrase(t, "wrong"), passphrase(t, "right "), keyFile(t, 8)} {
		_, err := s.Open(testStore(), wrong)
		mustBe(t, err, errs.Denied)
		if try := errs.TryOf(err); !strings.Contains(try, "passphrase of slot") || !strings.Contains(try, "key file of slot") {
			t.Fatalf("advice %q", try)
		}
	}
	only, _ := made(t, keyFile(t, 7))
	_, err := only.Open(testStore(), passphrase(t, "right"))
	mustBe(t, err, errs.Denied)
	if strings.Contains(errs.TryOf(err), "passphrase") {
		t.Fatalf("advice %q for a store without a passphrase", errs.TryOf(err))
	}
	_, err = s.Open(testStore(), Secret{})
	mustBe(t, err, errs.Invalid)
}

func TestSlotsOpenTheirOwnStoreOnly(t *testing.T) {
	s, _ := made(t, passphrase(t, "right"))
	_, err := s.Open([16]byte{9}, passphrase(t, "right"))
	mustBe(t, err, errs.Denied)
}

// A passphrase and a key file of the same bytes are not the same secret.
func TestKindsAreApart(t *testing.T) {
	content := strings.TrimSpace(string(NewKeyFile()))
	file, err := KeyFile([]byte(content))
	if err != nil {
		t.Fatal(err)
	}
	s, _ := made(t, file)
	_, err = s.Open(testStore(), passphrase(t, content))
	mustBe(t, err, errs.Denied)
}

func TestDamagedSlotIsCorruptAndTheOthersStillOpen(t *testing.T) {
	phrase, file := passphrase(t, "right"), keyFile(t, 7)
	s, k := made(t, phrase)
	s, _ = added(t, s, k, file, "machine")
	s.doc.Slots[0].Private[20] ^= 1
	s = reread(t, s)
	_, err := s.Open(testStore(), phrase)
	mustBe(t, err, errs.Corrupt)
	mustSame(t, opened(t, s, file), k)
	if list := s.List(); list[0].Damage == nil || list[1].Damage != nil {
		t.Fatalf("list says %v and %v", list[0].Damage, list[1].Damage)
	}
}

// A checksum can be set right by who changes a slot; what the secret opens cannot.
func TestChangedSlotNeverOpensOtherKeys(t *testing.T) {
	secret := passphrase(t, "right")
	s, k := made(t, secret)
	changes := map[string]func(o *slot){
		"id":      func(o *slot) { o.ID[0] ^= 1 },
		"time":    func(o *slot) { o.Argon2.Time++ },
		"memory":  func(o *slot) { o.Argon2.MemoryKiB++ },
		"threads": func(o *slot) { *o.Argon2 = Argon2{1, 16, 2} },
		"salt":    func(o *slot) { o.Salt[0] ^= 1 },
		"public":  func(o *slot) { o.Public[0] ^= 1 },
		"private": func(o *slot) { o.Private[0] ^= 1 },
		"kek":     func(o *slot) { o.KEK[0] ^= 1 },
	}
	for name, change := range changes {
		c := reread(t, s)
		change(&c.doc.Slots[0])
		c.doc.Slots[0].CRC = c.doc.Slots[0].crc()
		_, err := reread(t, c).Open(testStore(), secret)
		if !errs.Is(err, errs.Denied) && !errs.Is(err, errs.Corrupt) {
			t.Errorf("%s changed: %v", name, err)
		}
		if _, _, err := c.Rotate(k, testTime()); !errs.Is(err, errs.Corrupt) && name != "kek" {
			t.Errorf("%s changed: rotate: %v", name, err)
		}
	}
}

// The next rotation would encrypt the KEK to a public key that the slot's secret does not open.
func TestSlotWithHalvesOfTwoPairsIsCorrupt(t *testing.T) {
	secret := keyFile(t, 7)
	s, k := made(t, secret)
	o, seed := &s.doc.Slots[0], key{1, 2, 3}
	pair, err := newKeyPair(seed)
	if err != nil {
		t.Fatal(err)
	}
	o.Private = wrap(testRandom(3), o.secretKey(secret), seed, o.identity(testStore(), "private"))
	if o.KEK, err = sealTo(pair.public(), k.kek, o.identity(testStore(), "kek")); err != nil {
		t.Fatal(err)
	}
	o.CRC = o.crc()
	_, err = reread(t, s).Open(testStore(), secret)
	mustBe(t, err, errs.Corrupt)
}

func TestExchangedEpochsAreCorrupt(t *testing.T) {
	secret := keyFile(t, 7)
	s, k := made(t, secret)
	s, k = rotated(t, s, k)
	s, _ = rotated(t, s, k)
	changes := map[string]func(d *document){
		"newest gone": func(d *document) { d.Epochs = d.Epochs[:2] },
		"oldest gone": func(d *document) { d.Epochs = d.Epochs[1:] },
		"keys":        func(d *document) { d.Epochs[0].Key, d.Epochs[1].Key = d.Epochs[1].Key, d.Epochs[0].Key },
		"number":      func(d *document) { d.Epochs[2].ID = 4 },
		"hash":        func(d *document) { d.Hash = d.Epochs[0].Key },
		"tag":         func(d *document) { d.Tag[0] ^= 1 },
	}
	for name, change := range changes {
		c := reread(t, s)
		change(&c.doc)
		if _, err := reread(t, c).Open(testStore(), secret); !errs.Is(err, errs.Corrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestFlippedByteNeverYieldsOtherKeys flips each byte of a document, by turns its lowest bit, the bit of
// letter case, and all bits.
func TestFlippedByteNeverYieldsOtherKeys(t *testing.T) {
	for _, secret := range []Secret{passphrase(t, "right"), keyFile(t, 7)} {
		s, k := made(t, secret)
		whole := bytesOf(t, s)
		for at := range whole {
			b := bytes.Clone(whole)
			b[at] ^= []byte{1, 0x20, 0xff}[at%3]
			flipped, err := Parse(b)
			if err != nil {
				mustBeRefusal(t, at, err)
				continue
			}
			mustKeepOrRefuse(t, at, flipped, secret, k)
		}
	}
}

func mustKeepOrRefuse(t *testing.T, at int, s *Slots, secret Secret, k *Keys) {
	t.Helper()
	if costly(s, 64) {
		return // Argon2 became dear; TestHostileCostsAreNeverPaid and TestChangedSlotNeverOpensOtherKeys look at that
	}
	got, err := s.Open(testStore(), secret)
	if err == nil {
		mustSame(t, got, k)
		return
	}
	mustBeRefusal(t, at, err)
	if errs.Is(err, errs.Denied) {
		t.Fatalf("byte %d: damage passes for a wrong secret: %v", at, err)
	}
}

func mustBeRefusal(t *testing.T, at int, err error) {
	t.Helper()
	switch errs.KindOf(err) {
	case errs.Corrupt, errs.Denied, errs.Invalid, errs.Newer:
	default:
		t.Fatalf("byte %d: %v", at, err)
	}
}

// costly says whether a slot would take more than so many KiB times passes.
func costly(s *Slots, most uint64) bool {
	for i := range s.doc.Slots {
		if a := s.doc.Slots[i].Argon2; a != nil && s.doc.Slots[i].shape() == nil && uint64(a.Time)*uint64(a.MemoryKiB) > most {
			return true
		}
	}
	return false
}

func TestParseTakesOneSpellingOnly(t *testing.T) {
	s, _ := made(t, passphrase(t, "right"))
	b := string(bytesOf(t, s))
	for name, other := range map[string]string{
		"letter case":    strings.Replace(b, `"version"`, `"Version"`, 1),
		"repeated field": strings.Replace(b, `{"version":1`, `{"version":1,"version":1`, 1),
		"unknown field":  strings.Replace(b, `{"version":1`, `{"version":1,"more":2`, 1),
		"escape":         strings.Replace(b, `"first"`, `"\u0066irst"`, 1),
		"no version":     strings.Replace(b, `"version":1`, `"version":0`, 1),
		"no epochs":      `{"version":1}`,
		"null":           `null`,
		"two documents":  b + b,
		"number":         strings.Replace(b, `"version":1`, `"version":1e0`, 1),
		"too long":       b + strings.Repeat(" ", maxDocument),
	} {
		if _, err := Parse([]byte(other)); !errs.Is(err, errs.Corrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := Parse([]byte(strings.Replace(b, `"version":1`, `"version":2`, 1)))
	mustBe(t, err, errs.Newer)
}

// The document stands in FORMAT as a raw message, indented with the rest of it.
func TestDocumentSurvivesAnIndentedFile(t *testing.T) {
	secret := keyFile(t, 7)
	s, k, err := create(testRandom(1), testStore(), slotOf(secret, `<a&b> "é\`))
	if err != nil {
		t.Fatal(err)
	}
	type file struct {
		Encryption json.RawMessage `json:"encryption"`
	}
	b, err := json.MarshalIndent(file{bytesOf(t, s)}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	var f file
	if err := json.Unmarshal(b, &f); err != nil {
		t.Fatal(err)
	}
	back, err := Parse(f.Encryption)
	if err != nil {
		t.Fatal(err)
	}
	mustSame(t, opened(t, back, secret), k)
	mustEqual(t, bytesOf(t, back), bytesOf(t, s))
}

func TestBoundsOfADocument(t *testing.T) {
	s, k := made(t, keyFile(t, 7))
	for len(s.doc.Slots) < maxSlots {
		s, _ = added(t, s, k, keyFile(t, 8), "")
	}
	_, _, err := s.add(testRandom(2), k, slotOf(keyFile(t, 8), ""))
	mustBe(t, err, errs.Invalid)
	for len(s.doc.Epochs) < maxEpochs {
		last := s.doc.Epochs[len(s.doc.Epochs)-1]
		last.ID++
		s.doc.Epochs = append(s.doc.Epochs, last)
		k.epochs[last.ID], k.newest = k.epochs[1], last.ID
	}
	s.doc.lock(testRandom(3), k, s.Epochs())
	_, _, err = s.Rotate(k, testTime())
	mustBe(t, err, errs.Invalid)
	indented, err := json.MarshalIndent(s, "  ", "  ")
	if err != nil || len(indented) > maxDocument/2 {
		t.Fatalf("the largest document has %d bytes (%v)", len(indented), err)
	}
	mustSame(t, opened(t, reread(t, s), keyFile(t, 7)), k)

	s.doc.Slots = append(s.doc.Slots, s.doc.Slots[0])
	_, err = Parse(bytesOf(t, s))
	mustBe(t, err, errs.Corrupt)
}
