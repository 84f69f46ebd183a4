package fs

import (
	"context"
	iofs "io/fs"
	"time"
)

// Writable is a Regular that may take writes: a *File, or a file of a Mutable tree.
type Writable interface {
	Regular
	// Writable says whether it does.
	Writable() bool
	// Limit is the first offset that no write may reach: the size of what cannot grow.
	Limit() int64
	// WriteAt is that of blockdev.WriterAt. A write behind the end makes a file longer that can grow.
	WriteAt(ctx context.Context, p []byte, off int64) error
	// Zero is that of blockdev.Device, inside of the size.
	Zero(ctx context.Context, off, n int64) error
	// Sync is that of blockdev.WriterAt.
	Sync(ctx context.Context) error
}

// Mutable is a tree in which names are made, changed and removed. What a change did is visible when it returns, and on
// disk after Sync; after a crash the tree is as it was at one moment.
//
// Errors are of these kinds, and where a protocol says more, they hold a Refusal: NotFound for a name or node that is
// not there, Exists, Invalid, Denied, NoSpace.
type Mutable interface {
	Served
	// Node finds a node by its id; NotFound when it was removed, or never was.
	Node(id NodeID) (Node, error)
	// Make makes a node in a folder, or finds the one that is there, as m says.
	Make(ctx context.Context, dir NodeID, name string, m Make, c *Call) (Outcome, error)
	// Remove removes a name: an empty folder, or anything else.
	Remove(ctx context.Context, dir NodeID, name string, folder bool, c *Call) (Outcome, error)
	// Rename moves a name, also over another of the same kind, which is removed in the same step.
	Rename(ctx context.Context, from NodeID, name string, to NodeID, newName string, c *Call) (Outcome, error)
	// Link gives a node that is no folder another name.
	Link(ctx context.Context, id, dir NodeID, name string, c *Call) (Outcome, error)
	// SetAttr changes attributes, all of them or none. guard, unless zero, must be the time of change before.
	SetAttr(ctx context.Context, id NodeID, s SetAttr, guard time.Time, c *Call) (Outcome, error)
	// Reply returns the answer that was given to a call before.
	Reply(key CallKey) ([]byte, bool)
	// Hold keeps a node that was removed readable and writable until Release.
	Hold(n Node)
	Release(n Node)
	// Sync returns nil only when every change and write that returned before the call is on disk.
	Sync(ctx context.Context) error
}

// MaxFileBytes is the greatest size of a file of a Mutable tree: 64 TiB, a little more than vSphere's largest disk.
const MaxFileBytes = 1 << 46

// MaxTargetBytes bounds what a symbolic link says.
const MaxTargetBytes = 4095

// Make says what to make.
type Make struct {
	Type   iofs.FileMode // ModeDir, ModeSymlink, or 0 for a file
	Target string        // of a link
	Set    SetAttr
	Exist  Exist
	// Verifier tells an Exclusive call that is sent again from another.
	Verifier uint64
}

// Exist says what Make does when the name is there.
type Exist uint8

// Refuse answers Exists. Adopt takes a file that is there, and sets its size when one is given, as open(O_CREAT|O_TRUNC)
// does. Exclusive takes a file that was made with the same verifier, and otherwise answers Exists.
const (
	Refuse Exist = iota
	Adopt
	Exclusive
)

// SetAttr holds the attributes to set; nil leaves one as it is.
type SetAttr struct {
	Perm               *uint32 // 12 bits, as chmod(2)
	UID, GID           *uint32
	SizeBytes          *int64
	Accessed, Modified *time.Time
	// Now sets these to the present time.
	AccessedNow, ModifiedNow bool
}

// Outcome is what a change did, for answers that tell attributes before and after.
type Outcome struct {
	Node     Attr   // that was made, found or changed
	Before   Attr   // of the node, of SetAttr only
	Made     bool   // by Make
	Dir      Change // the folder, or that from which a name was moved
	Other    Change // the folder to which it was moved
	NodeGood bool   // Node is known, also when the change was refused
}

// Change is a folder before and after. After is zero when nothing was changed.
type Change struct{ Before, After Attr }

// CallKey names one call of one client.
type CallKey [16]byte

// Call makes the answer to a change durable with the change itself, so that the same call gets the same answer when it
// is sent again, also after a crash. A nil *Call does nothing.
type Call struct {
	Key CallKey
	// Reply makes the answer, at most MaxReplyBytes, just before the change, or its refusal, is written to the log. It
	// must not call the tree.
	Reply func(o *Outcome, err error) []byte
}

// MaxReplyBytes bounds an answer.
const MaxReplyBytes = 1024

// Refusal says more than the kind of an error does of why a tree refuses something.
type Refusal uint8

// The refusals, with the errors of POSIX that they are.
const (
	NotFolder   Refusal = iota + 1 // ENOTDIR
	IsFolder                       // EISDIR
	NotEmpty                       // ENOTEMPTY
	NameTooLong                    // ENAMETOOLONG
	ReadOnly                       // EROFS
	TooLarge                       // EFBIG
	Unsupported                    // EOPNOTSUPP
	OutOfSync                      // the guard of SetAttr is not the time of change
	refusalEnd
)

// Refusals lists all, for tests of translators.
func Refusals() []Refusal {
	var list []Refusal
	for r := NotFolder; r < refusalEnd; r++ {
		list = append(list, r)
	}
	return list
}

// Error implements error.
func (r Refusal) Error() string {
	switch r {
	case NotFolder:
		return "not a folder"
	case IsFolder:
		return "is a folder"
	case NotEmpty:
		return "the folder is not empty"
	case NameTooLong:
		return "the name is too long"
	case ReadOnly:
		return "read-only"
	case TooLarge:
		return "the file would be too large"
	case Unsupported:
		return "not supported"
	case OutOfSync:
		return "changed meanwhile"
	default:
		return "refused"
	}
}

// PermBits are the 12 bits that chmod(2) sets.
func PermBits(m iofs.FileMode) uint32 {
	bits := uint32(m.Perm())
	for _, b := range specialBits() {
		if m&b.mode != 0 {
			bits |= b.bit
		}
	}
	return bits
}

// WithPerm returns the type of m with the permissions of 12 bits.
func WithPerm(m iofs.FileMode, bits uint32) iofs.FileMode {
	m = m.Type() | iofs.FileMode(bits&0o777)
	for _, b := range specialBits() {
		if bits&b.bit != 0 {
			m |= b.mode
		}
	}
	return m
}

type specialBit struct {
	mode iofs.FileMode
	bit  uint32
}

func specialBits() [3]specialBit {
	return [3]specialBit{{iofs.ModeSetuid, 0o4000}, {iofs.ModeSetgid, 0o2000}, {iofs.ModeSticky, 0o1000}}
}
