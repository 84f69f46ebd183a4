// Package api holds the types of livemountd's HTTP API and its client. All paths begin with /v1; bodies
// are JSON, times RFC 3339 in UTC, sizes bytes, ids lower-case hex. Fields are only ever added.
package api

import (
	"fmt"
	"net/url"
	"strings"
	"time"
)

// Version is that of Livemount: both programs and the API.
const Version = "0.1.0"

// Range is a range of a disk in bytes.
type Range struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// BackupRequest is the body of POST /v1/backups.
type BackupRequest struct {
	VM     string       `json:"vm"`
	Disks  []DiskSource `json:"disks"`
	Full   bool         `json:"full,omitempty"`
	Config *ConfigFile  `json:"config,omitempty"`
	// Compression is fast, default or best; empty is livemountd's setting.
	Compression string `json:"compression,omitempty"`
	// SkipSpaceCheck begins also when there seems to be too little room.
	SkipSpaceCheck bool `json:"skip_space_check,omitempty"`
	// QEMU is a running machine. Disks then say which of its disks are wanted, with the device or node as their source; none is all.
	QEMU *QEMU `json:"qemu,omitempty"`
}

// QEMU says how a running QEMU is reached. All are absolute paths on the server's machine.
type QEMU struct {
	QMP     string `json:"qmp"`               // a unix socket
	Agent   string `json:"agent,omitempty"`   // the guest agent's; "" freezes nothing
	Scratch string `json:"scratch,omitempty"` // a folder that QEMU can write to; default that of the socket
}

// DiskSource says where the bytes of a disk are: a path on the server's machine, or an NBD URI.
type DiskSource struct {
	Name   string `json:"name"`
	Source string `json:"source"`
	// Format is raw or qcow2; empty goes by the name: .qcow2 and .qcow are qcow2, all else is raw.
	Format string `json:"format,omitempty"`
	// BackingDir is the folder that backing files of a qcow2 image must lie in; empty follows none.
	BackingDir string `json:"backing_dir,omitempty"`
	// Changed lists what may differ from the newest point; null means that all is compared.
	Changed *[]Range `json:"changed,omitempty"`
	// Bitmap names the dirty bitmap of an NBD export that lists the same.
	Bitmap string `json:"bitmap,omitempty"`
}

// ConfigFile is a configuration that is kept with a point.
type ConfigFile struct {
	Name string `json:"name"`
	Data []byte `json:"data"` // base64
}

// Backup is the result of a backup.
type Backup struct {
	VM             string       `json:"vm"`
	Point          string       `json:"point"`
	Time           time.Time    `json:"time"`
	Disks          []BackupDisk `json:"disks"`
	ElapsedSeconds float64      `json:"elapsed_seconds"`
	Notes          []string     `json:"notes,omitempty"`
	Job            string       `json:"job"`
}

// BackupDisk tells what was done with a disk.
type BackupDisk struct {
	Name         string `json:"name"`
	SizeBytes    int64  `json:"size_bytes"`
	ReadBytes    int64  `json:"read_bytes"`
	ChangedBytes int64  `json:"changed_bytes"`
	StoredBytes  int64  `json:"stored_bytes"`
	DataBytes    int64  `json:"data_bytes"`
	Mode         string `json:"mode"` // full, compare or list
	Root         string `json:"root"` // root hash of the content
}

// VM is a machine with points.
type VM struct {
	VM         string    `json:"vm"`
	ID         string    `json:"id"`
	Disks      []string  `json:"disks"`
	Points     int       `json:"points"`
	Latest     string    `json:"latest"`
	LatestTime time.Time `json:"latest_time"`
	Created    time.Time `json:"created"`
	BranchOf   string    `json:"branch_of,omitempty"` // the VM that this branch belongs to
}

// RenameRequest is the body of POST /v1/vms/NAME/rename.
type RenameRequest struct {
	Name string `json:"name"`
}

// RemoveRequest is the body of POST /v1/vms/NAME/remove. NAME is a VM, or a branch as VM:BRANCH.
type RemoveRequest struct {
	DryRun bool `json:"dry_run,omitempty"` // only tells what would go
}

