package fs

import (
	iofs "io/fs"
	"strings"
	"time"

	"livemount/internal/errs"
)

// NodeID is the inode number of a node: unique in its mount, never used again for another node. What a
// protocol hands out (inode numbers, handles) is made of it.
type NodeID uint64

// RootID is the node of the topmost folder. maxID leaves translators room to count beyond any node.
const (
	RootID NodeID = 1
	maxID  NodeID = 1 << 62
)

// Attr is what there is to know about a node at one moment.
type Attr struct {
	ID        NodeID
	Mode      iofs.FileMode // type and permissions
	SizeBytes int64
	// AllocatedBytes is the space that the node takes up in the store, as far as known.
	AllocatedBytes int64
	Accessed       time.Time
	Modified       time.Time // content
	Changed        time.Time // content or attributes
}

// Node is a Dir or a File.
type Node interface {
	ID() NodeID
	Name() string
	Attr() Attr
}

// maxNameBytes is what Linux, NFS clients and ESXi accept.
const maxNameBytes = 255

// CheckName returns an Invalid error unless name can be the name of a file.
func CheckName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return errs.New(errs.Invalid, "name %q is not a file name", name)
	case len(name) > maxNameBytes:
		return errs.New(errs.Invalid, "name %.20q… has %d bytes, more than %d", name, len(name), maxNameBytes)
	case strings.ContainsAny(name, "/\x00"):
		return errs.New(errs.Invalid, "name %q contains a slash or a NUL", name)
	}
	return nil
}
