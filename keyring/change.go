package keyring

import (
	"crypto/rand"
	"fmt"
	"slices"
	"time"

	"livemount/internal/errs"
)

// NewSlot is what a slot is made of.
type NewSlot struct {
	Secret  Secret
	Label   string    // for people: at most 64 bytes, printable
	Created time.Time // now
	Argon2  Argon2    // cost of a passphrase; zero: DefaultArgon2
}

// Create makes the keys of a new store, with epoch 1 and one slot. Write the document before the keys are
// used. A secret, label or cost that cannot be is Invalid.
func Create(store [16]byte, first NewSlot) (*Slots, *Keys, error) {
	if err := first.complete(); err != nil {
		return nil, nil, err
	}
	return create(random{rand.Reader}, store, first)
}

func create(r random, store [16]byte, first NewSlot) (*Slots, *Keys, error) {
	one := r.key()
	k := &Keys{store: store, kek: r.key(), hash: r.key(), epochs: map[uint32]*key{1: &one}, newest: 1}
	s := &Slots{}
	s.doc.lock(r, k, []EpochInfo{{1, stamp(first.Created)}})
	s, _, err := s.add(r, k, first)
	if err != nil {
		return nil, nil, err
	}
	return s, k, nil
}

// Add returns the document with one slot more, and its id. Keys that are not those of the document are
// Denied; a 33rd slot is Invalid.
func (s *Slots) Add(k *Keys, n NewSlot) (*Slots, SlotID, error) {
	if err := n.complete(); err != nil {
		return nil, SlotID{}, err
	}
	return s.add(random{rand.Reader}, k, n)
}

func (s *Slots) add(r random, k *Keys, n NewSlot) (*Slots, SlotID, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if err := s.fits(k); err != nil {
		return nil, SlotID{}, err
	}
	if len(s.doc.Slots) >= maxSlots {
		return nil, SlotID{}, errs.WithTry(errs.New(errs.Invalid, "a store has at most %d key slots", maxSlots), "mountctl key remove SLOT")
	}
	one, err := newSlot(r, k.store, s.freeID(r), n)
	if err == nil {
		err = one.give(k.store, k.kek)
	}
	if err != nil {
		return nil, SlotID{}, err
	}
	return s.with(append(slices.Clone(s.doc.Slots), one)), one.ID, nil
}

// Remove returns the document without a slot. NotFound when there is none of that id; Denied when no
// whole slot would be left. Copies of the document still have the slot, and it opens their keys: when its
// secret leaked, rotate before the document is written.
func (s *Slots) Remove(id SlotID) (*Slots, error) {
	rest := slices.Clone(s.doc.Slots)
	rest = slices.DeleteFunc(rest, func(o slot) bool { return o.ID == id })
	if len(rest) == len(s.doc.Slots) {
		return nil, errs.WithTry(errs.New(errs.NotFound, "no key slot %s", id), "mountctl key list")
	}
	if !slices.ContainsFunc(rest, func(o slot) bool { return o.damage() == nil }) {
		return nil, errs.WithTry(errs.New(errs.Denied, "key slot %s is the last that opens the store", id), "mountctl key add")
	}
	return s.with(rest), nil
}

// Rotate begins an epoch and replaces the KEK. It returns the new document, to be made durable first, and
// the keys to be used from then on (see Keys.Replace); the old ones go on opening the old epochs.
//
// All slots of the document open the new one. A slot that is damaged, or that was put there without the
// keys, is Corrupt and must be removed first: the KEK would go to whoever wrote it. After 1024 epochs
// Rotate is Invalid. Keys that are not those of the document are Denied.
func (s *Slots) Rotate(k *Keys, now time.Time) (*Slots, *Keys, error) {
	return s.rotate(random{rand.Reader}, k, now)
}

func (s *Slots) rotate(r random, k *Keys, now time.Time) (*Slots, *Keys, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if err := s.rotatable(k, now); err != nil {
		return nil, nil, err
	}
	next := k.successor(r)
	list := append(s.Epochs(), EpochInfo{next.newest, stamp(now)})
	rotated := s.with(slices.Clone(s.doc.Slots))
	rotated.doc.lock(r, next, list)
	for i := range rotated.doc.Slots {
		if err := rotated.doc.Slots[i].give(next.store, next.kek); err != nil {
			return nil, nil, fmt.Errorf("rotate: %w", err)
		}
	}
	return rotated, next, nil
}

func (s *Slots) rotatable(k *Keys, now time.Time) error {
	if err := s.fits(k); err != nil {
		return err
	}
	if err := checkTime(now); err != nil {
		return err
	}
	if len(s.doc.Epochs) >= maxEpochs || k.newest == 1<<32-1 {
		return errs.New(errs.Invalid, "a store has at most %d key epochs", maxEpochs)
	}
	for i := range s.doc.Slots {
		o := &s.doc.Slots[i]
		if err := o.trusted(k.store, k.kek); err != nil {
			return errs.WithTry(fmt.Errorf("rotate: %w", err), "mountctl key remove %s", o.ID)
		}
	}
	return nil
}

// fits says whether the document was written with these keys.
func (s *Slots) fits(k *Keys) error {
	if k.newest == 0 {
		return errWiped()
	}
	if !s.doc.locked(k.store, k.kek) {
		return errs.WithTry(errs.New(errs.Denied, "key slots: the keys at hand are not those of this document"), "open the store again")
	}
	return nil
}

// with is the document with other slots.
func (s *Slots) with(slots []slot) *Slots {
	next := &Slots{s.doc}
	next.doc.Slots = slots
	return next
}

func (s *Slots) freeID(r random) SlotID {
	for {
		id := SlotID(r.bytes(len(SlotID{})))
		if !slices.ContainsFunc(s.doc.Slots, func(o slot) bool { return o.ID == id }) {
			return id
		}
	}
}

// complete fills in what was left out and refuses what cannot be.
func (n *NewSlot) complete() error {
	if n.Secret.kind == "" {
		return errs.New(errs.Invalid, "key slot without a secret")
	}
	if err := checkLabel(n.Label); err != nil {
		return err
	}
	if err := checkTime(n.Created); err != nil {
		return err
	}
	if n.Argon2 == (Argon2{}) {
		n.Argon2 = DefaultArgon2()
	}
	return n.Argon2.checkNew()
}