// Removed tells what goes, or went, with a VM.
type Removed struct {
	VM        string    `json:"vm"`
	Branches  []string  `json:"branches"` // whole names
	Points    int       `json:"points"`   // of all of them
	DataBytes int64     `json:"data_bytes"`
	Oldest    time.Time `json:"oldest"`
	Newest    time.Time `json:"newest"`
	Mounts    []string  `json:"mounts"`  // they must be unmounted first
	Guarded   []string  `json:"guarded"` // points with holds and locks, and why: they must be released, or wait
	Removed   bool      `json:"removed"`
}

// VMs is the body of GET /v1/vms.
type VMs struct {
	VMs []VM `json:"vms"`
}

// Point is a point in time.
type Point struct {
	VM          string       `json:"vm"`
	Point       string       `json:"point"`
	Time        time.Time    `json:"time"`
	Parent      *string      `json:"parent"` // null for the first
	Consistency string       `json:"consistency"`
	Disks       []BackupDisk `json:"disks"`
	Config      *PointConfig `json:"config,omitempty"`
	Notes       []string     `json:"notes,omitempty"`
	Mounts      []string     `json:"mounts,omitempty"`
	Holds       []Hold       `json:"holds,omitempty"`
	LockedUntil *time.Time   `json:"locked_until,omitempty"` // by the store's clock
	UniqueBytes *int64       `json:"unique_bytes,omitempty"` // stored, that only this point needs; not there when that is not known
}

// Hold keeps a point until it is released.
type Hold struct {
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
}

// ExpireRequest is the body of POST /v1/points/expire.
type ExpireRequest struct {
	Refs   []string `json:"refs"` // VM@TIME
	DryRun bool     `json:"dry_run,omitempty"`
}

// Expired tells which points went, or would go.
type Expired struct {
	Points  []ExpiredPoint `json:"points"`
	Expired bool           `json:"expired"`
}

// ExpiredPoint is one of them. Reason says why it cannot go now.
type ExpiredPoint struct {
	VM     string    `json:"vm"`
	Point  string    `json:"point"`
	Time   time.Time `json:"time"`
	Reason string    `json:"reason,omitempty"`
}

// HoldRequest is the body of POST /v1/points/hold and /v1/points/release; a release without a reason ends all holds.
type HoldRequest struct {
	Ref    string `json:"ref"`
	Reason string `json:"reason,omitempty"`
}

// LockRequest is the body of POST /v1/points/lock.
type LockRequest struct {
	Ref   string `json:"ref"`
	Until string `json:"until"` // a time as in VM@TIME, or a duration as 30d
}

// CollectRequest is the body of POST /v1/gc.
type CollectRequest struct {
	DryRun bool `json:"dry_run,omitempty"`
}

// Collection tells what a collection found and did, or would do.
type Collection struct {
	DryRun              bool      `json:"dry_run"`
	Started             time.Time `json:"started"`
	ElapsedSeconds      float64   `json:"elapsed_seconds"`
	MarkSeconds         float64   `json:"mark_seconds"`
	Points              uint64    `json:"points"`     // that are kept
	Pointers            int64     `json:"pointers"`   // of the map, that were looked at
	Containers          int       `json:"containers"` // that were looked at
	LiveBytes           int64     `json:"live_bytes"` // as stored, of these
	DeadBytes           int64     `json:"dead_bytes"`
	FreedBytes          int64     `json:"freed_bytes"` // on disk
	RemovedContainers   int       `json:"removed_containers"`
	RewrittenContainers int       `json:"rewritten_containers"`
	HeldContainers      int       `json:"held_containers"`    // left for the next time: a backup that runs found data there
	DamagedContainers   int       `json:"damaged_containers"` // left: data that is needed there is bad
	Error               *Error    `json:"error,omitempty"`
}

// RulesRequest is the body of POST /v1/retention/rules: of a VM, or, without one, of those that have no rules.
type RulesRequest struct {
	VM    string `json:"vm,omitempty"`
	Rules string `json:"rules"` // "" for none
}

// RulesList is the body of GET /v1/retention.
type RulesList struct {
	Default string    `json:"default"`
	VMs     []VMRules `json:"vms"`
}

// VMRules are the rules that a VM has.
type VMRules struct {
	VM    string `json:"vm"`
	Rules string `json:"rules"` // "": all is kept
	Own   bool   `json:"own"`   // not the default
}

// Explained is the body of GET /v1/retention/explain?vm=NAME, newest first.
type Explained struct {
	VM     string           `json:"vm"`
	Rules  string           `json:"rules"`
	Points []ExplainedPoint `json:"points"`
}

