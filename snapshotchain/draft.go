package snapshotchain

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"livemount/internal/errs"
	"livemount/snapshotchain/chunkstore"
)

// DiskSpec names a disk of a draft.
type DiskSpec struct {
	Name      string
	SizeBytes int64
	// Full keeps the draft's map of this disk independent of the point before.
	Full bool
	// Base is the disk that a new branch begins with; only its changes are set.
	Base *PointDisk
}

// Draft is a point in the making. Nothing of it is visible before Seal; Abort, or a crash, leaves nothing.
// Its methods are used by one goroutine, but for DraftDisk.Find.
type Draft struct {
	s      *Store
	open   *openChange
	writer *chunkstore.Writer
	disks  []*DraftDisk
	parent PointID
	branch *Branch // nil for a VM
	pins   []*Pin  // what it compares with and stands on
	ended  bool
}

// Begin starts a draft for a VM, which is made when it has no points yet. Busy when a draft of this VM is
// open already.
func (s *Store) Begin(ctx context.Context, vm string, disks []DiskSpec) (*Draft, error) {
	if err := CheckVMName(vm); err != nil {
		return nil, err
	}
	return s.startDraft(ctx, vm, nil, disks)
}

// Branch is a line of points beside that of a VM.
type Branch struct {
	VM     VMID    // that it belongs to
	Name   string  // VM:BRANCH
	Parent PointID // what the draft's point stands on: the newest of the branch, or where it begins
}

// BeginBranch starts a draft for a branch, which begins with the bases of the disks when it has no points
// yet. Exists when the newest point of the branch is not the parent.
func (s *Store) BeginBranch(ctx context.Context, b Branch, disks []DiskSpec) (*Draft, error) {
	_, name, _ := strings.Cut(b.Name, ":")
	if err := CheckBranchName(name); err != nil {
		return nil, err
	}
	return s.startDraft(ctx, b.Name, &b, disks)
}

func (s *Store) startDraft(ctx context.Context, name string, b *Branch, disks []DiskSpec) (*Draft, error) {
	if err := checkSpecs(name, disks); err != nil {
		return nil, err
	}
	if err := s.reserve(name); err != nil {
		return nil, err
	}
	d := &Draft{s: s, branch: b}
	err := d.begin(ctx, name, disks)
	for tries := 0; errs.Is(err, errs.NotFound) && tries < 10; tries++ {
		// The point that it was to compare with was expired just now: there may be another.
		d.unpin()
		d.disks = nil
		s.settled() // until it is gone
		err = d.begin(ctx, name, disks)
	}
	if err != nil {
		d.end(name)
		return nil, fmt.Errorf("begin a point of %s: %w", name, err)
	}
	return d, nil
}

func checkSpecs(vm string, disks []DiskSpec) error {
	if len(disks) == 0 {
		return errs.New(errs.Invalid, "a point of %s needs at least one disk", vm)
	}
	seen := map[string]bool{}
	for _, d := range disks {
		if err := CheckDiskName(d.Name); err != nil {
			return err
		}
		if seen[d.Name] {
			return errs.New(errs.Invalid, "disk %s is named twice", d.Name)
		}
		if d.SizeBytes <= 0 || d.SizeBytes > MaxDiskBytes {
			return errs.New(errs.Invalid, "disk %s of %d bytes; between 1 byte and 64 TiB can be kept", d.Name, d.SizeBytes)
		}
		seen[d.Name] = true
	}
	return nil
}

func (s *Store) reserve(vm string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy[vm] {
		return errs.WithTry(errs.New(errs.Busy, "another backup of %s is running", vm), "mountctl jobs")
	}
	s.busy[vm] = true
	return nil
}

// Drafting reports whether a draft of the VM or branch is open.
func (s *Store) Drafting(name string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.busy[name]
}

func (s *Store) unreserve(vm string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.busy, vm)
}

// settled waits for the change that is being made.
func (s *Store) settled() {
	s.commit.Lock()
	defer s.commit.Unlock()
}

// end lets go of the name and of the points that the draft needed.
func (d *Draft) end(name string) {
	d.unpin()
	d.s.unreserve(name)
}

func (d *Draft) unpin() {
	for _, p := range d.pins {
		p.Release()
	}
	d.pins = nil
}

