// Package ingest takes disks in: it reads a source, finds zeroes, compares with the point before, cuts,
// hashes, deduplicates and compresses, and hands the result to a draft of the chain, which it seals.
//
// Both cores work: one goroutine reads ahead, workers hash and compress, one commits in the order of the
// disk, so the same input gives the same containers whatever the timing. Memory is bounded by a few
// batches whatever the size of the disk. A source that fails ends the draft; nothing of it is left.
package ingest

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"livemount/blockdev"
	"livemount/internal/errs"
	"livemount/snapshotchain"
	"livemount/snapshotchain/chunkstore"
)

// Source is a disk to take in.
type Source interface {
	blockdev.Reader
	// Check is called after the last read: an error when what was read cannot be trusted.
	Check(ctx context.Context) error
	// Changed returns a note for the point when the source may have been written meanwhile, or "".
	Changed() string
}

// Disk is one disk of a request.
type Disk struct {
	Name   string
	From   string // where the source is, for people
	Source Source
	// Changed lists what may differ from the newest point; nothing else is read. Listed says that the
	// list is given: an empty one means that nothing changed.
	Changed []snapshotchain.ByteRange
	Listed  bool
	Full    bool // read everything and compare with nothing
	// Layers is set when the source can tell its content, or that of what it stands on, by an identity.
	Layers Layers
	// Note is asked once the disk was read for what people should know of it, "" for nothing; nil is not.
	Note func() string
}

// Layers is a source that stands on an image which the point before may have been made of.
type Layers interface {
	// Identity stands for the content; "" when nothing does, or it changed while it was open.
	Identity() string
	// ChangedSince lists what may differ from the image of that identity; false when it does not stand on it.
	ChangedSince(ctx context.Context, identity string) ([]snapshotchain.ByteRange, bool, error)
}

// listLayers makes the list of what changed from the layers of the source, when the point before was made of
// one of them.
func (d *Disk) listLayers(ctx context.Context, dst *snapshotchain.DraftDisk) error {
	if d.Layers == nil || d.Listed || d.Full || dst.Parent() == nil || dst.ParentImage() == "" {
		return nil
	}
	list, ok, err := d.Layers.ChangedSince(ctx, dst.ParentImage())
	if ok && err == nil {
		d.Changed, d.Listed = list, true
	}
	return err
}

// image is what the point keeps of the source's identity. When somebody told what changed, nobody looked at the
// rest of the source.
func (d *Disk) image(told bool) string {
	if told || d.Layers == nil || d.Source.Changed() != "" {
		return ""
	}
	return d.Layers.Identity()
}

// Request is a point to be made.
type Request struct {
	VM    string
	Disks []Disk
	Info  snapshotchain.SealInfo
	Level chunkstore.Level // of compression
	// Branch makes it a point of a branch, not of the VM. When the branch is new, its disks begin with those
	// of From.
	Branch *snapshotchain.Branch
	From   *snapshotchain.Point
}

// begin starts the draft of the request.
func (r *Request) begin(ctx context.Context, store *snapshotchain.Store, specs []snapshotchain.DiskSpec) (*snapshotchain.Draft, error) {
	if r.Branch == nil {
		return store.Begin(ctx, r.VM, specs)
	}
	for i := range specs {
		specs[i].Base = r.From.Disk(specs[i].Name)
	}
	return store.BeginBranch(ctx, *r.Branch, specs)
}

// Counters are read while Run works. All are bytes.
type Counters struct {
	Total   atomic.Int64 // to look at, as far as is known
	Looked  atomic.Int64 // of Total: read, or known to be zeroes or unchanged
	Read    atomic.Int64
	Changed atomic.Int64
	Stored  atomic.Int64
}

// Steps is told when a part of the work begins.
type Steps func(name string)

