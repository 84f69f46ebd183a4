package server

import (
	"context"
	"net/http"
	"time"

	"livemount/ingest"
	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/server/api"
	"livemount/snapshotchain"
)

const (
	kindVerify = "verify"
	kindScrub  = "scrub"
	// scrubRate bounds how fast containers are read again in the background, in bytes a second.
	scrubRate = 32 << 20
	// scrubLook is how often it is looked whether something is due.
	scrubLook = 10 * time.Minute
	// maxDamaged bounds the ranges of one answer.
	maxDamaged = 1000
)

func (s *Server) scrubAge() time.Duration { return time.Duration(s.config.ScrubDays) * 24 * time.Hour }

func (s *Server) scrubState() api.ScrubState {
	st := s.store.ScrubState(s.scrubAge())
	return api.ScrubState{Containers: st.Containers, Bytes: st.Bytes, DueBytes: st.DueBytes, AgeDays: float64(s.config.ScrubDays), Oldest: st.Oldest}
}

// scrubLoop reads what is due again, slowly, and heals what can be healed.
func (k *keeper) scrubLoop(ctx context.Context) {
	for clock.Sleep(ctx, scrubLook) == nil {
		if err := k.scrub(ctx); err != nil && !errs.Is(err, errs.Canceled) {
			k.s.log.Error("what is stored was not read again", "err", err)
		}
	}
}

func (k *keeper) scrub(ctx context.Context) error {
	if k.s.config.ScrubDays > 0 {
		slowly := func(ctx context.Context, n int64) error {
			return clock.Sleep(ctx, time.Duration(float64(n)/scrubRate*float64(time.Second)))
		}
		done, err := k.s.store.Scrub(ctx, k.s.scrubAge(), slowly, nil)
		if done.Containers > 0 {
			k.s.log.Info("containers read again", "containers", done.Containers, "read_bytes", done.ReadBytes, "bad_records", done.Bad)
		}
		if err == nil && done.Bad > 0 {
			_, err = k.s.store.Touched(ctx)
		}
		if err != nil {
			return err
		}
	}
	_, err := k.s.store.Heal(ctx)
	return err
}

func (s *Server) postScrub(r *http.Request) (int, any, error) {
	var req api.ScrubRequest
	if err := body(r, &req); err != nil {
		return 0, nil, err
	}
	age := max(0, s.scrubAge())
	if req.All {
		age = 0
	}
	var c ingest.Counters
	st := s.store.ScrubState(age)
	c.Total.Store(st.DueBytes)
	j, err := s.jobs.start(kindScrub, "store", &c, func(ctx context.Context, j *job, step func(string)) (*api.Backup, error) {
		return nil, s.scrubNow(ctx, j, age, &c, step)
	}, func() {})
	if err != nil {
		return 0, nil, err
	}
	return http.StatusAccepted, s.jobs.snapshot(j), nil
}

// scrubNow reads containers again as fast as it can, heals what can be healed, and tells what is bad.
func (s *Server) scrubNow(ctx context.Context, j *job, age time.Duration, c *ingest.Counters, step func(string)) error {
	step("read")
	count := func(ctx context.Context, n int64) error {
		c.Read.Add(n)
		c.Looked.Store(min(c.Read.Load(), c.Total.Load()))
		return ctx.Err()
	}
	done, err := s.store.Scrub(ctx, age, count, nil)
	out := &api.Scrubbed{Containers: done.Containers, ReadBytes: done.ReadBytes, BadRecords: done.Bad}
	if err == nil {
		step("heal")
		_, err = s.store.Heal(ctx)
	}
	var touched []snapshotchain.Touch
	if err == nil && s.store.BadRecords() > 0 {
		step("find what is spoiled")
		touched, err = s.store.Touched(ctx)
	}
	out.Touched = damaged(touched)
	j.update(func(v *api.Job) { v.Scrubbed = out })
	if n := s.store.BadRecords(); err == nil && n > 0 {
		return errs.WithTry(errs.New(errs.CheckFailed, "%d records are bad, %d ranges of points cannot be read", n, len(touched)),
			"a full backup of the VM heals what it still has: mountctl backup --full")
	}
	return err
}

func damaged(list []snapshotchain.Touch) []api.Damaged {
	out := []api.Damaged{}
	for _, t := range list[:min(len(list), maxDamaged)] {
		out = append(out, api.Damaged{VM: t.VM, Point: t.Point.String(), Disk: t.Disk, Offset: t.Offset, Length: t.Length})
	}
	return out
}

func (s *Server) postVerify(r *http.Request) (int, any, error) {
	var req api.VerifyRequest
	if err := body(r, &req); err != nil {
		return 0, nil, err
	}
	n, err := s.resolve(r.Context(), req.Ref)
	if err != nil {
		return 0, nil, err
	}
	pin, err := s.store.Pin(&n.point, "it is being verified")
	if err != nil {
		return 0, nil, err
	}
	var c ingest.Counters
	for i := range n.point.Disks {
		c.Total.Add(n.point.Disks[i].SizeBytes)
	}
	subject := n.vm.Name + "@id:" + n.point.ID.String()
	j, err := s.jobs.start(kindVerify, subject, &c, func(ctx context.Context, j *job, step func(string)) (*api.Backup, error) {
		return nil, s.verify(ctx, j, &n, &c, step)
	}, pin.Release)
	if err != nil {
		pin.Release()
		return 0, nil, err
	}
	return http.StatusAccepted, s.jobs.snapshot(j), nil
}

// verify proves all disks of a point.
func (s *Server) verify(ctx context.Context, j *job, n *named, c *ingest.Counters, step func(string)) error {
	out := &api.Verified{VM: n.vm.Name, Point: n.point.ID.String(), Time: n.point.Time, Bad: []api.Damaged{}}
	var failed error
	for i := range n.point.Disks {
		d := &n.point.Disks[i]
		step("read " + d.Name)
		proof, err := s.store.Verify(ctx, d, &c.Looked)
		switch {
		case proof == nil && errs.Is(err, errs.Corrupt): // it cannot even be opened
			s.log.Error("disk of a point cannot be opened", "vm", n.vm.Name, "point", n.point.ID, "disk", d.Name, "err", err)
			proof = &snapshotchain.Proof{Bad: []snapshotchain.Touch{{Disk: d.Name, Length: d.SizeBytes}}}
		case proof == nil:
			return err
		case err != nil:
			failed = err
		}
		out.DataBytes += proof.DataBytes
		out.Chunks += proof.Chunks
		for k := range proof.Bad {
			proof.Bad[k].VM, proof.Bad[k].Point = n.vm.Name, n.point.ID
		}
		out.Bad = append(out.Bad, damaged(proof.Bad)...)
	}
	if failed == nil {
		step("read the configuration")
		_, failed = s.store.Config(ctx, &n.point)
		if errs.Is(failed, errs.NotFound) {
			failed = nil
		}
	}
	out.Good = failed == nil && len(out.Bad) == 0
	j.update(func(v *api.Job) { v.Verified = out })
	if failed == nil && !out.Good {
		failed = errs.WithTry(errs.New(errs.CheckFailed, "%d ranges cannot be read", len(out.Bad)), "mountctl jobs %s --output json", j.view.Job)
	}
	return failed
}
