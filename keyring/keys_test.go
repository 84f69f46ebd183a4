package keyring

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"livemount/internal/errs"
)

func TestRecordsAreWhatWasSealed(t *testing.T) {
	_, k := made(t, keyFile(t, 7))
	f := fileOf(t, k, 1, 1)
	rapid.Check(t, func(t *rapid.T) {
		plain, aad := rapid.SliceOf(rapid.Byte()).Draw(t, "plain"), rapid.SliceOf(rapid.Byte()).Draw(t, "aad")
		head, nonce := rapid.SliceOf(rapid.Byte()).Draw(t, "head"), rapid.Uint64().Draw(t, "nonce")
		sealed := f.Seal(bytes.Clone(head), plain, aad, nonce)
		if !bytes.HasPrefix(sealed, head) || len(sealed) != len(head)+len(plain)+f.Overhead() {
			t.Fatalf("%d bytes behind %d became %d", len(plain), len(head), len(sealed))
		}
		got, err := f.Open(bytes.Clone(head), sealed[len(head):], aad, nonce)
		if err != nil || !bytes.Equal(got, append(bytes.Clone(head), plain...)) {
			t.Fatalf("%x, %v", got, err)
		}
	})
}

func TestRecordsOpenInPlace(t *testing.T) {
	_, k := made(t, keyFile(t, 7))
	f := fileOf(t, k, 1, 1)
	b := append(make([]byte, 0, 64), "in place"...)
	b = f.Seal(b[:0], b, nil, 1)
	b, err := f.Open(b[:0], b, nil, 1)
	if err != nil || string(b) != "in place" {
		t.Fatalf("%q, %v", b, err)
	}
}

func TestChangedRecordIsCorrupt(t *testing.T) {
	_, k := made(t, keyFile(t, 7))
	f := fileOf(t, k, 1, 1)
	sealed := f.Seal(nil, []byte("plain"), []byte("aad"), 5)
	for i := range sealed {
		b := bytes.Clone(sealed)
		b[i] ^= 1
		_, err := f.Open(nil, b, []byte("aad"), 5)
		mustBe(t, err, errs.Corrupt)
	}
	for _, nonce := range []uint64{0, 4, 6, 5 << 32} {
		_, err := f.Open(nil, sealed, []byte("aad"), nonce)
		mustBe(t, err, errs.Corrupt)
	}
	_, err := f.Open(nil, sealed, []byte("aae"), 5)
	mustBe(t, err, errs.Corrupt)
	_, err = f.Open(nil, sealed[:3], []byte("aad"), 5)
	mustBe(t, err, errs.Corrupt)
}

// TestStreamsNeverRepeat: GCM of zeroes is the key stream. No two of (epoch, salt, number) may share one.
func TestStreamsNeverRepeat(t *testing.T) {
	s, k := made(t, keyFile(t, 7))
	_, k = rotated(t, s, k)
	seen := map[string]string{}
	for _, id := range k.Epochs() {
		for salt := byte(1); salt < 20; salt++ {
			for _, n := range []uint64{0, 1, 2, 255, 256, 1 << 32, 1<<64 - 1} {
				name := fmt.Sprint(id, salt, n)
				stream := string(fileOf(t, k, id, salt).Seal(nil, make([]byte, 32), nil, n)[:32])
				if other, ok := seen[stream]; ok {
					t.Fatalf("%s and %s have the same stream", name, other)
				}
				seen[stream] = name
			}
		}
	}
}

func TestDerivedKeysDiffer(t *testing.T) {
	s, k := made(t, keyFile(t, 7))
	_, k = rotated(t, s, k)
	seen := map[string]bool{string(k.HashSecret()): true, string(k.kek[:]): true, string(k.hash[:]): true}
	for _, id := range []uint32{1, 2} {
		meta, err := k.MetaKey(id)
		if err != nil || len(meta) != 32 {
			t.Fatalf("%x, %v", meta, err)
		}
		seen[string(meta)], seen[string(k.epochs[id][:])] = true, true
	}
	if len(seen) != 7 {
		t.Fatalf("%d different keys of 7", len(seen))
	}
}

