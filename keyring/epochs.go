package keyring

import (
	"crypto/hmac"
	"encoding/binary"
	"time"

	"livemount/internal/errs"
)

// lock writes epochs, hash and tag of a document that holds the keys of k, all wrapped by its KEK.
// created has the time of each epoch.
func (d *document) lock(r random, k *Keys, created []EpochInfo) {
	d.Version, d.Epochs = Version, make([]epoch, 0, len(created))
	under := wrapKey(k.kek)
	for _, e := range created {
		d.Epochs = append(d.Epochs, epoch{e.ID, e.Created, wrap(r, under, *k.epochs[e.ID], epochAAD(k.store, e.ID, e.Created))})
	}
	d.Hash = wrap(r, under, k.hash, hashAAD(k.store))
	d.Tag = d.tag(k.store, k.kek)
}

// unlock is the reverse: all keys, or Corrupt.
func (d *document) unlock(store [16]byte, kek key) (*Keys, error) {
	if !d.locked(store, kek) {
		return nil, errs.New(errs.Corrupt, "key slots: epochs were damaged or exchanged")
	}
	k := &Keys{store: store, kek: kek, epochs: make(map[uint32]*key, len(d.Epochs))}
	under, ok := wrapKey(kek), false
	for _, e := range d.Epochs {
		var one key
		if one, ok = unwrap(under, e.Key, epochAAD(store, e.ID, e.Created)); !ok {
			return nil, errs.New(errs.Corrupt, "key slots: key of epoch %d does not pass", e.ID)
		}
		k.epochs[e.ID], k.newest = &one, e.ID
	}
	if k.hash, ok = unwrap(under, d.Hash, hashAAD(store)); !ok {
		return nil, errs.New(errs.Corrupt, "key slots: secret of the chunk ids does not pass")
	}
	return k, nil
}

// locked says whether the document was written with this KEK.
func (d *document) locked(store [16]byte, kek key) bool {
	return hmac.Equal(d.Tag, d.tag(store, kek))
}

// tag keeps the list of epochs whole: without it the newest could be taken away, and new files would be
// written under a key that was meant to be past.
func (d *document) tag(store [16]byte, kek key) []byte {
	fields := [][]byte{store[:], number(uint32(d.Version)), d.Hash}
	for _, e := range d.Epochs {
		fields = append(fields, number(e.ID), timeBytes(e.Created), e.Key)
	}
	return mac(derive(kek[:], nil, "livemount 2026 tags"), bind("livemount 2026 epochs tag", fields...))
}

func wrapKey(kek key) key { return derive(kek[:], nil, "livemount 2026 wrap") }

func epochAAD(store [16]byte, id uint32, created time.Time) []byte {
	return bind("livemount 2026 epoch", store[:], number(id), timeBytes(created))
}

func hashAAD(store [16]byte) []byte { return bind("livemount 2026 hash", store[:]) }

func number(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
