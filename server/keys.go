package server

import (
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"os"

	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/keyring"
	"livemount/server/api"
	"livemount/snapshotchain"
)

// maxSecret bounds a passphrase or a key file, in bytes.
const maxSecret = 64 << 10

// secret reads what opens an encrypted store; nil when nothing is set.
func (c *Config) secret() (*keyring.Secret, error) {
	switch {
	case c.KeyFile != "" && c.PassphraseFile != "":
		return nil, errs.New(errs.Invalid, "a key file and a passphrase file are set; one opens the store")
	case c.KeyFile != "":
		b, err := vfs.ReadFile(vfs.OS{}, c.KeyFile, maxSecret)
		if err != nil {
			return nil, err
		}
		s, err := keyring.KeyFile(b)
		return &s, err
	case c.PassphraseFile != "":
		b, err := vfs.ReadFile(vfs.OS{}, c.PassphraseFile, maxSecret)
		if err != nil {
			return nil, err
		}
		s, err := keyring.PassphraseLine(b)
		return &s, err
	}
	return nil, nil
}

// InitEncrypted makes an encrypted store. It makes the key file when that is missing, and reports that.
func InitEncrypted(c Config) (madeKey bool, err error) {
	if err := c.setDefaults(); err != nil {
		return false, err
	}
	if c.KeyFile != "" {
		if _, err := os.Stat(c.KeyFile); errors.Is(err, fs.ErrNotExist) {
			if err := vfs.WriteFile(vfs.OS{}, c.KeyFile, keyring.NewKeyFile()); err != nil {
				return false, err
			}
			madeKey = true
		}
	}
	secret, err := c.secret()
	if err == nil && secret == nil {
		err = errs.WithTry(errs.New(errs.Invalid, "an encrypted store needs a key"), "--key-file FILE (made when it is missing), or --passphrase-file FILE")
	}
	if err == nil {
		o := snapshotchain.Options{Dir: c.Data, FS: vfs.OS{}, Clock: clock.System{}, Log: slog.New(slog.DiscardHandler)}
		err = snapshotchain.Init(o, keyring.NewSlot{Secret: *secret, Label: "first"})
	}
	return madeKey, err
}

func (s *Server) getKeys(*http.Request) (int, any, error) {
	slots, epochs, err := s.store.KeySlots()
	if err != nil {
		return 0, nil, err
	}
	out := api.Keys{Slots: []api.KeySlot{}, Epochs: len(epochs)}
	for _, k := range slots {
		v := api.KeySlot{Slot: k.ID.String(), Kind: string(k.Kind), Label: k.Label, Created: k.Created}
		if k.Damage != nil {
			v.Damage = k.Damage.Error()
		}
		out.Slots = append(out.Slots, v)
	}
	for _, e := range epochs {
		out.Rotated = e.Created
	}
	return http.StatusOK, out, nil
}

func (s *Server) postKeyAdd(r *http.Request) (int, any, error) {
	var req api.KeyAddRequest
	if err := body(r, &req); err != nil {
		return 0, nil, err
	}
	make := keyring.KeyFile
	if req.Kind == string(keyring.KindPassphrase) {
		make = keyring.PassphraseLine
	} else if req.Kind != string(keyring.KindKeyFile) {
		return 0, nil, errs.New(errs.Invalid, "a key is a passphrase or a keyfile, not %q", req.Kind)
	}
	secret, err := make(req.Secret)
	if err != nil {
		return 0, nil, err
	}
	defer secret.Wipe()
	if _, err := s.store.AddKey(r.Context(), keyring.NewSlot{Secret: secret, Label: req.Label}); err != nil {
		return 0, nil, err
	}
	s.log.Info("key added", "label", req.Label)
	return s.getKeys(r)
}

func (s *Server) postKeyRemove(r *http.Request) (int, any, error) {
	id, err := keyring.ParseSlotID(r.PathValue("slot"))
	if err != nil {
		return 0, nil, err
	}
	if err := s.store.RemoveKey(r.Context(), id); err != nil {
		return 0, nil, err
	}
	s.log.Info("key removed, and keys of new files replaced", "slot", id.String())
	return s.getKeys(r)
}

func (s *Server) postKeyRotate(r *http.Request) (int, any, error) {
	if err := s.store.RotateKeys(r.Context()); err != nil {
		return 0, nil, err
	}
	s.log.Info("keys of new files replaced")
	return s.getKeys(r)
}