func TestNewFilesNeverShareAKey(t *testing.T) {
	_, k := made(t, keyFile(t, 7))
	seen := map[[32]byte]bool{}
	for range 100 {
		f, err := k.NewFile()
		if err != nil || f.KeyID() != 1 || seen[f.Salt()] {
			t.Fatalf("file %v: %v", f, err)
		}
		seen[f.Salt()] = true
		again, err := k.File(f.KeyID(), f.Salt())
		if err != nil {
			t.Fatal(err)
		}
		if b, err := again.Open(nil, f.Seal(nil, []byte("x"), nil, 0), nil, 0); err != nil || string(b) != "x" {
			t.Fatalf("%q, %v", b, err)
		}
	}
}

func TestUnknownEpochIsDeniedByName(t *testing.T) {
	_, k := made(t, keyFile(t, 7))
	for _, id := range []uint32{0, 2, 1 << 31} {
		_, err := k.File(id, [32]byte{1})
		mustBe(t, err, errs.Denied)
		if want := fmt.Sprintf("epoch %d;", id); !bytes.Contains([]byte(err.Error()), []byte(want)) {
			t.Fatalf("%v does not name %s", err, want)
		}
		_, err = k.MetaKey(id)
		mustBe(t, err, errs.Denied)
	}
	_, err := k.File(1, [32]byte{})
	mustBe(t, err, errs.Invalid)
}

func TestWipedKeysGiveNothing(t *testing.T) {
	_, k := made(t, keyFile(t, 7))
	one := k.epochs[1]
	k.Wipe()
	_, err := k.NewFile()
	mustBe(t, err, errs.Denied)
	_, err = k.MetaKey(1)
	mustBe(t, err, errs.Denied)
	if k.HashSecret() != nil || k.Newest() != 0 || len(k.Epochs()) != 0 || *one != (key{}) || k.kek != (key{}) || k.hash != (key{}) {
		t.Fatal("keys are left")
	}
	k.Wipe()
}

func TestReplaceTakesOverARotation(t *testing.T) {
	s, k := made(t, keyFile(t, 7))
	_, next := rotated(t, s, k)
	k.Replace(next)
	mustSame(t, k, next)
	next.Wipe() // it shares nothing
	fileOf(t, k, 1, 1)
	fileOf(t, k, 2, 1)
	k.Replace(k)
	fileOf(t, k, 2, 1)
}

// Run with -race.
func TestKeysAndFilesAreUsedConcurrently(t *testing.T) {
	s, k := made(t, keyFile(t, 7))
	_, next := rotated(t, s, k)
	f := fileOf(t, k, 1, 1)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 50 {
				n := uint64(g*50 + i)
				if b, err := f.Open(nil, f.Seal(nil, []byte("x"), nil, n), nil, n); err != nil || string(b) != "x" {
					t.Errorf("record %d: %q, %v", n, b, err)
				}
				if _, err := k.NewFile(); err != nil {
					t.Error(err)
				}
				k.HashSecret()
			}
		})
	}
	wg.Go(func() { k.Replace(next) })
	wg.Wait()
}

func TestSealAndOpenDoNotAllocate(t *testing.T) {
	_, k := made(t, keyFile(t, 7))
	f := fileOf(t, k, 1, 1)
	plain, aad := make([]byte, 64<<10), make([]byte, 64)
	sealed, out := make([]byte, 0, len(plain)+Overhead), make([]byte, 0, len(plain))
	n := testing.AllocsPerRun(100, func() {
		sealed = f.Seal(sealed[:0], plain, aad, 1)
		if _, err := f.Open(out, sealed, aad, 1); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Fatalf("%v allocations", n)
	}
}
