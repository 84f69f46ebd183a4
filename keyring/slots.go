package keyring

import (
	"bytes"
	"encoding/json"
	"time"

	"livemount/internal/errs"
)

// Version is the version of the document that this code writes; it reads no newer one.
const Version = 1

// Bounds of a document.
const (
	maxSlots    = 32
	maxEpochs   = 1024
	maxDocument = 1 << 20 // bytes, as of DIR/FORMAT
)

// epoch is a repository key as it is stored.
type epoch struct {
	ID      uint32    `json:"id"` // ascending, from 1; the key id in the headers of files
	Created time.Time `json:"created"`
	Key     []byte    `json:"key"` // wrapped by the KEK
}

type document struct {
	Version int     `json:"version"`
	Slots   []slot  `json:"slots"`
	Epochs  []epoch `json:"epochs"`
	Hash    []byte  `json:"hash"` // secret of the chunk ids, wrapped by the KEK, the same for all epochs
	Tag     []byte  `json:"tag"`  // over version, epochs and hash
}

// Slots is the document in DIR/FORMAT, immutable. Nothing in it is secret, but without it or its secrets
// nobody reads the store again: keep copies.
type Slots struct{ doc document }

// SlotInfo describes a slot to people.
type SlotInfo struct {
	ID      SlotID
	Kind    Kind
	Label   string
	Created time.Time
	Argon2  *Argon2 // nil unless it is a passphrase
	Damage  error   // Corrupt when the slot is not as it was written; the others are not affected
}

// EpochInfo describes an epoch to people.
type EpochInfo struct {
	ID      uint32
	Created time.Time
}

// List returns the slots in the order in which they were added.
func (s *Slots) List() []SlotInfo {
	list := make([]SlotInfo, 0, len(s.doc.Slots))
	for i := range s.doc.Slots {
		o := &s.doc.Slots[i]
		info := SlotInfo{ID: o.ID, Kind: o.Kind, Label: o.Label, Created: o.Created, Damage: o.damage()}
		if o.Argon2 != nil {
			a := *o.Argon2
			info.Argon2 = &a
		}
		list = append(list, info)
	}
	return list
}

// Epochs returns the epochs, the newest last.
func (s *Slots) Epochs() []EpochInfo {
	list := make([]EpochInfo, 0, len(s.doc.Epochs))
	for _, e := range s.doc.Epochs {
		list = append(list, EpochInfo{e.ID, e.Created})
	}
	return list
}

// MarshalJSON returns the document.
func (s *Slots) MarshalJSON() ([]byte, error) { return json.Marshal(&s.doc) }

// Parse reads a document. Only what MarshalJSON writes passes, with any white space: unknown, repeated or
// differently spelt fields are Corrupt, as is all that is out of bounds; a higher version is Newer. A slot
// that is damaged is kept, List tells, so that the others still open the store.
func Parse(b []byte) (*Slots, error) {
	if len(b) > maxDocument {
		return nil, errs.New(errs.Corrupt, "key slots: %d bytes, more than %d", len(b), maxDocument)
	}
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, errs.New(errs.Corrupt, "key slots: %w", err)
	}
	if v.Version > Version {
		return nil, errs.WithTry(errs.New(errs.Newer, "key slots of version %d; this version knows %d", v.Version, Version),
			"install the newer livemountd")
	}
	s := &Slots{}
	if err := json.Unmarshal(b, &s.doc); err != nil {
		return nil, errs.New(errs.Corrupt, "key slots: %w", err)
	}
	if !canonical(b, s) {
		return nil, errs.New(errs.Corrupt, "key slots: not as this version writes them")
	}
	if err := s.doc.check(); err != nil {
		return nil, errs.New(errs.Corrupt, "key slots: %w", err)
	}
	return s, nil
}

// canonical says whether b is what s is written as. The JSON decoder alone takes much for the same:
// letter case, repeated fields, escapes.
func canonical(b []byte, s *Slots) bool {
	var compact bytes.Buffer
	want, err := s.MarshalJSON()
	return err == nil && json.Compact(&compact, b) == nil && bytes.Equal(compact.Bytes(), want)
}

func (d *document) check() error {
	switch {
	case d.Version != Version:
		return errs.New(errs.Invalid, "version %d", d.Version)
	case len(d.Slots) < 1 || len(d.Slots) > maxSlots:
		return errs.New(errs.Invalid, "%d slots, not 1 to %d", len(d.Slots), maxSlots)
	case len(d.Epochs) < 1 || len(d.Epochs) > maxEpochs:
		return errs.New(errs.Invalid, "%d epochs, not 1 to %d", len(d.Epochs), maxEpochs)
	case len(d.Hash) != wrapBytes || len(d.Tag) != tagBytes:
		return errs.New(errs.Invalid, "fields of wrong lengths")
	}
	if err := d.checkEpochs(); err != nil {
		return err
	}
	seen := map[SlotID]bool{}
	for i := range d.Slots {
		if seen[d.Slots[i].ID] {
			return errs.New(errs.Invalid, "slot %s is there twice", d.Slots[i].ID)
		}
		seen[d.Slots[i].ID] = true
	}
	return nil
}

func (d *document) checkEpochs() error {
	last := uint32(0)
	for _, e := range d.Epochs {
		if e.ID <= last {
			return errs.New(errs.Invalid, "epoch %d behind epoch %d", e.ID, last)
		}
		if len(e.Key) != wrapBytes {
			return errs.New(errs.Invalid, "epoch %d: key of %d bytes", e.ID, len(e.Key))
		}
		last = e.ID
	}
	return nil
}