func (d *Draft) begin(ctx context.Context, name string, specs []DiskSpec) error {
	s, b := d.s, d.branch
	o := &openChange{Draft: chunkstore.DraftID(NewID[ofPoint]()), Name: name, Time: s.opts.Clock.Now().UTC().Round(0)}
	d.open = o
	vm, err := s.VM(name)
	if errs.Is(err, errs.NotFound) {
		vm.ID, err = NewID[ofVM](), nil
		if b != nil {
			vm.Of, vm.Latest = b.VM, b.Parent
		}
	}
	var points []Point
	if err == nil && vm.Points > 0 {
		vm, points, err = s.PointsOf(ctx, vm.ID)
	}
	if err == nil && b != nil {
		err = s.checkBranch(&vm, b)
	}
	if err != nil {
		return err
	}
	o.VM, o.Of, d.parent = vm.ID, vm.Of, vm.Latest
	if !o.Time.After(vm.Time) { // the clock went back, or stands still: times of points only ascend
		o.Time = vm.Time.Add(time.Millisecond)
	}
	for _, spec := range specs {
		disk, err := s.draftDisk(ctx, d, &vm, points, spec)
		if err != nil {
			return fmt.Errorf("disk %s: %w", spec.Name, err)
		}
		d.disks = append(d.disks, disk)
	}
	if err := s.recordOpen(ctx, d); err != nil {
		return err
	}
	d.writer = s.chunks.NewWriter(o.Draft)
	return nil
}

// checkBranch makes sure that the branch is what the caller took it for.
func (s *Store) checkBranch(vm *VM, b *Branch) error {
	of, err := s.VMByID(b.VM)
	if err != nil {
		return err
	}
	if name, _, _ := strings.Cut(b.Name, ":"); of.Name != name || vm.Of != b.VM {
		return errs.New(errs.Busy, "%s is being renamed", b.Name)
	}
	if vm.Latest != b.Parent {
		return errs.WithTry(errs.New(errs.Exists, "branch %s has points that this does not stand on", b.Name), "another name")
	}
	return nil
}

// draftDisk continues the lineage of a disk that the VM ever had, behind its newest point that is still there.
func (s *Store) draftDisk(ctx context.Context, d *Draft, vm *VM, points []Point, spec DiskSpec) (*DraftDisk, error) {
	disk := &DraftDisk{d: d, name: spec.Name, size: spec.SizeBytes, full: spec.Full, lineage: vm.lineage(spec.Name)}
	if disk.lineage == 0 {
		return disk, s.branchOff(ctx, disk, spec.Base)
	}
	latest, err := s.latestOf(disk.lineage)
	if err != nil {
		return nil, err
	}
	i, before := newestWith(points, spec.Name, disk.lineage)
	if before == nil { // all were expired
		if spec.Base != nil && spec.Base.Lineage >= disk.lineage { // a lineage stands only on older ones
			disk.lineage = 0
		}
		return disk, s.branchOff(ctx, disk, spec.Base)
	}
	if err := d.pin(before.Lineage, before.Seq); err != nil {
		return nil, err
	}
	parent, err := s.openSeal(ctx, before.Lineage, before.Seq)
	if errs.Is(err, errs.Corrupt) && spec.Full {
		return disk, nil // nothing of it is needed
	}
	if err != nil {
		return nil, err
	}
	disk.parent, disk.prev = parent, before.Seq
	if i == len(points)-1 {
		// Who lists what changed counts from the newest point that was made; who commits, from one that is there.
		made := before.Seq == latest && points[i].Ordinal+1 == vm.Next
		disk.image, disk.current = before.Image, made || d.branch != nil
	}
	return disk, nil
}

// latestOf returns the newest sequence number of a lineage that was sealed.
func (s *Store) latestOf(id LineageID) (Seq, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	l, ok := s.cat.lineages[id]
	if !ok {
		return 0, errs.New(errs.Corrupt, "lineage %s is not known", id)
	}
	return l.Latest, nil
}

// newestWith finds the newest of the points that has the disk in that lineage.
func newestWith(points []Point, name string, l LineageID) (int, *PointDisk) {
	for i := len(points) - 1; i >= 0; i-- {
		if p := points[i].Disk(name); p != nil && p.Lineage == l {
			return i, p
		}
	}
	return -1, nil
}

func (d *Draft) pin(l LineageID, seq Seq) error {
	p, err := d.s.pins.hold([]diskAt{{l, seq}}, "a backup of "+d.open.Name+" runs")
	if err == nil {
		d.pins = append(d.pins, p)
	}
	return err
}

// branchOff lets a new lineage begin with a disk of another.
func (s *Store) branchOff(ctx context.Context, disk *DraftDisk, from *PointDisk) error {
	if from == nil || disk.full {
		return nil
	}
	if err := disk.d.pin(from.Lineage, from.Seq); err != nil {
		return err
	}
	var err error
	if disk.parent, err = s.openSeal(ctx, from.Lineage, from.Seq); err != nil {
		return err
	}
	if disk.parent.levels() >= maxLevels {
		return errs.WithTry(errs.New(errs.Invalid, "disk %s stands on %d branches already", disk.name, maxLevels),
			"export it, and back it up as a new VM")
	}
	disk.current = true
	disk.base = &base{Lineage: from.Lineage, Seq: from.Seq, Limit: disk.parent.Size()}
	return nil
}

