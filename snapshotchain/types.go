package snapshotchain

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"livemount/internal/errs"
	"livemount/snapshotchain/chunkstore"
)

// VM is a machine whose disks are kept, or a branch of one: a line of points of its own, named VM:BRANCH,
// that began at a point of another.
type VM struct {
	ID      VMID      `json:"vm"`
	Name    string    `json:"name"`
	Of      VMID      `json:"of,omitempty"` // the VM that a branch belongs to; 0 for a VM
	Created time.Time `json:"created"`
	Disks   []VMDisk  `json:"disks"` // every disk that it ever had
	Points  uint64    `json:"points"`
	Next    uint64    `json:"next"` // ordinal of the next point
	Latest  PointID   `json:"latest"`
	Time    time.Time `json:"time"` // of the latest point
	Sum     digest    `json:"sum"`  // over the records of its points
}

// VMDisk names the lineage of a disk.
type VMDisk struct {
	Name    string    `json:"name"`
	Lineage LineageID `json:"lineage"`
}

func (v *VM) lineage(disk string) LineageID {
	for _, d := range v.Disks {
		if d.Name == disk {
			return d.Lineage
		}
	}
	return 0
}

// Point is a sealed point in time of a VM. It never changes.
type Point struct {
	ID          PointID     `json:"point"`
	VM          VMID        `json:"vm"`
	Ordinal     uint64      `json:"ordinal"` // of the VM's points, from 1
	Journal     uint64      `json:"journal"` // number of the journal record that sealed it
	Time        time.Time   `json:"time"`
	Parent      PointID     `json:"parent"` // 0 for the first
	Consistency string      `json:"consistency"`
	Disks       []PointDisk `json:"disks"`
	Config      *Config     `json:"config,omitempty"`
	Notes       []string    `json:"notes,omitempty"`
	Origin      *Origin     `json:"origin,omitempty"` // of a commit
}

// Origin says which state of a mount a point holds.
type Origin struct {
	Mount   string `json:"mount"`
	Segment uint64 `json:"segment"` // all of the mount's log before this position is in the point
	Offset  int64  `json:"offset"`
}

// Disk returns the disk of that name, or nil.
func (p *Point) Disk(name string) *PointDisk {
	for i := range p.Disks {
		if p.Disks[i].Name == name {
			return &p.Disks[i]
		}
	}
	return nil
}

// PointDisk is a disk as of a point.
type PointDisk struct {
	Name         string         `json:"name"`
	Lineage      LineageID      `json:"lineage"`
	Seq          Seq            `json:"seq"`
	SizeBytes    int64          `json:"size_bytes"`
	DataBytes    int64          `json:"data_bytes"` // pages that are not zero
	ReadBytes    int64          `json:"read_bytes"`
	ChangedBytes int64          `json:"changed_bytes"`
	StoredBytes  int64          `json:"stored_bytes"`
	Mode         string         `json:"mode"` // full, compare or list
	Source       string         `json:"source"`
	Image        string         `json:"image,omitempty"` // stands for what the source held, "" when nothing does
	Root         chunkstore.Sum `json:"root"`
	Skipped      []ByteRange    `json:"skipped,omitempty"` // known to be unused: not read, reads as zeroes
}

// ByteRange is a range of a disk in bytes.
type ByteRange struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// Config is a captured configuration (.vmx, libvirt XML, anything).
type Config struct {
	Name      string         `json:"name"`
	SizeBytes int64          `json:"size_bytes"`
	Ptr       chunkstore.Ptr `json:"ptr"`
}

// seal is what a point's disk adds to the map.
type seal struct {
	Lineage LineageID      `json:"lineage"`
	Seq     Seq            `json:"seq"`
	Prev    Seq            `json:"prev"`           // the point before in this lineage, 0 for the first
	Base    *base          `json:"base,omitempty"` // what shows where this lineage has nothing
	Size    int64          `json:"size_bytes"`
	Data    int64          `json:"data_pages"`
	Sum     chunkstore.Sum `json:"sum"`
	Dirs    []byte         `json:"dirs"` // version of each directory page, run-coded
	Parts   []Part         `json:"parts"`
}

// base is the point that a child lineage stands on.
type base struct {
	Lineage LineageID `json:"lineage"`
	Seq     Seq       `json:"seq"`
	// Limit is how much of it shows, in bytes: what a disk lost when it shrank does not come back when it
	// grows.
	Limit int64 `json:"limit_bytes"`
}

// lineage is the history of one disk.
type lineage struct {
	ID     LineageID `json:"lineage"`
	VM     VMID      `json:"vm"`
	Disk   string    `json:"disk"`
	Base   *base     `json:"base,omitempty"`
	Next   Seq       `json:"next"`   // never used yet
	Latest Seq       `json:"latest"` // newest sealed, 0 when none
	// Forked says that a point builds upon another than the one before it, which had been expired.
	Forked bool `json:"forked,omitempty"`
}

// maxName bounds names of VMs and disks, in bytes.
const maxName = 200

// CheckVMName returns an Invalid error unless name can name a VM in VM@TIME and as a folder.
func CheckVMName(name string) error { return checkName("VM", name, "/@:\\*?\"<>|") }

// CheckBranchName returns an Invalid error unless name can name a branch in VM:BRANCH@TIME.
func CheckBranchName(name string) error { return checkName("branch", name, "/@:=,\\*?\"<>| ") }

// CheckDiskName returns an Invalid error unless name can name a disk and a file.
func CheckDiskName(name string) error { return checkName("disk", name, "/@:=,\\*?\"<>| ") }

func checkName(what, name, forbidden string) error {
	bad := name == "" || len(name) > maxName || !utf8.ValidString(name) || strings.ContainsAny(name, forbidden) ||
		strings.HasPrefix(name, ".") || strings.HasPrefix(name, "-") || strings.TrimSpace(name) != name ||
		strings.ContainsFunc(name, unicode.IsControl)
	if bad {
		return errs.New(errs.Invalid, "%q cannot name a %s: use up to %d bytes, none of %s, no leading . or -", name, what, maxName, forbidden)
	}
	return nil
}