// ExplainedPoint says what the rules do with a point.
type ExplainedPoint struct {
	Point   string     `json:"point"`
	Time    time.Time  `json:"time"`
	Good    bool       `json:"good"`
	Kept    bool       `json:"kept"`
	Reasons []string   `json:"reasons"`
	Goes    *time.Time `json:"goes,omitempty"` // about when it is not kept any more, if that can be foreseen
}

// ApplyRequest is the body of POST /v1/retention/apply.
type ApplyRequest struct {
	VMs    []string `json:"vms,omitempty"` // all when empty
	DryRun bool     `json:"dry_run,omitempty"`
	Plan   string   `json:"plan,omitempty"` // do just this, or nothing
}

// Applied tells what the rules let go, or would.
type Applied struct {
	Plan    string         `json:"plan"` // its hash
	Points  []ExpiredPoint `json:"points"`
	Kept    int            `json:"kept"` // points of the same VMs
	Applied bool           `json:"applied"`
}

// KeyAddRequest is the body of POST /v1/keys.
type KeyAddRequest struct {
	Kind   string `json:"kind"`   // passphrase or keyfile
	Secret []byte `json:"secret"` // base64; a passphrase with or without its newline
	Label  string `json:"label,omitempty"`
}

// Keys says who can open an encrypted store.
type Keys struct {
	Slots   []KeySlot `json:"slots"`
	Epochs  int       `json:"epochs"`  // keys of files, old and new
	Rotated time.Time `json:"rotated"` // since when new files have the keys that they have now
}

// KeySlot is a passphrase or a key file.
type KeySlot struct {
	Slot    string    `json:"slot"`
	Kind    string    `json:"kind"`
	Label   string    `json:"label"`
	Created time.Time `json:"created"`
	Damage  string    `json:"damage,omitempty"`
}

// PointConfig tells which configuration was captured.
type PointConfig struct {
	Name      string `json:"name"`
	SizeBytes int64  `json:"size_bytes"`
}

// Points is the body of GET /v1/points?vm=NAME, oldest first, and of GET /v1/points?ref=VM@TIME.
type Points struct {
	Points []Point `json:"points"`
}

// Place says where a mount is shown: under a folder, through NFS, or both.
type Place struct {
	Path string `json:"path"` // absolute; may be empty with NFS or NBD
	// Datastore shows under Path what a hypervisor sees: configuration, descriptors, disks and files beside them.
	Datastore bool `json:"datastore,omitempty"`
	NFS       bool `json:"nfs,omitempty"` // exports the datastore
	// NBD exports the disks at NBDAddress, HOST:PORT or unix:PATH; "" is livemountd's setting.
	NBD        bool   `json:"nbd,omitempty"`
	NBDAddress string `json:"nbd_address,omitempty"`
	// Allow says who may mount it: ADDRESS or NETWORK with options, "10.1.0.0/16,ro"; none is livemountd's setting.
	Allow []string `json:"allow,omitempty"`
}

// MountNBD tells how the disks of a mount are exported through NBD.
type MountNBD struct {
	Address     string `json:"address"`     // HOST:PORT or unix:PATH
	Connections int    `json:"connections"` // that are open
}

// MountRequest is the body of POST /v1/mounts.
type MountRequest struct {
	Ref string `json:"ref"` // VM@TIME
	Place
	ReadOnly bool `json:"read_only,omitempty"`
}

// ExportsRequest is the body of POST /v1/mounts/ID/exports; the answer is the mount.
type ExportsRequest struct {
	Allow  []string `json:"allow,omitempty"`  // rules that are added, or replace those of the same network
	Remove []string `json:"remove,omitempty"` // networks whose rules go
}

// BrowseRequest is the body of POST /v1/browse; the answer is a mount.
type BrowseRequest struct {
	Path string `json:"path"` // absolute
}

// ResumeRequest is the body of POST /v1/mounts/ID/resume.
type ResumeRequest struct {
	Place
}

// UnmountRequest is the body of POST /v1/mounts/ID/unmount. ID may be a unique prefix of an id, or, as
// the query parameter path, the folder.
type UnmountRequest struct {
	Keep  bool `json:"keep,omitempty"`  // keep what was written
	Force bool `json:"force,omitempty"` // also when files are open there, or NFS clients have it mounted
	// DryRun only tells what would go.
	DryRun bool `json:"dry_run,omitempty"`
}