// recordOpen gives the disks their lineages and sequence numbers and makes that durable.
func (s *Store) recordOpen(ctx context.Context, d *Draft) error {
	s.commit.Lock()
	defer s.commit.Unlock()
	if d.branch != nil { // the VM may have been renamed or removed since
		vm, err := s.VM(d.open.Name)
		if errs.Is(err, errs.NotFound) {
			vm, err = VM{Of: d.branch.VM, Latest: d.branch.Parent}, nil
		}
		if err == nil {
			err = s.checkBranch(&vm, d.branch)
		}
		if err != nil {
			return err
		}
	}
	s.mu.RLock()
	next := s.cat.root.NextLineage
	for _, disk := range d.disks {
		disk.seq = 1
		if l := s.cat.lineages[disk.lineage]; l != nil {
			disk.seq = l.Next
		} else {
			disk.lineage = next
			next++
		}
		d.open.Disks = append(d.open.Disks, openDisk{Name: disk.name, Lineage: disk.lineage, Seq: disk.seq, Base: disk.base})
	}
	s.mu.RUnlock()
	d.open.NextID = s.chunks.NextID()
	_, err := s.recordLocked(ctx, &change{Open: d.open})
	return err
}

// Disks returns the disks in the order of their specs.
func (d *Draft) Disks() []*DraftDisk { return d.disks }

// Time returns the time that the point will have.
func (d *Draft) Time() time.Time { return d.open.Time }

// SealInfo is what is kept with a point beside its disks.
type SealInfo struct {
	Consistency string // "crash" when empty
	Notes       []string
	ConfigName  string
	Config      []byte // nil for none
	Origin      *Origin
}

// Seal makes the draft a point: whole, durable and visible, or not at all. After an error the draft is
// ended; the point can exist nevertheless when the error came after the journal, and is then seen when
// the store is opened again.
func (d *Draft) Seal(ctx context.Context, info SealInfo) (Point, error) {
	if d.ended {
		return Point{}, errs.New(errs.Invalid, "the draft has ended")
	}
	c, err := d.prepare(ctx, info)
	if err != nil {
		return Point{}, errors.Join(fmt.Errorf("seal point of %s: %w", d.open.Name, err), d.Abort(ctx))
	}
	d.ended = true
	defer d.end(d.open.Name)
	n, err := d.s.record(ctx, &change{Seal: c})
	if err != nil {
		if d.s.writable() == nil { // the journal refused: nothing was sealed
			err = errors.Join(err, d.drop(ctx))
		}
		return Point{}, fmt.Errorf("seal point of %s: %w", d.open.Name, err)
	}
	if err := d.writer.Release(c.Containers); err != nil {
		d.s.opts.Log.Warn("containers were not closed", "err", err)
	}
	p := c.Point
	p.Journal = n
	return p, nil
}

// prepare writes what is left of the map and makes everything durable.
func (d *Draft) prepare(ctx context.Context, info SealInfo) (*sealChange, error) {
	c := &sealChange{Draft: d.open.Draft, VM: d.open.VM, Of: d.open.Of, Name: d.open.Name}
	c.Point = Point{
		ID: NewID[ofPoint](), VM: d.open.VM, Time: d.open.Time, Parent: d.parent,
		Consistency: info.Consistency, Notes: info.Notes, Origin: info.Origin,
	}
	if c.Point.Consistency == "" {
		c.Point.Consistency = "crash"
	}
	for _, disk := range d.disks {
		sl, err := disk.finish(ctx)
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", disk.name, err)
		}
		c.Seals = append(c.Seals, *sl)
		c.Point.Disks = append(c.Point.Disks, disk.point(sl))
	}
	if info.Config != nil {
		p, err := d.writer.PutRecord(ctx, chunkstore.KindBlob, info.Config)
		if err != nil {
			return nil, err
		}
		c.Point.Config = &Config{Name: info.ConfigName, SizeBytes: int64(len(info.Config)), Ptr: p}
	}
	states, err := d.writer.Commit()
	if err != nil {
		return nil, err
	}
	c.Containers = states
	st := d.writer.Stats()
	c.Raw, c.Stored = st.RawBytes, st.StoredBytes
	d.s.mu.RLock()
	defer d.s.mu.RUnlock()
	c.Point.Ordinal = 1
	if vm := d.s.cat.vms[d.open.VM]; vm != nil {
		c.Point.Ordinal = vm.Next
	}
	return c, nil
}

// Abort ends the draft and removes what it wrote.
func (d *Draft) Abort(ctx context.Context) error {
	if d.ended {
		return nil
	}
	d.ended = true
	defer d.end(d.open.Name)
	return d.drop(context.WithoutCancel(ctx))
}

// drop removes what was written, then ends the draft in the journal: a crash between the two leaves a
// draft that the next start ends.
func (d *Draft) drop(ctx context.Context) error {
	if err := d.writer.Abort(); err != nil {
		return fmt.Errorf("remove what the draft of %s wrote: %w", d.open.Name, err)
	}
	_, err := d.s.record(ctx, &change{Abort: &abortChange{Draft: d.open.Draft}})
	return err
}
