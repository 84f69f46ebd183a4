package server

import (
	"context"
	"net/http"
	"slices"
	"time"

	"livemount/blockdev"
	"livemount/internal/errs"
	"livemount/server/api"
	"livemount/snapshotchain"
)

// getDiff compares the points that ?a=VM@TIME and ?b=VM@TIME name; ?disk=NAME looks at one disk, ?extents=1
// lists what differs, from ?offset=N on.
func (s *Server) getDiff(r *http.Request) (int, any, error) {
	if err := s.listing.wait(r.Context()); err != nil {
		return 0, nil, err
	}
	defer s.listing.free()
	q := r.URL.Query()
	off, err := offsetOf(r)
	if err != nil {
		return 0, nil, err
	}
	va, a, err := s.store.Resolve(r.Context(), q.Get("a"), s.clock.Now(), time.Local)
	if err != nil {
		return 0, nil, err
	}
	vb, b, err := s.store.Resolve(r.Context(), q.Get("b"), s.clock.Now(), time.Local)
	if err != nil {
		return 0, nil, err
	}
	names := diskNames(&a, &b)
	if one := q.Get("disk"); one != "" {
		if !slices.Contains(names, one) {
			return 0, nil, errs.New(errs.NotFound, "neither %s nor %s has a disk %q", q.Get("a"), q.Get("b"), one)
		}
		names = []string{one}
	}
	out := &api.Diff{
		A: api.DiffPoint{VM: va.Name, Point: a.ID.String()}, B: api.DiffPoint{VM: vb.Name, Point: b.ID.String()}, Disks: []api.DiffDisk{},
	}
	c := &comparison{s: s, list: q.Get("extents") == "1", from: off}
	for _, name := range names {
		d, err := c.disk(r.Context(), name, a.Disk(name), b.Disk(name))
		if err != nil {
			return 0, nil, err
		}
		out.Disks = append(out.Disks, *d)
	}
	return http.StatusOK, out, nil
}

// diskNames are those of either point, sorted.
func diskNames(a, b *snapshotchain.Point) []string {
	var names []string
	for _, p := range []*snapshotchain.Point{a, b} {
		for i := range p.Disks {
			names = append(names, p.Disks[i].Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// comparison is one of two points.
type comparison struct {
	s    *Server
	list bool // the extents too
	from int64
}

// disk compares a disk as of two points; either may be missing, and then counts as empty.
func (c *comparison) disk(ctx context.Context, name string, a, b *snapshotchain.PointDisk) (*api.DiffDisk, error) {
	out := &api.DiffDisk{Name: name, State: api.DiffSame}
	if c.list {
		out.Extents = []api.DiffExtent{}
	}
	var before, after *snapshotchain.Disk
	var err error
	if a != nil {
		if before, err = c.s.store.OpenDisk(ctx, a); err != nil {
			return nil, err
		}
		defer before.Close()
		out.SizeBytesBefore = a.SizeBytes
	}
	if b != nil {
		if after, err = c.s.store.OpenDisk(ctx, b); err != nil {
			return nil, err
		}
		defer after.Close()
		out.SizeBytesAfter = b.SizeBytes
	}
	switch {
	case before == nil:
		err = c.add(out, onlyData(ctx, after, c.from))
		out.State = api.DiffAdded
	case after == nil:
		err = c.add(out, onlyData(ctx, before, c.from))
		out.State = api.DiffRemoved
	default:
		err = c.add(out, snapshotchain.DiffFrom(ctx, before, after, c.from))
		if out.ChangedBytes > 0 || before.Size() != after.Size() {
			out.State = api.DiffChanged
		}
	}
	return out, err
}

// onlyData yields the data of a disk that the other point does not have.
func onlyData(ctx context.Context, d *snapshotchain.Disk, from int64) func(yield func(blockdev.Extent, error) bool) {
	from = min(from, d.Size())
	return func(yield func(blockdev.Extent, error) bool) {
		for e, err := range d.Extents(ctx, from, d.Size()-from) {
			if (err != nil || e.Kind == blockdev.Data) && !yield(e, err) {
				return
			}
		}
	}
}

// add counts and lists what differs. What lies behind the end of the disk now is counted only.
func (c *comparison) add(out *api.DiffDisk, seq func(yield func(blockdev.Extent, error) bool)) error {
	for e, err := range seq {
		if err != nil {
			return err
		}
		n := min(e.Len, out.SizeBytesAfter-e.Off)
		if n > 0 && c.list && len(out.Extents) == api.MaxExtents {
			out.Truncated, out.NextOffset = true, &e.Off
			return nil
		}
		out.ChangedBytes += e.Len
		if n <= 0 {
			continue
		}
		out.ExtentCount++
		if c.list {
			out.Extents = append(out.Extents, api.DiffExtent{Offset: e.Off, Length: n, Kind: e.Kind.String()})
		}
	}
	return nil
}
