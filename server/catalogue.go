package server

import (
	"context"
	"sort"
	"time"

	"livemount/blockdev"
	"livemount/fs"
	"livemount/internal/errs"
	"livemount/snapshotchain"
)

// catalogue shows the store to the tree of a browse mount.
type catalogue struct {
	store *snapshotchain.Store
	mount *mount
}

// VMs implements fs.Catalogue.
func (c *catalogue) VMs() []fs.VM {
	list := c.store.VMs()
	out := make([]fs.VM, 0, len(list))
	for i := range list {
		out = append(out, vmOf(&list[i]))
	}
	return out
}

func vmOf(v *snapshotchain.VM) fs.VM {
	out := fs.VM{ID: uint64(v.ID), Name: v.Name, Points: int(v.Points), Changed: v.Time}
	if v.Points == 0 {
		out.Changed = v.Created
	}
	return out
}

// VM implements fs.Catalogue.
func (c *catalogue) VM(id uint64) (fs.VM, error) {
	v, err := c.store.VMByID(snapshotchain.VMID(id))
	return vmOf(&v), err
}

// VMNamed implements fs.Catalogue.
func (c *catalogue) VMNamed(name string) (fs.VM, error) {
	v, err := c.store.VM(name)
	return vmOf(&v), err
}

func (c *catalogue) points(ctx context.Context, vm uint64) ([]snapshotchain.Point, error) {
	_, list, err := c.store.PointsOf(ctx, snapshotchain.VMID(vm))
	return list, err
}

// Points implements fs.Catalogue.
func (c *catalogue) Points(ctx context.Context, vm, after uint64, limit int) ([]fs.Point, error) {
	list, err := c.points(ctx, vm)
	at := sort.Search(len(list), func(i int) bool { return list[i].Ordinal > after })
	var out []fs.Point
	for i := at; i < len(list) && len(out) < limit; i++ {
		out = append(out, pointOf(&list[i]))
	}
	return out, err
}

// PointAt implements fs.Catalogue. Times of points ascend.
func (c *catalogue) PointAt(ctx context.Context, vm uint64, at time.Time) (fs.Point, error) {
	list, err := c.points(ctx, vm)
	if err != nil {
		return fs.Point{}, err
	}
	i := sort.Search(len(list), func(i int) bool { return !list[i].Time.Before(at) })
	if i == len(list) || !list[i].Time.Equal(at) {
		return fs.Point{}, errs.New(errs.NotFound, "no point is of %s", fs.PointName(at))
	}
	return pointOf(&list[i]), nil
}

func pointOf(p *snapshotchain.Point) fs.Point {
	out := fs.Point{ID: uint64(p.ID), Ordinal: p.Ordinal, Time: p.Time}
	for i := range p.Disks {
		d := &p.Disks[i]
		out.Disks = append(out.Disks, fs.PointDisk{
			VM: uint64(p.VM), Point: uint64(p.ID), Lineage: uint64(d.Lineage), Seq: uint64(d.Seq), Name: d.Name,
			SizeBytes: d.SizeBytes, DataBytes: d.DataBytes,
		})
	}
	return out
}

// Open implements fs.Catalogue. It finds the disk also when the point is not listed any more. Bad bytes are
// remembered for status.
func (c *catalogue) Open(ctx context.Context, d fs.PointDisk) (blockdev.Reader, error) {
	tell := func(err error) {
		c.mount.damage.add("mount %s: point %s: disk %s: %v", c.mount.rec.ID, snapshotchain.PointID(d.Point), d.Name, err)
	}
	r, err := c.store.OpenDisk(ctx, &snapshotchain.PointDisk{
		Name: d.Name, Lineage: snapshotchain.LineageID(d.Lineage), Seq: snapshotchain.Seq(d.Seq),
	})
	if err == nil && r.Size() != d.SizeBytes {
		err = errs.New(errs.Corrupt, "it has %d bytes and not %d", r.Size(), d.SizeBytes)
	}
	if errs.Is(err, errs.Corrupt) {
		tell(err)
	}
	if err != nil {
		if r != nil {
			r.Close() // it never fails
		}
		return nil, err
	}
	return notice(r, tell), nil
}
