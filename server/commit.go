package server

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"strings"

	"livemount/blockdev"
	"livemount/blockdev/overlay"
	"livemount/ingest"
	"livemount/internal/errs"
	"livemount/server/api"
	"livemount/snapshotchain"
)

// frozenDisk is a disk of a mount as it was at one position of its log.
type frozenDisk struct{ blockdev.Reader }

// Check implements ingest.Source: bad bytes are found when they are read.
func (frozenDisk) Check(context.Context) error { return nil }

// Changed implements ingest.Source.
func (frozenDisk) Changed() string { return "" }

// commitPlan is a commit of a mount to a branch.
type commitPlan struct {
	req   ingest.Request
	since overlay.Position // what the branch has of the log already
}

// startCommit begins to make the present state of a mount a point of a branch. The state is that of the
// moment when it returns; the mount goes on.
func (s *Server) startCommit(ctx context.Context, m *mount, branch string) (*job, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.mustHaveLog("commit"); err != nil {
		return nil, err
	}
	if err := m.checkDisksAreThere(); err != nil {
		return nil, err
	}
	plan, err := s.planCommit(ctx, m.rec, branch)
	if err != nil {
		return nil, err
	}
	frozen, err := m.log.Freeze(ctx)
	if err != nil {
		return nil, err
	}
	// Ids of files never come back: what is there now was there when the log was frozen.
	if err := errors.Join(m.checkDisksAreThere(), m.addFrozen(plan, frozen)); err != nil {
		frozen.Close() // it never fails
		return nil, err
	}
	var c ingest.Counters
	began := s.clock.Now()
	j, err := s.jobs.start("commit", plan.req.VM, &c, func(ctx context.Context, j *job, step func(string)) (*api.Backup, error) {
		p, err := ingest.Run(ctx, s.store, plan.req, &c, step)
		if errs.Is(err, errs.Exists) {
			err = errs.WithTry(errs.New(errs.Busy, "another commit to %s was faster", plan.req.VM), "the same command again")
		}
		if err != nil {
			return nil, err
		}
		b := backupView(plan.req.VM, &p)
		b.ElapsedSeconds, b.Job = s.clock.Now().Sub(began).Seconds(), j.view.Job
		return b, nil
	}, func() { frozen.Close() })
	if err != nil {
		frozen.Close()
	}
	return j, err
}

// mustHaveLog is an error when there is nothing written that could be kept.
func (m *mount) mustHaveLog(what string) error {
	if err := m.mustBeOfPoint(what); err != nil {
		return err
	}
	id := m.rec.ID
	switch {
	case m.rec.ReadOnly:
		return errs.New(errs.Invalid, "%s %s: it is read-only: the point itself is all that there is", what, id)
	case m.log == nil:
		return errs.WithTry(errs.New(errs.Invalid, "%s %s: it is %s, not mounted", what, id, m.rec.State), "mountctl mount --resume %s DIR", id)
	}
	return nil
}

// planCommit finds out where on the branch the point goes. A branch is continued only by who made its newest
// point, or stands on it.
func (s *Server) planCommit(ctx context.Context, rec *mountRecord, branch string) (*commitPlan, error) {
	if err := snapshotchain.CheckBranchName(branch); err != nil {
		return nil, err
	}
	vm, err := s.store.VMByID(rec.VMID)
	if err == nil && vm.Of != 0 {
		vm, err = s.store.VMByID(vm.Of)
	}
	if err != nil {
		return nil, err
	}
	p := &commitPlan{req: ingest.Request{VM: vm.Name + ":" + branch}}
	p.req.Level, err = snapshotchain.ParseLevel(s.config.Compression)
	if err != nil {
		return nil, err
	}
	p.req.From = &snapshotchain.Point{ID: rec.Point}
	for _, d := range rec.Disks {
		p.req.From.Disks = append(p.req.From.Disks, d.Disk)
	}
	p.req.Branch = &snapshotchain.Branch{VM: vm.ID, Name: p.req.VM, Parent: rec.Point}
	if s.store.Drafting(p.req.VM) {
		return nil, errs.WithTry(errs.New(errs.Busy, "another commit to %s is running", p.req.VM), "mountctl jobs")
	}
	have, err := s.store.VM(p.req.VM)
	if errs.Is(err, errs.NotFound) {
		return p, nil
	}
	if err != nil {
		return nil, err
	}
	points, err := s.store.Points(ctx, &have)
	if err != nil {
		return nil, err
	}
	if n := len(points); n > 0 && points[n-1].Origin != nil && points[n-1].Origin.Mount == rec.ID.String() {
		o := points[n-1].Origin
		p.req.Branch.Parent, p.since = points[n-1].ID, overlay.Position{Segment: o.Segment, Offset: o.Offset}
		return p, nil
	}
	if len(points) == 0 && have.ID != rec.VMID { // all were dropped; the name is free to go on with
		p.req.Branch.Parent = 0
		return p, nil
	}
	if have.ID != rec.VMID || have.Latest != rec.Point {
		return nil, errs.WithTry(errs.New(errs.Exists, "branch %s has points that mount %s does not stand on", p.req.VM, rec.ID), "--branch %s-2", branch)
	}
	return p, nil
}

