package fs

import (
	"cmp"
	"context"
	iofs "io/fs"
	"slices"
	"time"

	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// HistoryOptions of a History. The zero value is complete.
type HistoryOptions struct {
	// Space tells the total and free bytes of the store; nil stands for none.
	Space func(context.Context) (vfs.Space, error)
	// OpenDisks bounds the disks that are kept open; default 1000. Reads beyond that are not refused: a disk is
	// opened again.
	OpenDisks int
}

// History is the tree of all points: a folder for each VM, in it one for each point, named by its time, and
// a link, latest, to the newest. It keeps nothing but open disks: what is asked for is asked of the
// Catalogue at that moment.
type History struct {
	cat   Catalogue
	space func(context.Context) (vfs.Space, error)
	disks *openDisks
}

// NewHistory returns the tree of what cat has.
func NewHistory(cat Catalogue, o HistoryOptions) *History {
	if o.Space == nil {
		o.Space = func(context.Context) (vfs.Space, error) { return vfs.Space{}, nil }
	}
	return &History{cat: cat, space: o.Space, disks: newOpenDisks(cmp.Or(o.OpenDisks, 1000), cat.Open)}
}

// Root implements Served.
func (h *History) Root() Folder { return allVMs{h} }

// Space implements Served.
func (h *History) Space(ctx context.Context) (vfs.Space, error) { return h.space(ctx) }

// Len implements Served. It counts folders and links: how many disks there are is in the points.
func (h *History) Len() int {
	n := 1
	for _, vm := range h.cat.VMs() {
		n += 2 + vm.Points
	}
	return n
}

// Close closes the disks that are open. No translator may use the tree any more.
func (h *History) Close() error { return h.disks.close() }

// pointName is the layout of the names of points: UTC, always with nine digits behind the second, so that
// names sort as the times do, stay for ever, and name the point in VM@TIME.
const pointName = "2006-01-02T15:04:05.000000000Z"

// PointName is the name of a point's folder.
func PointName(at time.Time) string { return at.UTC().Format(pointName) }

// latest is the name of the link to the newest point.
const latest = "latest"

// What ids of nodes are made of, beside the ids of VM, point and lineage.
const (
	idOfVM = iota + 1
	idOfLink
	idOfPoint
	idOfDisk
)

// hashID makes the same id of the same parts in every mount. Two nodes may, once in many million mounts, get the
// same: translators tell them apart (they are not ==). The mixing is that of SplitMix64 (Steele, Lea, Flood:
// Fast splittable pseudorandom number generators).
func hashID(parts ...uint64) NodeID {
	var h uint64
	for _, p := range parts {
		h = (h ^ p) + 0x9e3779b97f4a7c15
		h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
		h = (h ^ h>>27) * 0x94d049bb133111eb
		h ^= h >> 31
	}
	return max(NodeID(h)%maxID, RootID+1)
}

// allVMs is the root of a History.
type allVMs struct{ h *History }

// ID implements Node.
func (allVMs) ID() NodeID { return RootID }

// Parent implements Folder.
func (allVMs) Parent() NodeID { return RootID }

// Attr implements Node. The root is as old as the newest point.
func (r allVMs) Attr() Attr {
	var newest time.Time
	for _, vm := range r.h.cat.VMs() {
		if vm.Changed.After(newest) {
			newest = vm.Changed
		}
	}
	return folderAttr(RootID, newest)
}

func folderAttr(id NodeID, at time.Time) Attr {
	return Attr{ID: id, Mode: iofs.ModeDir | 0o555, Accessed: at, Modified: at, Changed: at}
}

// Lookup implements Folder.
func (r allVMs) Lookup(_ context.Context, name string) (Node, error) {
	vm, err := r.h.cat.VMNamed(name)
	if err != nil {
		return nil, err
	}
	return vmFolder{r.h, vm.ID}, nil
}

// List implements Folder, in the order of ids: names change.
func (r allVMs) List(_ context.Context, behind Cookie, limit int) ([]Entry, error) {
	var list []Entry
	for _, vm := range r.h.cat.VMs() {
		id := hashID(idOfVM, vm.ID)
		if Cookie(id) > behind {
			list = append(list, Entry{Name: vm.Name, ID: id, Type: iofs.ModeDir, Cookie: Cookie(id)})
		}
	}
	slices.SortFunc(list, func(a, b Entry) int { return cmp.Compare(a.ID, b.ID) })
	return list[:min(limit, len(list))], nil
}

// vmFolder holds the points of a VM.
type vmFolder struct {
	h  *History
	vm uint64
}

// ID implements Node.
func (f vmFolder) ID() NodeID { return hashID(idOfVM, f.vm) }

// Parent implements Folder.
func (vmFolder) Parent() NodeID { return RootID }

// Attr implements Node.
func (f vmFolder) Attr() Attr { return folderAttr(f.ID(), f.h.changed(f.vm)) }

// changed is the time of a VM's newest point; of a VM that is gone it is not known.
func (h *History) changed(id uint64) time.Time {
	vm, err := h.cat.VM(id)
	if err != nil {
		return time.Unix(0, 0)
	}
	return vm.Changed
}

// Lookup implements Folder.
func (f vmFolder) Lookup(ctx context.Context, name string) (Node, error) {
	if name == latest {
		l := latestLink(f)
		_, err := l.Target(ctx)
		return l, err
	}
	at, err := time.Parse(pointName, name)
	if err != nil || PointName(at) != name {
		return nil, errs.New(errs.NotFound, "%q names no point", name)
	}
	p, err := f.h.cat.PointAt(ctx, f.vm, at)
	if err != nil {
		return nil, err
	}
	return pointFolder{f.h, f.vm, p.ID, p.Time.UnixNano()}, nil
}

// List implements Folder: the link, then the points, oldest first. The cookie behind a point is its ordinal
// plus 1.
func (f vmFolder) List(ctx context.Context, behind Cookie, limit int) ([]Entry, error) {
	var list []Entry
	if behind == 0 {
		behind = 1
		if _, err := latestLink(f).Target(ctx); err == nil {
			list = append(list, Entry{Name: latest, ID: latestLink(f).ID(), Type: iofs.ModeSymlink, Cookie: 1})
		}
	}
	points, err := f.h.cat.Points(ctx, f.vm, uint64(behind-1), max(0, limit-len(list)))
	if errs.Is(err, errs.NotFound) { // the VM is gone, somebody has its folder open
		return nil, nil
	}
	for i := range points {
		p := &points[i]
		list = append(list, Entry{
			Name: PointName(p.Time), ID: hashID(idOfPoint, f.vm, p.ID), Type: iofs.ModeDir, Cookie: Cookie(p.Ordinal + 1),
		})
	}
	return list, err
}

// latestLink leads to the newest point of a VM.
type latestLink vmFolder

// ID implements Node.
func (l latestLink) ID() NodeID { return hashID(idOfLink, l.vm) }

// Attr implements Node.
func (l latestLink) Attr() Attr {
	at := l.h.changed(l.vm)
	return Attr{
		ID: l.ID(), Mode: iofs.ModeSymlink | 0o777, SizeBytes: int64(len(pointName)), Accessed: at, Modified: at, Changed: at,
	}
}

// Target implements Link.
func (l latestLink) Target(context.Context) (string, error) {
	vm, err := l.h.cat.VM(l.vm)
	if err == nil && vm.Points == 0 {
		err = errs.New(errs.NotFound, "VM %s has no points", vm.Name)
	}
	if err != nil {
		return "", err
	}
	return PointName(vm.Changed), nil
}