// Run makes a point of all disks of the request, or none.
func Run(ctx context.Context, store *snapshotchain.Store, req Request, c *Counters, step Steps) (snapshotchain.Point, error) {
	step("begin")
	specs := make([]snapshotchain.DiskSpec, len(req.Disks))
	for i, d := range req.Disks {
		specs[i] = snapshotchain.DiskSpec{Name: d.Name, SizeBytes: d.Source.Size(), Full: d.Full}
		if err := CheckRanges(d.Changed, d.Source.Size()); err != nil {
			return snapshotchain.Point{}, fmt.Errorf("changed extents of disk %s: %w", d.Name, err)
		}
		c.Total.Add(d.Source.Size())
	}
	draft, err := req.begin(ctx, store, specs)
	if err != nil {
		return snapshotchain.Point{}, err
	}
	for i := range req.Disks {
		step("read " + req.Disks[i].Name)
		note, err := takeDisk(ctx, store, draft, &req, i, c)
		if errs.Is(err, errs.Corrupt) && errs.TryOf(err) == "" {
			err = errs.WithTry(err, "the same backup with --full: it needs nothing of the point before")
		}
		if err != nil {
			return snapshotchain.Point{}, errors.Join(fmt.Errorf("disk %s: %w", req.Disks[i].Name, err), draft.Abort(ctx))
		}
		if note != "" {
			req.Info.Notes = append(req.Info.Notes, note)
		}
	}
	step("seal")
	return draft.Seal(ctx, req.Info)
}

// takeDisk takes in one disk and returns a note for the point.
func takeDisk(ctx context.Context, store *snapshotchain.Store, draft *snapshotchain.Draft, req *Request, i int, c *Counters) (string, error) {
	d, dst := &req.Disks[i], draft.Disks()[i]
	before, told := draft.StoredBytes(), d.Listed
	if err := d.listLayers(ctx, dst); err != nil {
		return "", err
	}
	r := &run{store: store, disk: d, dst: dst, parent: dst.Parent(), level: req.Level, count: c, stored: draft.StoredBytes}
	for _, done := range draft.Disks()[:i] {
		r.before += done.Size()
	}
	if err := r.run(ctx); err != nil {
		return "", err
	}
	if err := d.Source.Check(ctx); err != nil {
		return "", err
	}
	c.Looked.Store(r.before + d.Source.Size())
	dst.Result = snapshotchain.DiskResult{
		ReadBytes: r.read, ChangedBytes: min(r.changed*blockdev.PageSize, max(d.Source.Size(), r.parentSize())),
		StoredBytes: draft.StoredBytes() - before, Mode: r.mode(), Source: d.From, Image: d.image(told && r.mode() == "list"),
	}
	if d.Listed && r.parent == nil && !d.Full {
		return fmt.Sprintf("disk %s had no earlier point: all of it was read, not only the list", d.Name), nil
	}
	if d.Listed && r.mode() == "compare" {
		return fmt.Sprintf("disk %s was not in the newest point: all of it was compared with an older one, the list was not used", d.Name), nil
	}
	if note := d.Source.Changed(); note != "" || d.Note == nil {
		return note, nil
	}
	return d.Note(), nil
}

// MaxRanges bounds a list of changed extents.
const MaxRanges = 1 << 20

// CheckRanges returns an Invalid error unless the ranges ascend, do not overlap and lie inside the disk.
func CheckRanges(ranges []snapshotchain.ByteRange, size int64) error {
	if len(ranges) > MaxRanges {
		return errs.WithTry(errs.New(errs.Invalid, "%d extents; at most %d", len(ranges), MaxRanges),
			"join neighbours, or leave the list out: then all is compared")
	}
	end := int64(0)
	for i, r := range ranges {
		switch {
		case r.Offset < 0 || r.Length <= 0:
			return rangeError(i, r, "offset must not be negative, length must be positive")
		case r.Offset > size || r.Length > size-r.Offset:
			return rangeError(i, r, fmt.Sprintf("it ends behind the disk of %d bytes", size))
		case r.Offset < end && i > 0 && r.Offset+r.Length <= ranges[i-1].Offset:
			return rangeError(i, r, "it lies before the extent before it; the list must be sorted by offset")
		case r.Offset < end:
			return rangeError(i, r, "it overlaps the extent before it, or lies before it")
		}
		end = r.Offset + r.Length
	}
	return nil
}

func rangeError(i int, r snapshotchain.ByteRange, why string) error {
	return errs.WithTry(errs.New(errs.Invalid, "extent %d (offset %d, length %d): %s", i, r.Offset, r.Length, why),
		"sort the list and join overlaps, or leave it out: then all is compared")
}
