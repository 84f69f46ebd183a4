package fs

import (
	"context"
	iofs "io/fs"
	"iter"
	"strings"
	"time"

	"livemount/blockdev"
	"livemount/internal/errs"
	"livemount/internal/vfs"
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
	// Links, UID and GID are known of nodes of a Mutable tree; else Links is 0, and the owner is whoever serves.
	Links    uint32
	UID, GID uint32
}

// Node is a Folder, a Regular or a Link. Nodes can be compared: what is == is the same node. A node of a
// History may be gone from its folder; it then goes on answering as far as it can.
type Node interface {
	ID() NodeID
	Attr() Attr
}

// Folder is a node that holds others.
type Folder interface {
	Node
	// Parent is the folder that it is in; that of the root is the root itself.
	Parent() NodeID
	// Lookup finds a node of the folder by name, or returns NotFound.
	Lookup(ctx context.Context, name string) (Node, error)
	// List returns at most limit entries behind a place in the listing; none are left when it returns none. A
	// listing that continues behind the last entry it got has every node that stayed exactly once, whatever
	// came or went meanwhile.
	List(ctx context.Context, behind Cookie, limit int) ([]Entry, error)
}

// Regular is a node with content. One that takes writes is a Writable.
type Regular interface {
	Node
	blockdev.ReaderAt
	Size() int64
	// Extents is that of blockdev.Reader.
	Extents(ctx context.Context, off, n int64) iter.Seq2[blockdev.Extent, error]
}

// Link is a symbolic link.
type Link interface {
	Node
	// Target is what the link says now, or NotFound when there is nothing that it could lead to.
	Target(ctx context.Context) (string, error)
}

// Entry is a node in the listing of its folder.
type Entry struct {
	Name   string
	ID     NodeID
	Type   iofs.FileMode // ModeDir, ModeSymlink or 0
	Cookie Cookie        // of the place behind it
}

// Cookie is a place in the listing of one folder: 0 is the beginning, all are below 1<<62. It is made of what
// stands there and not of how much comes before.
type Cookie uint64

// Served is what a translator shows: a Tree or a History.
type Served interface {
	Root() Folder
	// Space tells the bytes of the store below.
	Space(context.Context) (vfs.Space, error)
	// Len is the number of nodes as far as known.
	Len() int
}

// maxNameBytes is what Linux, NFS clients and ESXi accept.
const maxNameBytes = 255

// CheckName returns an Invalid error unless name can be the name of a file.
func CheckName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return errs.New(errs.Invalid, "name %q is not a file name", name)
	case len(name) > maxNameBytes:
		return errs.New(errs.Invalid, "name %.20q… has %d bytes, more than %d: %w", name, len(name), maxNameBytes, NameTooLong)
	case strings.ContainsAny(name, "/\x00"):
		return errs.New(errs.Invalid, "name %q contains a slash or a NUL", name)
	}
	return nil
}
