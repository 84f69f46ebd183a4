package keyring

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"testing"
)

const goldenFile = "testdata/golden.json"

// golden is the document of FORMAT.md's worked example: a passphrase, a key file, and a rotation, with
// the randomness of a fixed stream.
func golden(t *testing.T) (*Slots, *Keys) {
	t.Helper()
	r := testRandom(42)
	s, k, err := create(r, testStore(), slotOf(passphrase(t, "correct horse"), "in the safe"))
	if err != nil {
		t.Fatal(err)
	}
	if s, _, err = s.add(r, k, slotOf(keyFile(t, 7), "backup server")); err != nil {
		t.Fatal(err)
	}
	if s, k, err = s.rotate(r, k, testTime().AddDate(0, 1, 0)); err != nil {
		t.Fatal(err)
	}
	return s, k
}

func goldenBytes(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The document as committed must open, now and ever, to these keys.
func TestGoldenDocumentOpens(t *testing.T) {
	s, err := Parse(goldenBytes(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []Secret{passphrase(t, "correct horse"), keyFile(t, 7)} {
		got := shown(t, opened(t, s, secret))
		for name, want := range goldenKeys() {
			if got[name] != want {
				t.Errorf("%q: %q, want %q (%v)", name, got[name], want, secret)
			}
		}
	}
}

// shown has all that comes out of keys, in hex. "file" is "hello" with the aad "aad" as record 258 of a
// file with the salt 01 00 … 00.
func shown(t *testing.T, k *Keys) map[string]string {
	t.Helper()
	show := func(b []byte) string { return hex.EncodeToString(b) }
	m := map[string]string{"kek": show(k.kek[:]), "hash": show(k.hash[:]), "hash secret": show(k.HashSecret())}
	for _, id := range k.Epochs() {
		meta, err := k.MetaKey(id)
		if err != nil {
			t.Fatal(err)
		}
		m[fmt.Sprint("epoch ", id)] = show(k.epochs[id][:])
		m[fmt.Sprint("meta ", id)] = show(meta)
		m[fmt.Sprint("file ", id)] = show(fileOf(t, k, id, 1).Seal(nil, []byte("hello"), []byte("aad"), 258))
	}
	return m
}

func goldenKeys() map[string]string {
	return map[string]string{
		"kek":         "475140cb09380f61298241557ef5ee1656abd1b3972e866ab56a2fa330f90833",
		"hash":        "f690fc649a578c0a530704faa35217ac1f36547eab8c3e98103f80939ce624ca",
		"hash secret": "7297f8875c10a890a1575f983b527b08bedeb98309f9f4a0722ea336bf6d65a6",
		"epoch 1":     "22301fb8d82978daf007b05614969f3403d0062673f5594495798d340c0a17e8",
		"meta 1":      "58ad116369e06f84503beff416bf3b56185b27246f8007299651f50bc9b71e02",
		"file 1":      "49779fc595e85e50a22077044e9cbe2bafef6cdfe2",
		"epoch 2":     "ff1b9321e6899ee792fffea822570157e1f59c9e28275d8eb9343f35f1b66bab",
		"meta 2":      "459a475247d02f9e071ea95810edc3e7e124d0df2d7bd990af50709f785b5763",
		"file 2":      "bfe5cde1300f960070ee49d434ca176c63da2f0cff",
	}
}

// What is written must not drift either. The KEM draws its own randomness, so each slot's KEK, and with it
// the slot's checksum, is taken from the committed document; that it opens is tested above.
func TestGoldenDocumentIsWritten(t *testing.T) {
	s, _ := golden(t)
	want, err := Parse(goldenBytes(t))
	if err != nil {
		t.Fatal(err)
	}
	for i := range s.doc.Slots {
		s.doc.Slots[i].KEK = want.doc.Slots[i].KEK
		s.doc.Slots[i].CRC = s.doc.Slots[i].crc()
	}
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if b = append(b, '\n'); !bytes.Equal(b, goldenBytes(t)) {
		t.Errorf("the document is written as\n%s", b)
	}
}
