package snapshotchain

import (
	"encoding/json"

	"livemount/internal/errs"
	"livemount/internal/kv"
	"livemount/snapshotchain/chunkstore"
)

// loadCatalog reads the catalogue from Badger and checks it against the sums in the root. A store
// without a root is empty. Anything that does not agree is Corrupt.
func loadCatalog(db *kv.DB) (*catalog, error) {
	c := newCatalog()
	raw, err := db.Get(keyRoot())
	if err == nil {
		err = decode(raw, &c.root)
	}
	if err != nil && !errs.Is(err, errs.NotFound) {
		return nil, err
	}
	// Without a root there must be no records either: their sums are zero.
	l := &loader{db: db}
	l.set("v", c.root.VMs, func(b []byte) error {
		return into(b, func(v *VM) { c.vms[v.ID] = v })
	})
	l.set("g", c.root.Lineages, func(b []byte) error {
		return into(b, func(v *lineage) { c.lineages[v.ID] = v })
	})
	l.set("k", c.root.Containers, func(b []byte) error {
		return into(b, func(v *chunkstore.State) { c.containers[v.ID] = *v })
	})
	l.set("o", c.root.Drafts, func(b []byte) error {
		return into(b, func(v *openChange) { c.drafts[v.Draft] = v })
	})
	l.set("h", c.root.Guards, func(b []byte) error {
		return into(b, func(g *guardRecord) { c.guards[pointKey{g.VM, g.Ordinal}] = g.Guard })
	})
	l.set("t", c.root.Rules, func(b []byte) error {
		return into(b, func(r *rulesChange) { c.rules[r.VM] = r.Text })
	})
	return c, l.err
}

type loader struct {
	db  *kv.DB
	err error
}

// set loads the records of a prefix and compares them with the sum that covers them.
func (l *loader) set(prefix string, want digest, add func([]byte) error) {
	if l.err != nil {
		return
	}
	var got digest
	l.err = l.db.Each([]byte(prefix), func(key, val []byte, err error) error {
		if err != nil {
			return err
		}
		got = got.xor(entryDigest(key, val))
		return add(val)
	})
	if l.err == nil && got != want {
		l.err = errs.New(errs.Corrupt, "records %q do not add up: Badger lost some, or has old ones", prefix)
	}
}

func into[T any](b []byte, add func(*T)) error {
	var v T
	if err := decode(b, &v); err != nil {
		return err
	}
	add(&v)
	return nil
}

func decode(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return errs.New(errs.Corrupt, "metadata record: %w", err)
	}
	return nil
}