// CommitRequest is the body of POST /v1/mounts/ID/commit; the answer is a job.
type CommitRequest struct {
	Branch string `json:"branch"`
}

// ForkRequest is the body of POST /v1/mounts/ID/fork; the answer is the new mount.
type ForkRequest struct {
	Place
}

// Mount is a point that is, or was, mounted.
type Mount struct {
	Mount          string      `json:"mount"`
	Kind           string      `json:"kind,omitempty"` // browse: all VMs and points, read-only; vm is *
	VM             string      `json:"vm"`
	Point          string      `json:"point,omitempty"`
	PointTime      time.Time   `json:"point_time,omitzero"`
	Path           string      `json:"path"`
	State          string      `json:"state"` // mounted, kept or failed
	Reason         string      `json:"reason,omitempty"`
	ReadOnly       bool        `json:"read_only"`
	Disks          []MountDisk `json:"disks"`
	Created        time.Time   `json:"created"`
	OverlayBytes   int64       `json:"overlay_bytes"` // what it takes on disk
	WrittenBytes   int64       `json:"written_bytes"` // data that differs from the point
	ForkedFrom     string      `json:"forked_from,omitempty"`
	Modified       bool        `json:"modified"`        // something differs from the point, be it only zeroes
	ElapsedSeconds float64     `json:"elapsed_seconds"` // that it took to mount, the last time
	Datastore      bool        `json:"datastore"`       // Path shows the datastore
	FetchedBytes   int64       `json:"fetched_bytes"`   // read of the point since it was served
	NFSURL         string      `json:"nfs_url,omitempty"`
	NBD            *MountNBD   `json:"nbd,omitempty"`
	NFS            *MountNFS   `json:"nfs,omitempty"` // not there when it is not exported
}

// MountNFS is the NFS export of a mount.
type MountNFS struct {
	Server       string      `json:"server"`
	Export       string      `json:"export"` // the path to mount
	Port         int         `json:"port"`
	MountPort    int         `json:"mount_port"`
	Portmap      bool        `json:"portmap"` // clients need not be told the ports
	Allow        []string    `json:"allow"`
	Clients      []NFSClient `json:"clients"`
	ReadBytes    int64       `json:"read_bytes"` // these three since it was served
	WrittenBytes int64       `json:"written_bytes"`
	Calls        int64       `json:"calls"`
}

// URL is the export, or a path in it that begins with a slash, as libnfs's programs take it.
func (n *MountNFS) URL(path string) string {
	host := n.Server
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	u := "nfs://" + host + (&url.URL{Path: n.Export + path}).EscapedPath()
	if n.Portmap {
		return u
	}
	return fmt.Sprintf("%s?nfsport=%d&mountport=%d", u, n.Port, n.MountPort)
}

// NFSClient is a client that mounted and did not say that it unmounted.
type NFSClient struct {
	Address     string    `json:"address"`
	Mounted     time.Time `json:"mounted"`
	Seen        time.Time `json:"seen,omitzero"` // its last call since livemountd started
	Connections int       `json:"connections"`
}

// MountDisk is a disk of a mount.
type MountDisk struct {
	Name      string `json:"name"`
	Path      string `json:"path"` // "" when it is shown through NFS only
	SizeBytes int64  `json:"size_bytes"`
	NFSURL    string `json:"nfs_url,omitempty"` // of its flat file
	NBDURL    string `json:"nbd_url,omitempty"` // a URI
}

// Mounts is the body of GET /v1/mounts.
type Mounts struct {
	Mounts []Mount `json:"mounts"`
}

// Job is a piece of work with its steps.
type Job struct {
	Job      string     `json:"job"`
	Kind     string     `json:"kind"`
	Subject  string     `json:"subject"`
	State    string     `json:"state"` // waiting, running, done, failed, canceled or interrupted
	Started  time.Time  `json:"started"`
	Ended    *time.Time `json:"ended"`
	Steps    []Step     `json:"steps"`
	Progress *Progress  `json:"progress,omitempty"`
	Result   *Backup    `json:"result,omitempty"`
	Verified *Verified  `json:"verified,omitempty"`
	Scrubbed *Scrubbed  `json:"scrubbed,omitempty"`
	Error    *Error     `json:"error,omitempty"`
}

