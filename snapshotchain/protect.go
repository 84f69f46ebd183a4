package snapshotchain

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"livemount/internal/errs"
)

// Guard is what keeps a point from being expired.
type Guard struct {
	Holds []Hold    `json:"holds,omitempty"`
	Until time.Time `json:"until,omitzero"` // locked, by the store's clock
}

// Hold keeps a point until it is released.
type Hold struct {
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
}

func (g Guard) empty() bool { return len(g.Holds) == 0 && g.Until.IsZero() }

// pointKey names a point by what its record has as its key.
type pointKey struct {
	vm      VMID
	ordinal uint64
}

// maxReason bounds the text of a hold, in bytes; maxHolds how many a point has.
const (
	maxReason = 1000
	maxHolds  = 100
)

// GuardOf returns what keeps a point from being expired.
func (s *Store) GuardOf(p *Point) Guard {
	s.mu.RLock()
	defer s.mu.RUnlock()
	g := s.cat.guards[pointKey{p.VM, p.Ordinal}]
	g.Holds = slices.Clone(g.Holds)
	return g
}

// Hold keeps a point from being expired until it is released. Exists when it is held for the same reason.
func (s *Store) Hold(ctx context.Context, p *Point, reason string) error {
	if reason == "" || len(reason) > maxReason || strings.ContainsFunc(reason, isControl) {
		return errs.New(errs.Invalid, "a hold needs a reason of up to %d bytes without control characters", maxReason)
	}
	return s.guard(ctx, p, func(g Guard) (*guardChange, error) {
		for _, h := range g.Holds {
			if h.Reason == reason {
				return nil, errs.New(errs.Exists, "point %s is held already: %s", p.ID, reason)
			}
		}
		if len(g.Holds) >= maxHolds {
			return nil, errs.New(errs.Invalid, "point %s has %d holds already", p.ID, maxHolds)
		}
		return &guardChange{Hold: &Hold{Reason: reason, Since: s.opts.Clock.Now().UTC().Round(0)}}, nil
	})
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// Release ends the holds of a point, or the one with that reason. NotFound when there is none.
func (s *Store) Release(ctx context.Context, p *Point, reason string) error {
	return s.guard(ctx, p, func(g Guard) (*guardChange, error) {
		found := slices.ContainsFunc(g.Holds, func(h Hold) bool { return reason == "" || h.Reason == reason })
		if !found {
			return nil, errs.New(errs.NotFound, "point %s has no such hold", p.ID)
		}
		return &guardChange{Release: true, Reason: reason}, nil
	})
}

// Lock keeps a point from being expired, by whatever command, until the store's clock reads until. It can be made
// longer and never shorter: Denied.
func (s *Store) Lock(ctx context.Context, p *Point, until time.Time) error {
	until = until.UTC().Round(0)
	return s.guard(ctx, p, func(g Guard) (*guardChange, error) {
		now, _ := s.clock.now()
		switch {
		case until.Before(g.Until):
			return nil, errs.New(errs.Denied, "point %s is locked until %s: a lock is never made shorter", p.ID, g.Until.Format(time.RFC3339))
		case !until.After(now):
			return nil, errs.New(errs.Invalid, "%s is past by the store's clock", until.Format(time.RFC3339))
		case until.After(now.AddDate(maxLockYears, 0, 0)):
			return nil, errs.New(errs.Invalid, "%s is more than %d years ahead, and a lock cannot be taken back", until.Format(time.RFC3339), maxLockYears)
		}
		return &guardChange{Until: until}, nil
	})
}

// maxLockYears keeps a slip of the keyboard from locking for ever.
const maxLockYears = 100

// guard records what change wants of the guard of a point.
func (s *Store) guard(ctx context.Context, p *Point, change1 func(Guard) (*guardChange, error)) error {
	s.commit.Lock()
	defer s.commit.Unlock()
	if err := s.isThere(ctx, p); err != nil {
		return fmt.Errorf("point %s: %w", p.ID, err)
	}
	c, err := change1(s.GuardOf(p))
	if err != nil {
		return err
	}
	c.VM, c.Ordinal, c.Point = p.VM, p.Ordinal, p.ID
	_, err = s.recordLocked(ctx, &change{Guard: c})
	return err
}

// applyGuard changes what guards a point.
func (c *catalog) applyGuard(p *puts, g *guardChange) {
	key := pointKey{g.VM, g.Ordinal}
	now := c.guards[key]
	switch {
	case g.Hold != nil:
		now.Holds = append(slices.Clone(now.Holds), *g.Hold)
	case g.Release:
		now.Holds = slices.DeleteFunc(slices.Clone(now.Holds), func(h Hold) bool { return g.Reason == "" || h.Reason == g.Reason })
	case g.Until.After(now.Until):
		now.Until = g.Until
	}
	c.putGuard(p, key, now)
}

func (c *catalog) putGuard(p *puts, key pointKey, g Guard) {
	var before, after []byte
	if old, ok := c.guards[key]; ok {
		before = mustJSON(&guardRecord{key.vm, key.ordinal, old})
	}
	if g.empty() {
		delete(c.guards, key)
	} else {
		c.guards[key] = g
		after = mustJSON(&guardRecord{key.vm, key.ordinal, g})
	}
	if before != nil || after != nil {
		p.set(&c.root.Guards, keyGuard(key), before, after)
	}
}

// guardRecord is what Badger has of a guard.
type guardRecord struct {
	VM      VMID   `json:"vm"`
	Ordinal uint64 `json:"ordinal"`
	Guard
}

// why says what keeps a point from being expired, nil when nothing does.
func (s *Store) why(p *Point) error {
	g := s.GuardOf(p)
	if now, _ := s.clock.now(); now.Before(g.Until) {
		return errs.New(errs.Denied, "point %s is locked until %s (it is %s by the store's clock)", p.ID, g.Until.Format(time.RFC3339), now.Format(time.RFC3339))
	}
	if len(g.Holds) > 0 {
		vm, _ := s.VMByID(p.VM)
		return errs.WithTry(errs.New(errs.Busy, "point %s is held: %s", p.ID, g.Holds[0].Reason), "mountctl release %s@id:%s", vm.Name, p.ID)
	}
	if list := s.pins.reasons(disksAt(p)); len(list) > 0 {
		slices.Sort(list)
		return errs.New(errs.Busy, "point %s is in use: %s", p.ID, strings.Join(slices.Compact(list), ", "))
	}
	return nil
}

// Expirable says why a point cannot be expired now: Denied while it is locked, Busy while it is held or in use.
func (s *Store) Expirable(p *Point) error { return s.why(p) }
