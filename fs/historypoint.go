package fs

import (
	"context"
	iofs "io/fs"
	"iter"
	"strings"
	"time"

	"livemount/blockdev"
	"livemount/internal/errs"
)

// diskSuffix is behind the name of a disk: its file is a raw image.
const diskSuffix = ".raw"

// pointFolder holds the disks of a point.
type pointFolder struct {
	h     *History
	vm    uint64
	point uint64
	at    int64 // nanoseconds since 1970
}

// ID implements Node.
func (f pointFolder) ID() NodeID { return hashID(idOfPoint, f.vm, f.point) }

// Parent implements Folder.
func (f pointFolder) Parent() NodeID { return hashID(idOfVM, f.vm) }

// Attr implements Node.
func (f pointFolder) Attr() Attr { return folderAttr(f.ID(), time.Unix(0, f.at)) }

// disks returns the disks of the point, or NotFound when it is gone.
func (f pointFolder) disks(ctx context.Context) ([]PointDisk, error) {
	p, err := f.h.cat.PointAt(ctx, f.vm, time.Unix(0, f.at))
	if err == nil && p.ID != f.point {
		err = errs.New(errs.NotFound, "another point has its time")
	}
	return p.Disks, err
}

// Lookup implements Folder.
func (f pointFolder) Lookup(ctx context.Context, name string) (Node, error) {
	disks, err := f.disks(ctx)
	if err != nil {
		return nil, err
	}
	if disk, ok := strings.CutSuffix(name, diskSuffix); ok {
		for _, d := range disks {
			if d.Name == disk {
				return pointFile{f.h, d, f.at}, nil
			}
		}
	}
	return nil, errs.New(errs.NotFound, "the point has no disk %q", name)
}

// List implements Folder. The cookie behind a disk is how many there are up to it: they never change.
func (f pointFolder) List(ctx context.Context, behind Cookie, limit int) ([]Entry, error) {
	disks, err := f.disks(ctx)
	if errs.Is(err, errs.NotFound) { // somebody has the folder open
		return nil, nil
	}
	var list []Entry
	for i := int(min(behind, Cookie(len(disks)))); i < len(disks) && len(list) < limit; i++ {
		list = append(list, Entry{Name: disks[i].Name + diskSuffix, ID: diskID(disks[i]), Cookie: Cookie(i + 1)})
	}
	return list, err
}

func diskID(d PointDisk) NodeID { return hashID(idOfDisk, d.VM, d.Point, d.Lineage) }

// pointFile is a disk of a point. It can be read when the point is gone.
type pointFile struct {
	h  *History
	d  PointDisk
	at int64 // nanoseconds since 1970
}

// ID implements Node.
func (f pointFile) ID() NodeID { return diskID(f.d) }

// Size implements Regular.
func (f pointFile) Size() int64 { return f.d.SizeBytes }

// Attr implements Node.
func (f pointFile) Attr() Attr {
	at := time.Unix(0, f.at)
	return Attr{
		ID: f.ID(), Mode: iofs.FileMode(0o400), SizeBytes: f.d.SizeBytes, AllocatedBytes: f.d.DataBytes,
		Accessed: at, Modified: at, Changed: at,
	}
}

// ReadAt implements Regular.
func (f pointFile) ReadAt(ctx context.Context, p []byte, off int64) error {
	d, err := f.h.disks.get(ctx, f.d)
	if err != nil {
		return err
	}
	defer d.release()
	return d.ReadAt(ctx, p, off)
}

// Extents implements Regular.
func (f pointFile) Extents(ctx context.Context, off, n int64) iter.Seq2[blockdev.Extent, error] {
	return func(yield func(blockdev.Extent, error) bool) {
		d, err := f.h.disks.get(ctx, f.d)
		if err != nil {
			yield(blockdev.Extent{}, err)
			return
		}
		defer d.release()
		for e, err := range d.Extents(ctx, off, n) {
			if !yield(e, err) {
				return
			}
		}
	}
}