// VerifyRequest is the body of POST /v1/verify.
type VerifyRequest struct {
	Ref string `json:"ref"`
}

// Verified is what reading all of a point from the disks found.
type Verified struct {
	VM        string    `json:"vm"`
	Point     string    `json:"point"`
	Time      time.Time `json:"time"`
	DataBytes int64     `json:"data_bytes"`
	Chunks    int64     `json:"chunks"`
	Good      bool      `json:"good"`
	Bad       []Damaged `json:"bad"` // the first 1000 ranges
}

// Damaged is a range of a disk of a point that cannot be read.
type Damaged struct {
	VM     string `json:"vm"`
	Point  string `json:"point"`
	Disk   string `json:"disk"`
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
}

// ScrubRequest is the body of POST /v1/scrub.
type ScrubRequest struct {
	All bool `json:"all,omitempty"` // also what was read within the age
}

// Scrubbed is what reading containers again found.
type Scrubbed struct {
	Containers int       `json:"containers"`
	ReadBytes  int64     `json:"read_bytes"`
	BadRecords int       `json:"bad_records"`
	Touched    []Damaged `json:"touched"` // what is bad in the whole store, the first 1000 ranges
}

// ScrubState tells how far scrubbing is.
type ScrubState struct {
	Containers int       `json:"containers"`
	Bytes      int64     `json:"bytes"`
	DueBytes   int64     `json:"due_bytes"` // not read within the age
	AgeDays    float64   `json:"age_days"`
	Oldest     time.Time `json:"oldest"`
}

// Finished says whether the job will not change any more.
func (j *Job) Finished() bool { return j.Ended != nil }

// Step is a part of a job.
type Step struct {
	Name    string     `json:"name"`
	Started time.Time  `json:"started"`
	Ended   *time.Time `json:"ended"`
}

// Progress tells how far a job is. Rates are over the whole time so far.
type Progress struct {
	TotalBytes     int64    `json:"total_bytes"`
	LookedBytes    int64    `json:"looked_bytes"` // of the total: read, or known to be unchanged
	ReadBytes      int64    `json:"read_bytes"`
	ChangedBytes   int64    `json:"changed_bytes"`
	StoredBytes    int64    `json:"stored_bytes"`
	BytesPerSecond float64  `json:"bytes_per_second"`
	SecondsLeft    *float64 `json:"seconds_left"` // null while unknown
}

// Jobs is the body of GET /v1/jobs, newest first.
type Jobs struct {
	Jobs []Job `json:"jobs"`
}

// Status is the body of GET /v1/status.
type Status struct {
	Version       string  `json:"version"`
	Store         string  `json:"store"`
	Data          string  `json:"data"`
	VMs           int     `json:"vms"`
	Points        int     `json:"points"`
	Mounts        int     `json:"mounts"`
	LogicalBytes  int64   `json:"logical_bytes"` // data of all points, as if nothing were shared
	SharedBytes   int64   `json:"shared_bytes"`  // of that, what is not stored again
	UniqueBytes   int64   `json:"unique_bytes"`  // the rest, before compression
	StoredBytes   int64   `json:"stored_bytes"`  // on disk
	FastBytes     int64   `json:"fast_bytes"`    // of that, stored fast and to be compressed better when no job runs
	MetadataBytes int64   `json:"metadata_bytes"`
	OverlayBytes  int64   `json:"overlay_bytes"`
	Ratio         float64 `json:"ratio"` // logical to stored
	FreeBytes     int64   `json:"free_bytes"`
	// StoreTime is by the store's own clock, by which locks count; the machine's is ahead of it by ClockAheadSeconds.
	StoreTime         time.Time   `json:"store_time"`
	ClockAheadSeconds float64     `json:"clock_ahead_seconds"`
	LastCollection    *Collection `json:"last_collection,omitempty"`
	Scrub             ScrubState  `json:"scrub"`
	BadRecords        int         `json:"bad_records"`
	Healthy           bool        `json:"healthy"`
	ReadOnly          string      `json:"read_only,omitempty"` // why no changes are taken
	Damage            []string    `json:"damage"`
	UptimeSeconds     float64     `json:"uptime_seconds"`
}

// Error is the body of every answer that is not 2xx, as {"error": …}.
type Error struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
	Try     string `json:"try,omitempty"`
}

// ErrorBody wraps an Error.
type ErrorBody struct {
	Error Error `json:"error"`
}
