// Package dstest opens datastores over overlay logs, for tests of whatever serves them. Nothing but tests imports it.
package dstest

import (
	"context"
	"errors"

	"livemount/blockdev"
	"livemount/blockdev/overlay"
	"livemount/fs/datastore"
	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// Opened is a datastore and its log.
type Opened struct {
	*datastore.Store
	Log *overlay.Log
}

// Options of Open. FS is needed.
type Options struct {
	FS           vfs.FS
	Dir          string // default "/log"; its parent must exist
	Clock        clock.Clock
	Disk         blockdev.Reader // of the point; node 2, web/sda-flat.vmdk
	SegmentBytes int64
	Space        func(context.Context) (vfs.Space, error)
	Admit        func(int64) error
	AdmitFreeing func(int64) error
	MaxNodes     int
}

// DiskNode is the node of the disk.
const DiskNode = 2

// Open opens the datastore, or makes it: a folder web with a file web.vmx, and the disk, when there is one.
func Open(ctx context.Context, o Options) (*Opened, error) {
	if o.Dir == "" {
		o.Dir = "/log"
	}
	s := datastore.New(datastore.Options{Clock: o.Clock, Space: o.Space, MaxNodes: o.MaxNodes})
	l, err := openLog(ctx, s, &o)
	if err != nil {
		return nil, err
	}
	disks, first, err := firstOf(l, &o)
	if err == nil {
		err = s.Start(ctx, Scratch{l}, disks)
	}
	if err == nil {
		err = s.Lay(ctx, first)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &Opened{s, l}, nil
}

func openLog(ctx context.Context, s *datastore.Store, o *Options) (*overlay.Log, error) {
	lo := overlay.Options{
		FS: o.FS, Dir: o.Dir, Mount: [16]byte{1, 2, 3}, Clock: o.Clock, SegmentBytes: o.SegmentBytes, NoBackground: true,
		Meta: s.Replay, Restore: s.Restore, Snapshot: s.Snapshot, Admit: o.Admit, AdmitFreeing: o.AdmitFreeing,
	}
	var nodes []overlay.Node
	if o.Disk != nil {
		nodes = append(nodes, overlay.Node{ID: DiskNode, Base: o.Disk, Size: o.Disk.Size(), Grows: true})
	}
	l, _, err := overlay.Open(ctx, lo, nodes)
	if errs.Is(err, errs.NotFound) {
		return overlay.Create(ctx, lo, nodes)
	}
	return l, err
}

func firstOf(l *overlay.Log, o *Options) ([]datastore.Disk, []datastore.First, error) {
	first := []datastore.First{{Path: "web/web.vmx", Content: []byte("displayName = \"web\"\n"), Perm: 0o755}}
	if o.Disk == nil {
		return nil, first, nil
	}
	dev, err := l.Device(DiskNode)
	if err != nil {
		return nil, nil, err
	}
	first = append(first, datastore.First{Path: "web/sda-flat.vmdk", Disk: DiskNode, Perm: 0o600})
	return []datastore.Disk{{ID: DiskNode, Data: dev, Allocated: o.Disk.Size()}}, first, nil
}

// Close closes both.
func (o *Opened) Close(ctx context.Context) error {
	return errors.Join(o.Store.Close(ctx), o.Log.Close())
}

// Scratch is an overlay log as a datastore takes it.
type Scratch struct{ *overlay.Log }

// AddNode implements datastore.Log.
func (s Scratch) AddNode(id uint64) error { return s.Add(overlay.Node{ID: id, Grows: true}) }