// addFrozen names the disks of the commit, with what may differ from the point before.
func (m *mount) addFrozen(plan *commitPlan, frozen *overlay.Frozen) error {
	plan.req.Info.Origin = &snapshotchain.Origin{Mount: m.rec.ID.String(), Segment: frozen.At().Segment, Offset: frozen.At().Offset}
	for i := range m.rec.Disks {
		d := &m.rec.Disks[i]
		r, err := frozen.Reader(d.Node)
		if err != nil {
			return err
		}
		changed, err := changedSince(frozen, d.Node, plan.since)
		if err != nil {
			return err
		}
		plan.req.Disks = append(plan.req.Disks, ingest.Disk{
			Name: d.Disk.Name, From: "mount " + m.rec.ID.String(), Source: frozenDisk{r}, Changed: changed, Listed: true,
		})
	}
	return nil
}

// changedSince lists what a mount wrote to a disk. When that is too much for a list, it is made coarser:
// what is named needlessly is compared and left out.
func changedSince(frozen *overlay.Frozen, node uint64, since overlay.Position) ([]snapshotchain.ByteRange, error) {
	seq, err := frozen.Changed(node, since)
	if err != nil {
		return nil, err
	}
	var list []snapshotchain.ByteRange
	gap := int64(0)
	for e := range seq {
		n := len(list)
		if n > 0 && e.Off-(list[n-1].Offset+list[n-1].Length) <= gap {
			list[n-1].Length = e.End() - list[n-1].Offset
			continue
		}
		list = append(list, snapshotchain.ByteRange{Offset: e.Off, Length: e.Len})
		for gap < 1<<40 && len(list) >= ingest.MaxRanges {
			gap = max(64<<10, gap*4)
			list = join(list, gap)
		}
	}
	return list, nil
}

// join joins ranges that are at most gap bytes apart.
func join(list []snapshotchain.ByteRange, gap int64) []snapshotchain.ByteRange {
	out := list[:1]
	for _, r := range list[1:] {
		if l := &out[len(out)-1]; r.Offset-(l.Offset+l.Length) <= gap {
			l.Length = r.Offset + r.Length - l.Offset
			continue
		}
		out = append(out, r)
	}
	return out
}

// nameOf is what the VM of a mount is called now.
func (s *Server) nameOf(rec *mountRecord) string {
	vm, err := s.store.VMByID(rec.VMID)
	if err != nil {
		return rec.VM
	}
	return cmp.Or(vm.Name, rec.VM)
}

func (s *Server) postCommit(r *http.Request) (int, any, error) {
	var req api.CommitRequest
	if err := body(r, &req); err != nil {
		return 0, nil, err
	}
	m, err := s.findMount(r.PathValue("id"))
	if err != nil {
		return 0, nil, err
	}
	// VM:NAME is what points are called; it is understood here as well.
	branch := req.Branch
	if vm, name, ok := strings.Cut(branch, ":"); ok && strings.HasPrefix(s.nameOf(m.rec)+":", vm+":") {
		branch = name
	}
	j, err := s.startCommit(r.Context(), m, branch)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusAccepted, s.jobs.snapshot(j), nil
}
