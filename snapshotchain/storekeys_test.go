package snapshotchain

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/keyring"
)

func keyFileSecret(t *testing.T) keyring.Secret {
	t.Helper()
	s, err := keyring.KeyFile(keyring.NewKeyFile())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// encryptedStore makes an encrypted store with a point, and returns it closed.
func encryptedStore(t *testing.T) (Options, Point) {
	t.Helper()
	secret := keyFileSecret(t)
	o := Options{Dir: t.TempDir(), FS: vfs.OS{}, Clock: &clock.Fixed{T: time.Unix(1_800_000_000, 0)}, ContainerBytes: 256 << 10, Secret: &secret}
	if err := Init(o, keyring.NewSlot{Secret: secret, Label: "first", Created: time.Unix(1_800_000_000, 0)}); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, o)
	p := putPages(t, s, "secretname", false, 1, 2, 3)
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return o, p
}

func mustOpen(t *testing.T, o Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEncryptedStoreOpensWithItsKeyAlone(t *testing.T) {
	o, p := encryptedStore(t)
	for range 2 {
		s := mustOpen(t, o)
		if proof := proofOf(t, s, &p); len(proof.Bad) > 0 || proof.DataBytes == 0 {
			t.Errorf("%+v", proof)
		}
		s.Close(t.Context())
		if err := os.RemoveAll(filepath.Join(o.Dir, "meta")); err != nil { // made again of encrypted containers
			t.Fatal(err)
		}
	}
	none, other := o, o
	none.Secret = nil
	wrong := keyFileSecret(t)
	other.Secret = &wrong
	for what, o := range map[string]Options{"no key": none, "another key": other} {
		before := listing(t, o.Dir)
		if _, err := Open(t.Context(), o); !errs.Is(err, errs.Denied) {
			t.Errorf("%s: %v", what, err)
		}
		if after := listing(t, o.Dir); after != before {
			t.Errorf("%s changed something", what)
		}
	}
	if c, err := Check(t.Context(), o, CheckOptions{}); err != nil || len(c.Damage) > 0 {
		t.Errorf("%+v: %v", c, err)
	}
	// What is stored, and what it is called, is nowhere to be seen.
	_, raw := chunkOf(t, mustOpenPlain(t), 2)
	err := filepath.WalkDir(o.Dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, raw[100:200]) || bytes.Contains(b, []byte("secretname")) {
			t.Errorf("%s shows what is stored", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := Init(o, keyring.NewSlot{Secret: wrong}); !errs.Is(err, errs.Exists) {
		t.Errorf("made again: %v", err)
	}
}

func mustOpenPlain(t *testing.T) *Store {
	t.Helper()
	s := openAt(t, t.TempDir())
	t.Cleanup(func() { s.Close(t.Context()) })
	return s
}

func TestKeyOfAStoreThatIsNotEncryptedIsRefused(t *testing.T) {
	o, _ := stoppedStore(t)
	secret := keyFileSecret(t)
	o.Secret = &secret
	if _, err := Open(t.Context(), o); !errs.Is(err, errs.Invalid) {
		t.Error(err)
	}
}

// FORMAT may be lost, or its copy, or be older after a crash; when both are lost, nothing is written over.
func TestKeysSurviveTheLossOfOneCopy(t *testing.T) {
	o, p := encryptedStore(t)
	format, other := filepath.Join(o.Dir, "FORMAT"), filepath.Join(o.Dir, formatCopy)
	for _, lost := range []string{format, other} {
		if err := os.Remove(lost); err != nil {
			t.Fatal(err)
		}
		s := mustOpen(t, o)
		if proof := proofOf(t, s, &p); len(proof.Bad) > 0 {
			t.Errorf("%+v", proof)
		}
		s.Close(t.Context())
		if _, err := os.Stat(lost); err != nil {
			t.Errorf("%s was not written again: %v", lost, err)
		}
	}
	old, err := os.ReadFile(format)
	if err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, o)
	second := keyFileSecret(t)
	if _, err := s.AddKey(t.Context(), keyring.NewSlot{Secret: second, Label: "second"}); err != nil {
		t.Fatal(err)
	}
	s.Close(t.Context())
	if err := os.WriteFile(format, old, 0o600); err != nil { // the crash came behind the copy
		t.Fatal(err)
	}
	with := o
	with.Secret = &second
	mustOpen(t, with).Close(t.Context())
	for _, name := range []string{format, other} {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	before := listing(t, o.Dir)
	if _, err := Open(t.Context(), o); !errs.Is(err, errs.Corrupt) || !strings.Contains(err.Error(), "keys") {
		t.Errorf("without both: %v", err)
	}
	if after := listing(t, o.Dir); after != before {
		t.Errorf("without both something was written:\n%s%s", before, after)
	}
}

// Who was removed cannot read what is written afterwards, not even with a FORMAT of before; all that was there stays
// readable.
func TestRemovedKeyOpensNothingNew(t *testing.T) {
	o, p := encryptedStore(t)
	first := *o.Secret
	before, err := os.ReadFile(filepath.Join(o.Dir, "FORMAT"))
	if err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, o)
	second := keyFileSecret(t)
	if _, err := s.AddKey(t.Context(), keyring.NewSlot{Secret: second, Label: "second"}); err != nil {
		t.Fatal(err)
	}
	slots, _, err := s.KeySlots()
	if err != nil || len(slots) != 2 {
		t.Fatal(slots, err)
	}
	if err := s.RemoveKey(t.Context(), slots[0].ID); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveKey(t.Context(), slots[1].ID); err == nil {
		t.Error("the last key was removed")
	}
	if err := s.RotateKeys(t.Context()); err != nil {
		t.Fatal(err)
	}
	later := putPages(t, s, "web", false, 5)
	s.Close(t.Context())
	if _, err := Open(t.Context(), o); !errs.Is(err, errs.Denied) {
		t.Errorf("the removed key: %v", err)
	}
	o.Secret = &second
	s = mustOpen(t, o)
	for _, p := range []*Point{&p, &later} {
		if proof := proofOf(t, s, p); len(proof.Bad) > 0 {
			t.Errorf("%+v", proof)
		}
	}
	s.Close(t.Context())
	for _, name := range []string{"FORMAT", formatCopy} {
		if err := os.WriteFile(filepath.Join(o.Dir, name), before, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o.Secret = &first
	if s, err := Open(t.Context(), o); err == nil {
		if proof, err := s.Verify(t.Context(), &later.Disks[0], nil); err == nil && len(proof.Bad) == 0 {
			t.Error("a FORMAT of before opens what was written afterwards")
		}
		s.Close(t.Context())
	}
}

// After a rotation the metadata is still under the old key and is made again; but not when it knows more than the journal.
func TestRotationLosesNothingThatOnlyTheMetadataKnows(t *testing.T) {
	for _, gap := range []bool{false, true} {
		o, _ := encryptedStore(t)
		s := mustOpen(t, o)
		putPages(t, s, "secretname", false, 4)
		rotateAndClose(t, s)
		if gap {
			spoilJournal(t, o.Dir)
		}
		for range 2 {
			s = mustOpen(t, o)
			if n := pointsOf(t, s, "secretname"); n != 2 {
				t.Fatalf("gap %v: %d points", gap, n)
			}
			if damage, _ := s.Health(); len(damage) > 0 != gap {
				t.Errorf("gap %v: %q", gap, damage)
			}
			if err := s.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if names, err := filepath.Glob(filepath.Join(o.Dir, "meta.bad-*")); err != nil || len(names) > 0 {
			t.Errorf("%v: %v", names, err)
		}
	}
}

// Rot in Badger's registry of keys is no rotation, also when there was one before.
func TestBadKeyRegistryIsDamage(t *testing.T) {
	o, _ := encryptedStore(t)
	rotateAndClose(t, mustOpen(t, o))
	rebuilt := mustOpen(t, o)
	if damage, _ := rebuilt.Health(); len(damage) > 0 {
		t.Errorf("%q", damage)
	}
	if err := rebuilt.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(o.Dir, "meta", "KEYREGISTRY")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[20] ^= 1
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, o)
	damage, _ := s.Health()
	names, _ := filepath.Glob(filepath.Join(o.Dir, "meta.bad-*"))
	if n := pointsOf(t, s, "secretname"); n != 1 || len(damage) != 1 || len(names) != 1 {
		t.Errorf("%d points, damage %q, kept %v", n, damage, names)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// What is written after a rotation is under the new key at once, also in containers that were begun before.
func TestNothingIsSealedUnderTheOldKeyAfterARotation(t *testing.T) {
	o, _ := encryptedStore(t)
	s := mustOpen(t, o)
	defer s.Close(t.Context())
	putPages(t, s, "secretname", false, 5)
	before := keyIDs(t, o.Dir)
	if err := s.RotateKeys(t.Context()); err != nil {
		t.Fatal(err)
	}
	putPages(t, s, "secretname", false, 6)
	fresh := 0
	for name, id := range keyIDs(t, o.Dir) {
		if _, old := before[name]; !old {
			fresh++
			if id != 2 {
				t.Errorf("%s is under the key of epoch %d", name, id)
			}
		}
	}
	if fresh != 3 { // journal, map, data
		t.Errorf("%d new containers", fresh)
	}
}

// keyIDs are those in the headers of all containers.
func keyIDs(t *testing.T, dir string) map[string]uint32 {
	t.Helper()
	ids := map[string]uint32{}
	err := filepath.WalkDir(filepath.Join(dir, "containers"), func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err == nil && len(b) >= 128 {
			ids[path] = binary.LittleEndian.Uint32(b[44:])
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func rotateAndClose(t *testing.T, s *Store) {
	t.Helper()
	if err := s.RotateKeys(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func pointsOf(t *testing.T, s *Store, name string) int {
	t.Helper()
	vm, err := s.VM(name)
	if err != nil {
		t.Fatal(err)
	}
	points, err := s.Points(t.Context(), &vm)
	if err != nil {
		t.Fatal(err)
	}
	return len(points)
}

// spoilJournal spoils both records of the last change of each container of the journal.
func spoilJournal(t *testing.T, dir string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "containers", "journal", "*"))
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		end := len(b)
		for range 2 {
			if end = bytes.LastIndex(b[:end], []byte("LMR1")); end < 0 {
				t.Fatal("no record")
			}
			b[end+70] ^= 1
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
