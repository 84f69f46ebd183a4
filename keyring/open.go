package keyring

import (
	"fmt"
	"strings"

	"livemount/internal/errs"
)

// Open returns the keys. All slots of the secret's kind are tried, each passphrase slot at the cost of its
// Argon2id. A secret that opens none is Denied, and what would open the store is in the advice; when one
// of the slots is damaged as well, it is Corrupt: the secret may have been right.
func (s *Slots) Open(store [16]byte, secret Secret) (*Keys, error) {
	if secret.kind == "" {
		return nil, errs.WithTry(errs.New(errs.Invalid, "store is encrypted and no secret was given"), "%s", s.advice())
	}
	var damage error
	for i := range s.doc.Slots {
		o := &s.doc.Slots[i]
		if err := o.damage(); err != nil {
			damage = err
		}
		if o.Kind != secret.kind || o.shape() != nil {
			continue
		}
		kek, err := o.open(store, secret)
		if err == nil {
			return s.doc.unlock(store, kek)
		}
		if errs.Is(err, errs.Corrupt) {
			damage = err
		}
	}
	if damage != nil {
		return nil, errs.WithTry(fmt.Errorf("open key slots: %w", damage), "%s, or a copy of FORMAT from before the damage", s.advice())
	}
	return nil, errs.WithTry(errs.New(errs.Denied, "no slot is opened by this %s", secret.kind.name()), "%s", s.advice())
}

// advice says what opens the store.
func (s *Slots) advice() string {
	var ways []string
	for _, kind := range []Kind{KindPassphrase, KindKeyFile} {
		var slots []string
		for i := range s.doc.Slots {
			if o := &s.doc.Slots[i]; o.Kind == kind && o.damage() == nil {
				slots = append(slots, strings.TrimSpace(o.ID.String()+" "+o.Label))
			}
		}
		if slots != nil {
			ways = append(ways, fmt.Sprintf("the %s of slot %s", kind.name(), strings.Join(slots, ", ")))
		}
	}
	if ways == nil {
		return "no slot is whole"
	}
	return "give " + strings.Join(ways, ", or ")
}

func (k Kind) name() string {
	if k == KindKeyFile {
		return "key file"
	}
	return string(k)
}
