package snapshotchain

import (
	"context"

	"livemount/internal/errs"
)

// maxRules bounds the text of rules, in bytes.
const maxRules = 4096

// Rules returns the text of the retention rules of a VM, and whether they are its own. Id 0 is for VMs that have none.
func (s *Store) Rules(id VMID) (text string, own bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if text, own = s.cat.rules[id]; own {
		return text, true
	}
	if v := s.cat.vms[id]; v != nil && v.Of != 0 {
		return "", false // branches are made by hand, and go by hand, unless they have rules
	}
	return s.cat.rules[0], false
}

// SetRules gives a VM rules of its own, or with id 0 those that have none; "" takes them away. What the text means is
// the caller's matter.
func (s *Store) SetRules(ctx context.Context, id VMID, text string) error {
	if len(text) > maxRules {
		return errs.New(errs.Invalid, "rules of %d bytes", len(text))
	}
	s.commit.Lock()
	defer s.commit.Unlock()
	if id != 0 {
		if _, err := s.VMByID(id); err != nil {
			return err
		}
	}
	_, err := s.recordLocked(ctx, &change{Rules: &rulesChange{VM: id, Text: text}})
	return err
}

func (c *catalog) putRules(p *puts, id VMID, text string) {
	var before, after []byte
	if old, ok := c.rules[id]; ok {
		before = mustJSON(&rulesChange{id, old})
	}
	delete(c.rules, id)
	if text != "" {
		c.rules[id] = text
		after = mustJSON(&rulesChange{id, text})
	}
	if before != nil || after != nil {
		p.set(&c.root.Rules, keyRules(id), before, after)
	}
}
