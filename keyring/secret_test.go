package keyring

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"livemount/internal/errs"
)

func TestPassphrasesAreKeptByteForByte(t *testing.T) {
	for _, c := range []struct{ in, asGiven, asLine string }{
		{"word", "word", "word"},
		{"word\n", "word\n", "word"},
		{"word\r\n", "word\r\n", "word"},
		{"word\n\n", "word\n\n", "word\n"},
		{"word\r", "word\r", "word\r"},
		{" word ", " word ", " word "},
		{"e\u0301\n", "e\u0301\n", "e\u0301"}, // no normal form is made
		{"\xff\x00", "\xff\x00", "\xff\x00"},
	} {
		given, err1 := Passphrase([]byte(c.in))
		line, err2 := PassphraseLine([]byte(c.in))
		if err1 != nil || err2 != nil || string(given.content) != c.asGiven || string(line.content) != c.asLine {
			t.Errorf("%q: %q and %q (%v, %v)", c.in, given.content, line.content, err1, err2)
		}
	}
}

func TestEmptyPassphrasesAreInvalid(t *testing.T) {
	for _, b := range []string{"", "\n", "\r\n"} {
		_, err := PassphraseLine([]byte(b))
		mustBe(t, err, errs.Invalid)
	}
	_, err := Passphrase(nil)
	mustBe(t, err, errs.Invalid)
	_, err = Passphrase(make([]byte, maxPassphrase+1))
	mustBe(t, err, errs.Invalid)
}

func TestNewKeyFilesAreTaken(t *testing.T) {
	a, b := NewKeyFile(), NewKeyFile()
	if len(a) != 65 || a[64] != '\n' || !isHex(a[:64]) || bytes.Equal(a, b) {
		t.Fatalf("key files %q and %q", a, b)
	}
	if _, err := KeyFile(a); err != nil {
		t.Fatal(err)
	}
}

// A copy through an editor or a secret manager gains or loses the newline at the end.
func TestKeyFileOpensWithAndWithoutItsNewline(t *testing.T) {
	content := bytes.TrimSpace(NewKeyFile())
	secret, err := KeyFile(content)
	if err != nil {
		t.Fatal(err)
	}
	s, k := made(t, secret)
	for _, end := range []string{"\n", "\r\n"} {
		again, err := KeyFile(append(bytes.Clone(content), end...))
		if err != nil {
			t.Fatal(err)
		}
		mustSame(t, opened(t, s, again), k)
	}
}

func TestWeakKeyFilesAreInvalidAndSayWhatToDo(t *testing.T) {
	for name, b := range map[string][]byte{
		"empty":       nil,
		"short":       testRandom(1).bytes(31),
		"equal bytes": bytes.Repeat([]byte{7}, 4096),
		"regular":     []byte(strings.Repeat("abc", 1000)),
		"128 bits":    []byte("00112233445566778899aabbccddeeff\n"),
		"huge":        testRandom(1).bytes(maxKeyFile + 1),
	} {
		_, err := KeyFile(b)
		if !errs.Is(err, errs.Invalid) || !strings.Contains(errs.TryOf(err), "/dev/urandom") {
			t.Errorf("%s: %v, try %q", name, err, errs.TryOf(err))
		}
	}
}

// 32 random bytes may end with the byte of a newline.
func TestRandomKeyFilesAreTakenWhateverTheirEnd(t *testing.T) {
	for seed := range byte(255) {
		b := testRandom(seed).bytes(32)
		b[31] = seed
		if _, err := KeyFile(b); err != nil {
			t.Errorf("%x: %v", b, err)
		}
	}
}

func TestSecretsAndKeysDoNotPrint(t *testing.T) {
	secret := passphrase(t, "hidden-passphrase")
	_, k := made(t, secret)
	f := fileOf(t, k, 1, 1)
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&out, verb+verb+verb, secret, k, f)
		fmt.Fprintf(&out, verb, NewSlot{Secret: secret})
	}
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("store opened", "secret", secret, "keys", k, "slot", NewSlot{Secret: secret})
	}
	b, err := json.Marshal(map[string]any{"secret": secret, "keys": k})
	if err != nil {
		t.Fatal(err)
	}
	out.Write(b)
	one := k.epochs[1]
	for _, leak := range []string{
		"hidden-passphrase", fmt.Sprintf("%x", "hidden-passphrase"), fmt.Sprint([]byte("hidden-passphrase")),
		fmt.Sprintf("%x", one[:]), fmt.Sprint(one[:]), fmt.Sprintf("%x", k.kek[:]),
	} {
		if strings.Contains(strings.ToLower(out.String()), leak) {
			t.Errorf("%q shows in %s", leak, out.String())
		}
	}
}

func TestWipedSecretOpensNothing(t *testing.T) {
	secret := passphrase(t, "right")
	s, _ := made(t, secret)
	again := secret
	secret.Wipe()
	_, err := s.Open(testStore(), again)
	mustBe(t, err, errs.Denied)
}
