package fs

import (
	"context"
	"time"

	"livemount/blockdev"
)

// Catalogue tells a History which points there are. They may come and go at any time; each call answers for
// the moment. What is not there (any more) is NotFound.
type Catalogue interface {
	// VMs returns all VMs, in any order. No two have the same name.
	VMs() []VM
	// VM returns a VM by its id, VMNamed by its name.
	VM(id uint64) (VM, error)
	VMNamed(name string) (VM, error)
	// Points returns, in ascending order, at most limit points of a VM whose ordinals are above after.
	Points(ctx context.Context, vm, after uint64, limit int) ([]Point, error)
	// PointAt returns the point of a VM with exactly this time.
	PointAt(ctx context.Context, vm uint64, at time.Time) (Point, error)
	// Open opens a disk of a point that is, or was, there. The caller closes it.
	Open(ctx context.Context, d PointDisk) (blockdev.Reader, error)
}

// VM is a machine, or a branch of one, with points.
type VM struct {
	ID     uint64 // never used again for another
	Name   string // passes CheckName; may change
	Points int
	// Changed is the time of the newest point; without points, that of the VM itself.
	Changed time.Time
}

// Point is a point in time of a VM. It never changes.
type Point struct {
	ID      uint64
	Ordinal uint64    // of the points of its VM, from 1 and below 1<<61; never used again
	Time    time.Time // no other point that its VM has at the same moment has it
	Disks   []PointDisk
}

// PointDisk is a disk as of a point. VM, Point and Lineage together name it for ever.
type PointDisk struct {
	VM, Point uint64
	Lineage   uint64
	Seq       uint64 // for the Catalogue to find it by
	Name      string
	SizeBytes int64
	DataBytes int64 // that are not zero
}
