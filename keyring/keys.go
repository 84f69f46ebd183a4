package keyring

import (
	"crypto/rand"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"livemount/internal/errs"
)

// Keys are the keys of an opened store, in memory. All methods may be called concurrently. However they
// are printed, no key shows.
type Keys struct {
	mu     sync.RWMutex // guards all below
	store  [16]byte
	kek    key
	hash   key
	epochs map[uint32]*key
	newest uint32 // 0: wiped
}

// HashSecret returns the 32 bytes from which the keys of page hashes and chunk ids are derived. It is the
// same in all epochs, so that what was stored before a rotation is still found. After Wipe it is nil.
func (k *Keys) HashSecret() []byte {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.newest == 0 {
		return nil
	}
	secret := derive(k.hash[:], nil, "livemount 2026 hash secret")
	return secret[:]
}

// MetaKey returns the 32-byte key for Badger in an epoch. Badger wraps its own data keys with it: use
// Newest for a new database, and for one that an older epoch opens write its key registry anew, or make
// it again from the containers. An epoch that is not known is Denied.
func (k *Keys) MetaKey(keyID uint32) ([]byte, error) {
	secret, err := k.epoch(keyID)
	if err != nil {
		return nil, err
	}
	meta := derive(secret[:], nil, "livemount 2026 metadata")
	return meta[:], nil
}

// Newest is the epoch of new files. After Wipe it is 0, which is none.
func (k *Keys) Newest() uint32 {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.newest
}

// Epochs lists the epochs whose files can be read, ascending.
func (k *Keys) Epochs() []uint32 {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return slices.Sorted(maps.Keys(k.epochs))
}

// NewFile returns the cipher of a file that does not exist yet: newest epoch, random salt. Both go into
// the file's header. A file that is written again, under whatever name, is a new file. Denied after Wipe.
func (k *Keys) NewFile() (*File, error) {
	var salt [saltBytes]byte
	rand.Read(salt[:]) // never fails
	return k.File(k.Newest(), salt)
}

// File returns the cipher of a file that has this epoch and salt in its header. An epoch that is not
// known is Denied. A salt of zeroes is Invalid: nobody drew it.
func (k *Keys) File(keyID uint32, salt [32]byte) (*File, error) {
	if salt == [32]byte{} {
		return nil, errs.New(errs.Invalid, "key of a file without a salt")
	}
	secret, err := k.epoch(keyID)
	if err != nil {
		return nil, err
	}
	return newFile(keyID, salt, derive(secret[:], salt[:], "livemount 2026 file")), nil
}

func (k *Keys) epoch(id uint32) (key, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.newest == 0 {
		return key{}, errWiped()
	}
	if one, ok := k.epochs[id]; ok {
		return *one, nil
	}
	return key{}, errs.WithTry(errs.New(errs.Denied, "no key of epoch %d; the newest known is %d", id, k.newest),
		"an older copy of FORMAT may be in place: put back the newest")
}

// Replace makes k the keys of a rotation. Call it when the document of the rotation is durable, not
// before: files of an epoch that no document knows are lost.
func (k *Keys) Replace(rotated *Keys) {
	rotated.mu.RLock()
	next := Keys{store: rotated.store, kek: rotated.kek, hash: rotated.hash, epochs: copied(rotated.epochs), newest: rotated.newest}
	rotated.mu.RUnlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.clear()
	k.store, k.kek, k.hash, k.epochs, k.newest = next.store, next.kek, next.hash, next.epochs, next.newest
}

// Wipe overwrites the keys; what needs one is Denied from then on. Best effort: the runtime may have
// copied them, and ciphers that were handed out go on working.
func (k *Keys) Wipe() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.clear()
}

// clear is called with mu held.
func (k *Keys) clear() {
	for _, one := range k.epochs {
		clear(one[:])
	}
	clear(k.kek[:])
	clear(k.hash[:])
	k.epochs, k.newest = nil, 0
}

// successor has all epochs and one more, and another KEK. It is called with mu held.
func (k *Keys) successor(r random) *Keys {
	one := r.key()
	next := &Keys{store: k.store, kek: r.key(), hash: k.hash, epochs: copied(k.epochs), newest: k.newest + 1}
	next.epochs[next.newest] = &one
	return next
}

func copied(epochs map[uint32]*key) map[uint32]*key {
	c := make(map[uint32]*key, len(epochs)+1)
	for id, one := range epochs {
		own := *one
		c[id] = &own
	}
	return c
}

// Format prints that there are keys, for all verbs.
func (k *Keys) Format(f fmt.State, _ rune) { io.WriteString(f, "keys") }

func errWiped() error { return errs.New(errs.Denied, "keys were wiped") }
