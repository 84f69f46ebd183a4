package snapshotchain

import (
	"context"
	"fmt"
	"strings"

	"livemount/internal/errs"
)

// Expire makes points of a VM invisible, all of them or none. Later points, branches and mounts read on as before;
// what nobody needs any more is taken away by Collect. NotFound when one of them is not there; Denied, Busy: see
// Expirable.
func (s *Store) Expire(ctx context.Context, vm string, ids ...PointID) error {
	gone := map[PointID]bool{}
	for _, id := range ids {
		gone[id] = true
	}
	s.commit.Lock()
	defer s.commit.Unlock()
	if err := s.dropLocked(ctx, vm, gone, false); err != nil {
		return fmt.Errorf("expire points of %s: %w", vm, err)
	}
	return nil
}

// Remove makes a VM with all its points and branches invisible. Its name can be used again, by a VM that has
// nothing of it. Busy while a draft of it is open; Denied, Busy: see Expirable.
func (s *Store) Remove(ctx context.Context, vm string) error {
	names, err := s.family(vm)
	if err != nil {
		return err
	}
	release, err := s.reserveAll(names)
	if err != nil {
		return err
	}
	defer release()
	s.commit.Lock()
	defer s.commit.Unlock()
	if err := s.noBranchBegins(vm); err != nil {
		return err
	}
	if err := s.noneIsKept(ctx, names); err != nil {
		return fmt.Errorf("remove %s: %w", vm, err)
	}
	for i := len(names) - 1; i >= 0; i-- { // branches first, so that none is left without its VM
		if err := s.dropLocked(ctx, names[i], nil, true); err != nil {
			return fmt.Errorf("remove %s: %w", names[i], err)
		}
	}
	return nil
}

// noneIsKept is an error when a point of one of the VMs cannot be expired.
func (s *Store) noneIsKept(ctx context.Context, names []string) error {
	for _, name := range names {
		vm, err := s.VM(name)
		if err != nil {
			return err
		}
		points, err := s.Points(ctx, &vm)
		if err != nil {
			return err
		}
		for i := range points {
			if err := s.why(&points[i]); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

// Rename gives a VM another name; its branches keep theirs behind it.
func (s *Store) Rename(ctx context.Context, vm, name string) error {
	if err := CheckVMName(name); err != nil {
		return err
	}
	names, err := s.family(vm)
	if err != nil || name == vm {
		return err
	}
	release, err := s.reserveAll(append(names, name))
	if err != nil {
		return err
	}
	defer release()
	s.commit.Lock()
	defer s.commit.Unlock()
	if err := s.noBranchBegins(vm); err != nil {
		return err
	}
	if _, err := s.VM(name); err == nil {
		return errs.New(errs.Exists, "rename %s: there is a VM named %s", vm, name)
	}
	c := &nameChange{Names: map[VMID]string{}}
	for _, old := range names {
		v, err := s.VM(old)
		if err != nil {
			return err
		}
		c.Names[v.ID] = name + strings.TrimPrefix(old, vm)
	}
	_, err = s.recordLocked(ctx, &change{Name: c})
	return err
}

// family returns the name of a VM and those of its branches.
func (s *Store) family(name string) ([]string, error) {
	vm, err := s.VM(name)
	if err != nil {
		return nil, err
	}
	names := []string{name}
	for _, v := range s.VMs() {
		if v.Of == vm.ID {
			names = append(names, v.Name)
		}
	}
	return names, nil
}

// noBranchBegins is Busy while a draft of a branch of the VM is open, which is not there before it is sealed.
func (s *Store) noBranchBegins(name string) error {
	vm, err := s.VM(name)
	if err != nil {
		return err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, o := range s.cat.drafts {
		if o.Of == vm.ID {
			return errs.WithTry(errs.New(errs.Busy, "a commit to %s is running", o.Name), "mountctl jobs")
		}
	}
	return nil
}

func (s *Store) reserveAll(names []string) (release func(), err error) {
	var held []string
	release = func() {
		for _, n := range held {
			s.unreserve(n)
		}
	}
	for _, n := range names {
		if err := s.reserve(n); err != nil {
			release()
			return nil, err
		}
		held = append(held, n)
	}
	return release, nil
}

// dropLocked records that points, or all of them, are gone. The caller holds commit.
func (s *Store) dropLocked(ctx context.Context, name string, gone map[PointID]bool, whole bool) error {
	vm, err := s.VM(name)
	if err != nil {
		return err
	}
	points, err := s.Points(ctx, &vm)
	if err != nil {
		return err
	}
	c := &dropChange{VM: vm.ID, Whole: whole}
	var sum digest
	var going []diskAt
	for i := range points {
		p := &points[i]
		d := entryDigest(keyPoint(vm.ID, p.Ordinal), mustJSON(p))
		sum = sum.xor(d)
		if !whole && !gone[p.ID] {
			c.Latest, c.Time = p.ID, p.Time
			continue
		}
		if err := s.why(p); err != nil {
			return err
		}
		going = append(going, disksAt(p)...)
		dropped := droppedPoint{Ordinal: p.Ordinal, Digest: d}
		for j := range p.Disks {
			dropped.Data += p.Disks[j].DataBytes
		}
		c.Points = append(c.Points, dropped)
	}
	if sum != vm.Sum {
		return errs.New(errs.Corrupt, "records of the points of %s do not add up", name)
	}
	if !whole && len(c.Points) != len(gone) {
		return errs.WithTry(errs.New(errs.NotFound, "a point is not there"), "mountctl points %s", name)
	}
	if !s.pins.leave(going) { // somebody was faster
		return errs.WithTry(errs.New(errs.Busy, "a point of %s has just come into use", name), "the same command again")
	}
	defer s.pins.stay(going)
	return s.recordDrop(ctx, &vm, c)
}

// dropAtOnce bounds a transaction: more points go in several, the oldest first.
const dropAtOnce = 5000

func (s *Store) recordDrop(ctx context.Context, vm *VM, c *dropChange) error {
	for len(c.Points) > dropAtOnce {
		part := *c
		part.Points, part.Whole = c.Points[:dropAtOnce], false
		part.Latest, part.Time = vm.Latest, vm.Time // the oldest go first
		if _, err := s.recordLocked(ctx, &change{Drop: &part}); err != nil {
			return err
		}
		c.Points = c.Points[dropAtOnce:]
	}
	_, err := s.recordLocked(ctx, &change{Drop: c})
	return err
}
