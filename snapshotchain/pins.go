package snapshotchain

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"livemount/internal/errs"
)

// diskAt names a disk as of a point.
type diskAt struct {
	lineage LineageID
	seq     Seq
}

// pins says what is read, or will be, whatever becomes of its point.
type pins struct {
	mu    sync.Mutex
	open  map[diskAt]int               // Disks that are open
	held  map[diskAt]map[*Pin]struct{} // their points cannot be expired
	going map[diskAt]bool              // of points that are being expired
	// kept is what the last collection left of each lineage, or is about to leave.
	kept map[LineageID]*kept
}

func newPins() *pins {
	return &pins{open: map[diskAt]int{}, held: map[diskAt]map[*Pin]struct{}{}, going: map[diskAt]bool{}}
}

// Pin keeps the disks of a point as they are until it is released, and the point from being expired.
type Pin struct {
	p    *pins
	keys []diskAt
	why  string
}

// Release lets go. It may be called again.
func (n *Pin) Release() {
	if n == nil {
		return
	}
	n.p.mu.Lock()
	defer n.p.mu.Unlock()
	for _, k := range n.keys {
		delete(n.p.held[k], n)
		if len(n.p.held[k]) == 0 {
			delete(n.p.held, k)
		}
	}
}

func (p *pins) hold(keys []diskAt, why string) (*Pin, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, k := range keys {
		if err := p.readableLocked(k); err != nil || p.going[k] {
			return nil, errs.New(errs.NotFound, "the point was expired")
		}
	}
	n := &Pin{p: p, keys: keys, why: why}
	for _, k := range keys {
		if p.held[k] == nil {
			p.held[k] = map[*Pin]struct{}{}
		}
		p.held[k][n] = struct{}{}
	}
	return n, nil
}

// readableLocked is NotFound for what a collection has taken, or is about to take. The caller holds mu.
func (p *pins) readableLocked(k diskAt) error {
	if left := p.kept[k.lineage]; left != nil && !left.has(k.seq) {
		return errs.New(errs.NotFound, "lineage %s, point %d was expired", k.lineage, k.seq)
	}
	return nil
}

// use keeps what an open Disk reads.
func (p *pins) use(k diskAt) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.readableLocked(k); err != nil {
		return err
	}
	p.open[k]++
	return nil
}

func (p *pins) unuse(k diskAt) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open[k]--; p.open[k] <= 0 {
		delete(p.open, k)
	}
}

// reasons says who pins a disk.
func (p *pins) reasons(keys []diskAt) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []string
	for _, k := range keys {
		for n := range p.held[k] {
			list = append(list, n.why)
		}
	}
	return list
}

// leave keeps new pins from disks whose points go, unless one is pinned already: then it returns false and changes
// nothing. stay takes it back.
func (p *pins) leave(keys []diskAt) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, k := range keys {
		if len(p.held[k]) > 0 {
			return false
		}
	}
	for _, k := range keys {
		p.going[k] = true
	}
	return true
}

func (p *pins) stay(keys []diskAt) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, k := range keys {
		delete(p.going, k)
	}
}

func disksAt(p *Point) []diskAt {
	keys := make([]diskAt, 0, len(p.Disks))
	for i := range p.Disks {
		keys = append(keys, diskAt{p.Disks[i].Lineage, p.Disks[i].Seq})
	}
	return keys
}

// Pin keeps a point from being expired until the Pin is released; why is told to who tries. NotFound when it was
// expired already.
func (s *Store) Pin(p *Point, why string) (*Pin, error) {
	n, err := s.pins.hold(disksAt(p), why)
	if err == nil {
		err = s.isThere(context.Background(), p)
	}
	if err != nil {
		n.Release()
		return nil, fmt.Errorf("point %s: %w", p.ID, err)
	}
	return n, nil
}

// isThere is NotFound when a point was expired. A record that Badger lost is read from the journal.
func (s *Store) isThere(ctx context.Context, p *Point) error {
	_, points, err := s.PointsOf(ctx, p.VM)
	if err != nil {
		return err
	}
	_, ok := slices.BinarySearchFunc(points, p.Ordinal, func(q Point, n uint64) int { return cmp.Compare(q.Ordinal, n) })
	if !ok {
		return errs.New(errs.NotFound, "it was expired")
	}
	return nil
}

// PinDisks is Pin for disks of a point that was pinned when the store was open before.
func (s *Store) PinDisks(disks []PointDisk, why string) (*Pin, error) {
	return s.pins.hold(disksAt(&Point{Disks: disks}), why)
}
