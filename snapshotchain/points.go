package snapshotchain

import (
	"context"
	"fmt"

	"livemount/internal/errs"
	"livemount/snapshotchain/chunkstore"
)

// Points returns the points of a VM, oldest first. A record that Badger lost or spoiled is read from the
// journal instead. The list is shared and must not be changed. Busy when points came or went since vm was
// asked for.
func (s *Store) Points(ctx context.Context, vm *VM) ([]Point, error) {
	// The sum changes with the points, so a list that is kept under it is never out of date.
	return s.points.Get(ctx, pointsKey{vm.ID, vm.Sum}, func() ([]Point, error) { return s.loadPoints(ctx, vm) })
}

// PointsOf returns a VM as it is now, with its points.
func (s *Store) PointsOf(ctx context.Context, id VMID) (VM, []Point, error) {
	for {
		vm, err := s.VMByID(id)
		if err != nil {
			return VM{}, nil, err
		}
		points, err := s.Points(ctx, &vm)
		if !errs.Is(err, errs.Busy) { // it changed just now: once more
			return vm, points, err
		}
	}
}

type pointsKey struct {
	vm  VMID
	sum digest
}

func (s *Store) loadPoints(ctx context.Context, vm *VM) ([]Point, error) {
	list, err := s.readPoints(vm)
	if !errs.Is(err, errs.Corrupt) {
		return list, err
	}
	if now, verr := s.VMByID(vm.ID); verr != nil || now.Sum != vm.Sum {
		return nil, errs.New(errs.Busy, "points of %s changed while they were read", vm.Name)
	}
	prefix := string(be64("p", uint64(vm.ID)))
	healed, herr := s.refold(ctx, func(key []byte) bool { return len(key) > 9 && string(key[:9]) == prefix })
	if herr != nil {
		return nil, herr
	}
	return s.pointsFrom(vm, healed, err)
}

// readPoints reads them from Badger and checks them against the sum in the VM's record.
func (s *Store) readPoints(vm *VM) ([]Point, error) {
	list := make([]Point, 0, min(vm.Points, 1<<16))
	var sum digest
	err := s.db.Each(be64("p", uint64(vm.ID)), func(key, val []byte, err error) error {
		if err != nil {
			return err
		}
		sum = sum.xor(entryDigest(key, val))
		return into(val, func(p *Point) { list = append(list, *p) })
	})
	if err == nil && (sum != vm.Sum || uint64(len(list)) != vm.Points) {
		err = errs.New(errs.Corrupt, "points of %s do not add up: Badger lost some, or has old ones", vm.Name)
	}
	return list, err
}

// pointsFrom makes the list from healed records, which must add up.
func (s *Store) pointsFrom(vm *VM, records map[string][]byte, cause error) ([]Point, error) {
	var list []Point
	var sum digest
	for n := uint64(1); n < vm.Next; n++ {
		key := keyPoint(vm.ID, n)
		val, ok := records[string(key)]
		if !ok || val == nil {
			continue
		}
		sum = sum.xor(entryDigest(key, val))
		if err := into(val, func(p *Point) { list = append(list, *p) }); err != nil {
			return nil, err
		}
	}
	if sum != vm.Sum {
		return nil, errs.New(errs.Corrupt, "points of %s: %w; the journal does not have them either", vm.Name, cause)
	}
	return list, nil
}

// Config returns the configuration that was captured with a point, or NotFound.
func (s *Store) Config(ctx context.Context, p *Point) ([]byte, error) {
	if p.Config == nil {
		return nil, errs.New(errs.NotFound, "point %s was taken without a configuration", p.ID)
	}
	b, err := s.chunks.ReadRecord(ctx, p.Config.Ptr, chunkstore.KindBlob)
	if err != nil {
		return nil, fmt.Errorf("configuration of point %s: %w", p.ID, err)
	}
	return b, nil
}
