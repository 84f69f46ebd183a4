package qemu

import (
	"context"
	"strings"

	"livemount/blockdev"
	"livemount/internal/errs"
)

// Name is what the disk is called in the point.
func (d *Disk) Name() string { return d.name }

// From says for people where the disk is.
func (d *Disk) From() string { return "QEMU at " + d.s.o.Socket + ", node " + d.node }

// identity begins what stands for the content of a disk at the moment of a backup.
const identity = "qemu-bitmap:"

// Identity implements ingest.Layers: the bitmap that began at the moment.
func (d *Disk) Identity() string { return identity + d.begun }

// Changed implements ingest.Source: the moment stands still.
func (d *Disk) Changed() string { return "" }

// Check implements ingest.Source: while the job runs, everything that was overwritten was copied before.
func (d *Disk) Check(ctx context.Context) error {
	if err := d.s.room.failure(); err != nil {
		return err
	}
	var jobs []struct {
		Device string `json:"device"`
		Status string `json:"status"`
	}
	if err := d.s.m.run(ctx, "query-block-jobs", nil, &jobs); err != nil {
		return err
	}
	for _, j := range jobs {
		if j.Device == node("job", d.index) && (j.Status == "running" || j.Status == "ready" || j.Status == "") {
			return nil
		}
	}
	return errs.WithTry(errs.New(errs.Other, "the job that keeps what the guest of disk %s overwrites has ended: what was read is of no one moment", d.name), "mountctl backup again")
}

// Dirty lists what may differ from the disk of that identity, when a bitmap of it is there and whole; else false, and Compared says
// why.
func (d *Disk) Dirty(ctx context.Context, of string) (list []blockdev.Extent, ok bool, err error) {
	name, is := strings.CutPrefix(of, identity)
	if !is {
		d.compared = "the newest point was not made of a running QEMU"
		return nil, false, nil
	}
	for _, b := range d.bitmaps {
		if b.Name == name {
			return d.read(ctx, "qemu:dirty-bitmap:"+name)
		}
	}
	d.compared = "the bitmap that began with the newest point is not there, or was not closed properly"
	return nil, false, nil
}

func (d *Disk) read(ctx context.Context, name string) (list []blockdev.Extent, ok bool, err error) {
	off := int64(0)
	for st, err := range d.Status(ctx, name, 0, d.Size()) {
		if err != nil {
			return nil, false, err
		}
		if st.Flags&1 != 0 {
			list = append(list, blockdev.Extent{Off: off, Len: st.Len})
		}
		off += st.Len
	}
	return list, true, nil
}

// Compared says why all of the disk was compared, "" when it was not.
func (d *Disk) Compared() string {
	if d.compared == "" {
		return ""
	}
	return "disk " + d.name + " was compared as a whole: " + d.compared
}
