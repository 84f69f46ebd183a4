package snapshotchain

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/keyring"
	"livemount/snapshotchain/chunkstore"
)

// Init makes an encrypted store in an empty folder. Without one of the secrets in its slots nobody reads it again. Exists when
// there is a store already: encryption is chosen when it is made.
func Init(opts Options, first keyring.NewSlot) error {
	opts.setDefaults()
	if entries, err := os.ReadDir(opts.Dir); err == nil && len(entries) > 0 {
		return errs.WithTry(errs.New(errs.Exists, "%s is not empty: a store is encrypted when it is made, or never", opts.Dir), "another folder")
	}
	lock, err := takeLock(opts.Dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	f := formatFile{Format: FormatVersion, Created: opts.Clock.Now().UTC()}
	rand.Read(f.id[:]) // never fails
	if first.Created.IsZero() {
		first.Created = f.Created
	}
	slots, keys, err := keyring.Create(f.id, first)
	if err != nil {
		return err
	}
	keys.Wipe()
	f.slots = slots
	return writeFormat(opts.Dir, &f)
}

// formatCopy is a second FORMAT, of encrypted stores: the keys are there.
const formatCopy = "FORMAT.copy"

// parseFormat checks what a FORMAT says.
func parseFormat(path string, b []byte) (*formatFile, error) {
	var f formatFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, errs.New(errs.Corrupt, "%s: %w", path, err)
	}
	if f.Format > FormatVersion {
		return nil, errs.WithTry(
			errs.New(errs.Newer, "%s: format %d; this version knows %d", path, f.Format, FormatVersion), "install the newer livemountd")
	}
	if err := f.decode(); err != nil {
		return nil, errs.New(errs.Corrupt, "%s: %w", path, err)
	}
	return &f, nil
}

// readFormat reads a FORMAT: Corrupt when it is bad, Newer when a newer version wrote it.
func readFormat(path string) (*formatFile, error) {
	b, err := vfs.ReadChecked(vfs.OS{}, path, 1<<20)
	if err != nil {
		return nil, err
	}
	return parseFormat(path, b)
}

// writeFormat makes FORMAT durable; of an encrypted store first its copy.
func writeFormat(dir string, f *formatFile) error {
	f.Store = f.id.String()
	if f.slots != nil {
		f.Serial++
		var err error
		if f.Encryption, err = json.Marshal(f.slots); err != nil {
			return err
		}
	}
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	if f.slots != nil {
		if err := vfs.WriteChecked(vfs.OS{}, filepath.Join(dir, formatCopy), b); err != nil {
			return err
		}
	}
	return vfs.WriteChecked(vfs.OS{}, filepath.Join(dir, "FORMAT"), b)
}

// bestFormat reads FORMAT and its copy: the later of two that differ because a crash came between them. differ says that
// they must be written again.
func bestFormat(dir string) (f *formatFile, differ bool, err error) {
	f, err = readFormat(filepath.Join(dir, "FORMAT"))
	if errs.Is(err, errs.Newer) {
		return nil, false, err
	}
	other, oerr := readFormat(filepath.Join(dir, formatCopy))
	switch {
	case oerr != nil:
		return f, f != nil && f.slots != nil, err
	case err != nil || other.Serial > f.Serial:
		return other, true, nil
	}
	return f, other.Serial != f.Serial, nil
}

// unlock opens the keys of an encrypted store.
func (s *Store) unlock() error {
	switch {
	case s.format.slots == nil && s.opts.Secret != nil:
		return errs.WithTry(errs.New(errs.Invalid, "store %s is not encrypted, and a key was given", s.opts.Dir), "livemountd without it")
	case s.format.slots == nil || s.opts.Keys != nil:
		return nil
	case s.opts.Secret == nil:
		return errs.WithTry(errs.New(errs.Denied, "store %s is encrypted", s.opts.Dir), "livemountd --key-file FILE, or --passphrase-file FILE")
	}
	keys, err := s.format.slots.Open(s.id, *s.opts.Secret)
	if err != nil {
		return err
	}
	s.opts.Keys = keys
	return nil
}

// Keys are the keys of an encrypted store, for what others keep beside it; nil when it is not encrypted.
func (s *Store) Keys() *keyring.Keys { return s.opts.Keys }

// KeySlots returns who can open the store, and since when there are which keys. Invalid when it is not encrypted.
func (s *Store) KeySlots() ([]keyring.SlotInfo, []keyring.EpochInfo, error) {
	s.keyMu.Lock()
	defer s.keyMu.Unlock()
	if s.format == nil || s.format.slots == nil {
		return nil, nil, errs.New(errs.Invalid, "the store is not encrypted")
	}
	return s.format.slots.List(), s.format.slots.Epochs(), nil
}

// changeSlots makes other slots durable, and then uses keys, if there are others.
func (s *Store) changeSlots(change func(*keyring.Slots) (*keyring.Slots, *keyring.Keys, error)) error {
	s.keyMu.Lock()
	defer s.keyMu.Unlock()
	if s.format == nil || s.format.slots == nil {
		return errs.New(errs.Invalid, "the store is not encrypted")
	}
	if err := s.opts.AdmitCommit(); err != nil {
		return err
	}
	slots, keys, err := change(s.format.slots)
	if err != nil {
		return err
	}
	next := *s.format
	next.slots = slots
	if err := writeFormat(s.opts.Dir, &next); err != nil {
		return err
	}
	s.format = &next
	if keys != nil {
		s.opts.Keys.Replace(keys)
	}
	return nil
}

// AddKey lets another secret open the store.
func (s *Store) AddKey(_ context.Context, n keyring.NewSlot) (id keyring.SlotID, err error) {
	if n.Created.IsZero() {
		n.Created = s.now()
	}
	err = s.changeSlots(func(old *keyring.Slots) (*keyring.Slots, *keyring.Keys, error) {
		var slots *keyring.Slots
		var err error
		slots, id, err = old.Add(s.opts.Keys, n)
		return slots, nil, err
	})
	return id, err
}

// RemoveKey keeps a secret from opening the store, and replaces the keys, so that a copy of the old FORMAT opens nothing that is
// written from now on. The last one stays: Invalid.
func (s *Store) RemoveKey(_ context.Context, id keyring.SlotID) error {
	return s.changeSlots(func(old *keyring.Slots) (*keyring.Slots, *keyring.Keys, error) {
		slots, err := old.Remove(id)
		if err != nil {
			return nil, nil, err
		}
		return slots.Rotate(s.opts.Keys, s.now())
	})
}

// RotateKeys lets new files have new keys. The secrets stay what they are.
func (s *Store) RotateKeys(context.Context) error {
	return s.changeSlots(func(old *keyring.Slots) (*keyring.Slots, *keyring.Keys, error) {
		return old.Rotate(s.opts.Keys, s.now())
	})
}

func (s *Store) now() time.Time { return s.opts.Clock.Now().UTC() }

// storeOf finds out which store containers belong to.
func (s *Store) storeOf() (chunkstore.StoreID, error) {
	id, encrypted, err := chunkstore.FindStore(s.opts.FS, s.opts.Containers)
	if err == nil && encrypted {
		err = errs.WithTry(errs.New(errs.Corrupt, "FORMAT and FORMAT.copy of the encrypted store %s are lost, and its keys with them", s.opts.Dir),
			"a copy of one of these files in its place")
	}
	return id, err
}
