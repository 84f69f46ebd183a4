package server

import (
	"encoding/json"
	"path"
	"time"

	"golang.org/x/sync/errgroup"

	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/snapshotchain"
)

// mountRecord says what a mount is. It is kept twice, as record.a and record.b, so that a spoiled one leaves
// the other; format in FORMAT.md.
type mountRecord struct {
	Format    int                   `json:"format"`
	Gen       uint64                `json:"gen"` // grows with each write; of the good copies the highest counts
	ID        mountID               `json:"mount"`
	Kind      string                `json:"kind,omitempty"` // "" shows a point, browse all of them
	VM        string                `json:"vm"`
	VMID      snapshotchain.VMID    `json:"vm_id"`
	Point     snapshotchain.PointID `json:"point"`
	PointTime time.Time             `json:"point_time"`
	Created   time.Time             `json:"created"`
	Path      string                `json:"path"`     // "" when it is served through NFS only
	MadeDir   bool                  `json:"made_dir"` // the folder was made for the mount and goes with it
	ReadOnly  bool                  `json:"read_only"`
	State     string                `json:"state"` // mounted, kept, discarded or forking
	Disks     []mountDisk           `json:"disks"`
	Overlay   int64                 `json:"overlay_bytes"` // these three as of the last time that the log was closed
	Written   int64                 `json:"written_bytes"`
	Modified  bool                  `json:"modified"`
	Origin    mountID               `json:"origin,omitempty"`    // the mount that it was forked from
	Datastore bool                  `json:"datastore,omitempty"` // Path shows the datastore and not only the disks
	NFS       bool                  `json:"nfs,omitempty"`       // the datastore is exported
	NBD       bool                  `json:"nbd,omitempty"`       // the disks are exported
	// NBDAddress is where; "" is the daemon's.
	NBDAddress string   `json:"nbd_address,omitempty"`
	Allow      []string `json:"allow,omitempty"` // rules of the export; none are the daemon's
	// Laid is the last record of the log when the first files had been made there; 0 when something had been written
	// before. What comes behind is somebody's writing.
	Laid uint64 `json:"laid,omitempty"`

	alone bool // the other copy does not say the same
}

type mountDisk struct {
	Node uint64                  `json:"node"`
	Disk snapshotchain.PointDisk `json:"disk"`
}

type ofMount struct{}

// mountID names a mount.
type mountID = snapshotchain.ID[ofMount]

// States of a mount record.
const (
	stateMounted   = "mounted"
	stateKept      = "kept"
	stateDiscarded = "discarded"
	stateForking   = "forking" // a fork that is not complete: it is removed
)

// kindBrowse is the kind of a mount that shows all points.
const kindBrowse = "browse"

const (
	recordFormat = 1
	maxRecord    = 1 << 20
)

// write makes the record durable in dir, both copies of it. They are written side by side, for the time of
// one; when only one gets there, it is whole, and the newer one counts.
func (r *mountRecord) write(dir string) error {
	r.Format = recordFormat
	r.Gen++
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	var g errgroup.Group
	for _, name := range recordNames() {
		g.Go(func() error { return vfs.WriteChecked(vfs.OS{}, path.Join(dir, name), b) })
	}
	return g.Wait()
}

func recordNames() [2]string { return [2]string{"record.a", "record.b"} }

// readMountRecord returns the newest good record in dir; bad is the error of a copy that is spoiled.
// NotFound when none was ever written.
func readMountRecord(dir string) (rec *mountRecord, bad, err error) {
	names := recordNames()
	a, errA := readOneRecord(path.Join(dir, names[0]))
	b, errB := readOneRecord(path.Join(dir, names[1]))
	switch {
	case errs.Is(errA, errs.Newer) || errs.Is(errB, errs.Newer):
		return nil, nil, errs.New(errs.Newer, "mount record in %s was written by a newer version", dir)
	case errA == nil && (errB != nil || a.Gen > b.Gen):
		a.alone = true
		return a, a.spoiled(errB), nil
	case errB == nil:
		b.alone = errA != nil || a.Gen < b.Gen
		return b, b.spoiled(errA), nil
	case errs.Is(errA, errs.NotFound) && errs.Is(errB, errs.NotFound):
		return nil, nil, errA
	default:
		return nil, nil, errs.New(errs.Corrupt, "mount record in %s: %v; %v", dir, errA, errB)
	}
}

// spoiled is the error of the other copy, unless a crash explains it: the first change may have made only one.
func (r *mountRecord) spoiled(err error) error {
	if r.Gen == 1 && errs.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

func readOneRecord(name string) (*mountRecord, error) {
	b, err := vfs.ReadFile(vfs.OS{}, name, maxRecord)
	if err != nil {
		return nil, err
	}
	return parseMountRecord(name, b)
}

func parseMountRecord(name string, b []byte) (*mountRecord, error) {
	b, err := vfs.Checked(name, b)
	if err != nil {
		return nil, err
	}
	var r mountRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, errs.New(errs.Corrupt, "%s: %w", name, err)
	}
	if r.Format > recordFormat {
		return nil, errs.New(errs.Newer, "%s: format %d; this version knows %d", name, r.Format, recordFormat)
	}
	return &r, nil
}
