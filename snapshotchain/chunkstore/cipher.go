package chunkstore

import (
	"context"
	"encoding/binary"

	"livemount/internal/errs"
	"livemount/keyring"
)

// Records of an encrypted store are sealed with AES-256-GCM under a key of their file's own, with the slot as nonce. A
// slot is sealed once: a container that was cut, after a failed write, an aborted draft or a crash, is never appended to again,
// and one that is written anew is another file.

// newSealer makes the key of a new file, nil when the store is not encrypted, and notes it in the header.
func (s *Store) newSealer(h *header) (*keyring.File, error) {
	if s.opts.Keys == nil {
		return nil, nil
	}
	f, err := s.opts.Keys.NewFile()
	if err != nil {
		return nil, err
	}
	h.keyID, h.salt = f.KeyID(), f.Salt()
	return f, nil
}

// overhead is how much longer a payload is stored than it is.
func (s *Store) overhead() int {
	if s.opts.Keys == nil {
		return 0
	}
	return keyring.Overhead
}

// binding appends what is authenticated with the payload of a record, besides it: where it belongs, and all of its header that
// says something about it.
func binding(dst []byte, store StoreID, id ContainerID, r *record) []byte {
	le := binary.LittleEndian
	dst = append(dst, store[:]...)
	dst = le.AppendUint64(dst, uint64(id))
	dst = append(dst, byte(r.kind), byte(r.codec))
	dst = le.AppendUint32(dst, r.slot)
	dst = le.AppendUint32(dst, uint32(r.rawLen))
	dst = append(dst, r.id[:]...)
	return append(dst, r.aux...)
}

// sealRecord encrypts the payload of a record into buf.
func sealRecord(f *keyring.File, h *header, r *record, buf, bound []byte) (payload, newBound []byte) {
	bound = binding(bound[:0], h.store, h.id, r)
	r.flags |= flagEncrypted
	return f.Seal(buf[:0], r.payload, bound, uint64(r.slot)), bound
}

// unseal decrypts the payload of a record of c, in its place when inPlace. In an encrypted store a record that is not
// encrypted is a forgery.
func (s *Store) unseal(ctx context.Context, c *container, r *record, inPlace bool) error {
	if encrypted := r.flags&flagEncrypted != 0; encrypted != (s.opts.Keys != nil) {
		if encrypted {
			return errs.New(errs.Denied, "record of container %s is encrypted", c.id)
		}
		return errs.New(errs.Corrupt, "record of container %s is not encrypted", c.id)
	}
	if s.opts.Keys == nil {
		return nil
	}
	f, err := s.sealerOf(ctx, c)
	if err != nil {
		return err
	}
	var dst []byte
	if inPlace {
		dst = r.payload[:0]
	}
	r.payload, err = f.Open(dst, r.payload, binding(nil, s.opts.Store, c.id, r), uint64(r.slot))
	return err
}

// sealerOf returns the key of a container's file, of which the header and the footer have the salt.
func (s *Store) sealerOf(ctx context.Context, c *container) (*keyring.File, error) {
	c.mu.Lock()
	f := c.sealer
	c.mu.Unlock()
	if f != nil {
		return f, nil
	}
	keyID, salt, err := s.saltOf(ctx, c)
	if err != nil {
		return nil, err
	}
	if f, err = s.opts.Keys.File(keyID, salt); err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.sealer = f
	c.mu.Unlock()
	return f, nil
}

func (s *Store) saltOf(ctx context.Context, c *container) (uint32, [32]byte, error) {
	h, err := s.containerHeader(ctx, c)
	if err == nil && h.id == c.id && h.keyID != 0 {
		return h.keyID, h.salt, nil
	}
	if err == nil {
		err = errs.New(errs.Corrupt, "header of container %s has no key", c.id)
	}
	file, ferr := s.files.acquire(ctx, c.path)
	if ferr != nil {
		return 0, [32]byte{}, missing(c, ferr)
	}
	defer file.release()
	size, ferr := file.Size()
	if ferr != nil {
		return 0, [32]byte{}, ferr
	}
	if t, terr := readTrailer(file, size); terr == nil && t.id == c.id && t.keyID != 0 {
		return t.keyID, t.salt, nil
	}
	return 0, [32]byte{}, err
}
