package server

import (
	"cmp"
	"context"
	"errors"
	"path/filepath"

	"livemount/ingest"
	"livemount/ingest/qemu"
	"livemount/internal/errs"
	"livemount/server/api"
	"livemount/snapshotchain"
)

// qemuDisk is a disk of a running QEMU as the source of a backup.
type qemuDisk struct{ *qemu.Disk }

// Close implements blockdev.Reader: the session closes its disks.
func (qemuDisk) Close() error { return nil }

// ChangedSince implements ingest.Layers.
func (d qemuDisk) ChangedSince(ctx context.Context, identity string) (list []snapshotchain.ByteRange, ok bool, err error) {
	dirty, ok, err := d.Dirty(ctx, identity)
	for _, e := range dirty {
		list = append(list, snapshotchain.ByteRange{Offset: e.Off, Length: e.Len})
	}
	return fewer(list), ok, err
}

// fewer makes a list coarser until it is short enough. What is named needlessly is compared and left out.
func fewer(list []snapshotchain.ByteRange) []snapshotchain.ByteRange {
	if len(list) == 0 {
		return nil
	}
	list = join(list, 0)
	for gap := int64(1 << 16); len(list) > ingest.MaxRanges; gap *= 2 {
		list = join(list, gap)
	}
	return list
}

// qemuOptions checks what a request says of a running QEMU.
func (s *Server) qemuOptions(req *api.BackupRequest) (o qemu.Options, err error) {
	q := req.QEMU
	o = qemu.Options{Owner: s.store.ID().String()[:8], Socket: q.QMP, Agent: q.Agent, Scratch: q.Scratch, Disks: map[string]string{}, Clock: s.clock, Log: s.log}
	if err := snapshotchain.CheckVMName(req.VM); err != nil {
		return o, err
	}
	for _, path := range []string{q.QMP, q.Agent, q.Scratch} {
		if path != "" && !filepath.IsAbs(path) {
			return o, errs.New(errs.Invalid, "%q is not an absolute path", path)
		}
	}
	for _, d := range req.Disks {
		switch {
		case d.Changed != nil || d.Bitmap != "" || d.Format != "" || d.BackingDir != "":
			return o, errs.New(errs.Invalid, "disk %s: a running QEMU says itself what its disks are and what changed", d.Name)
		case o.Disks[d.Name] != "":
			return o, errs.New(errs.Invalid, "disk %s is named twice", d.Name)
		}
		if err := snapshotchain.CheckDiskName(d.Name); err != nil {
			return o, err
		}
		o.Disks[d.Name] = d.Source
	}
	return o, nil
}

// startQEMU starts the backup of a running QEMU.
func (s *Server) startQEMU(req *api.BackupRequest) (*job, error) {
	o, err := s.qemuOptions(req)
	if err != nil {
		return nil, err
	}
	r := &ingest.Request{VM: req.VM}
	if r.Level, err = snapshotchain.ParseLevel(cmp.Or(req.Compression, s.config.Compression)); err != nil {
		return nil, err
	}
	if c := req.Config; c != nil {
		if len(c.Data) > maxConfig {
			return nil, errs.New(errs.Invalid, "configuration %s of %d bytes; at most %d", c.Name, len(c.Data), maxConfig)
		}
		r.Info.Config, r.Info.ConfigName = append([]byte{}, c.Data...), filepath.Base(c.Name)
	}
	if _, busy := s.machines.LoadOrStore(o.Socket, true); busy {
		return nil, errs.WithTry(errs.New(errs.Busy, "another backup of the QEMU at %s is running", o.Socket), "mountctl jobs")
	}
	var c ingest.Counters
	began := s.clock.Now()
	j, err := s.jobs.start("backup", req.VM, &c, func(ctx context.Context, j *job, step func(string)) (*api.Backup, error) {
		p, err := s.backupQEMU(ctx, o, r, req, &c, step)
		if err != nil {
			return nil, err
		}
		b := backupView(r.VM, p)
		b.ElapsedSeconds, b.Job = s.clock.Now().Sub(began).Seconds(), j.view.Job
		return b, nil
	}, func() { s.machines.Delete(o.Socket) })
	if err != nil {
		s.machines.Delete(o.Socket)
	}
	return j, err
}

func (s *Server) backupQEMU(ctx context.Context, o qemu.Options, r *ingest.Request, req *api.BackupRequest, c *ingest.Counters, step func(string)) (_ *snapshotchain.Point, err error) {
	step("ask QEMU for its disks")
	session, err := qemu.Open(ctx, o)
	if err != nil {
		return nil, err
	}
	sealed := false
	defer func() {
		step("end")
		end := session.End(context.WithoutCancel(ctx), sealed)
		if end != nil && sealed { // the next backup tries again
			s.log.Warn("what a backup left in a QEMU was not removed", "vm", r.VM, "err", end)
			end = nil
		}
		err = errors.Join(err, end)
	}()
	for _, d := range session.Disks() {
		src := qemuDisk{d}
		r.Disks = append(r.Disks, ingest.Disk{Name: d.Name(), From: d.From(), Source: src, Layers: src, Full: req.Full, Note: d.Compared})
	}
	if session.Frozen {
		r.Info.Consistency = "filesystem"
	}
	if r.Info.Notes = session.Notes(); r.Info.Config == nil && len(session.Machine) <= maxConfig {
		r.Info.Config, r.Info.ConfigName = session.Machine, "qemu.json"
	}
	if !req.SkipSpaceCheck {
		if err := s.checkSpace(ctx, r); err != nil {
			return nil, err
		}
	}
	p, err := ingest.Run(ctx, s.store, *r, c, step)
	if err != nil {
		return nil, err
	}
	sealed = true
	return &p, nil
}
