package snapshotchain

import (
	"context"

	"livemount/internal/errs"
	"livemount/snapshotchain/chunkstore"
)

// DraftDisk takes in one disk of a draft.
type DraftDisk struct {
	d       *Draft
	name    string
	size    int64
	full    bool
	lineage LineageID
	seq     Seq
	prev    Seq   // newest sealed, 0 when there is none
	base    *base // of the lineage, when this is its first point
	parent  *Disk // the newest sealed or the base, open
	current bool  // the VM's newest point has the disk
	image   string

	started bool
	pages   []Seq // versions of the directory pages, as they will be
	dirNo   uint32
	dir     dirPage
	dirOpen bool
	lastNo  int64 // last leaf that was set, -1 before
	leaves  partWriter
	dirs    []dirEntry
	parts   []Part
	sum     chunkstore.Sum
	data    int64
	mapped  int64 // encoded bytes of leaves

	// Result is filled in by the caller before the draft is sealed.
	Result DiskResult
}

type dirEntry struct {
	n   uint32
	val []byte
}

// DiskResult is what is told about how a disk was taken in.
type DiskResult struct {
	ReadBytes, ChangedBytes, StoredBytes int64
	Mode, Source, Image                  string
	Skipped                              []ByteRange
}

// Name returns the disk's name.
func (k *DraftDisk) Name() string { return k.name }

// Size returns the disk's size in bytes.
func (k *DraftDisk) Size() int64 { return k.size }

// Parent returns the disk as of its newest point, or nil: then, or when the spec said Full, every page
// that is not zero must be set.
func (k *DraftDisk) Parent() *Disk {
	if k.full {
		return nil
	}
	return k.parent
}

// Current reports whether Parent is of the VM's newest point. When the disk was left out of that, Parent is
// older, and a list of what changed since the newest point does not fit it.
func (k *DraftDisk) Current() bool { return k.current }

// ParentImage stands for what the source of Parent held; "" when nothing does, or Parent is not Current.
func (k *DraftDisk) ParentImage() string { return k.image }

// Find looks for a chunk that is stored already, first behind near, where the one before it was found
// (zero for none). It may be called from several goroutines.
func (k *DraftDisk) Find(ctx context.Context, id chunkstore.ChunkID, near chunkstore.Ptr) (chunkstore.Ptr, bool) {
	return k.d.writer.Find(ctx, id, near)
}

// Put stores a chunk. It reports whether that took space.
func (k *DraftDisk) Put(ctx context.Context, e chunkstore.Encoded) (chunkstore.Ptr, bool, error) {
	return k.d.writer.PutChunk(ctx, e)
}

// Account adds to the root hash and to the number of pages that are not zero.
func (k *DraftDisk) Account(sum chunkstore.Sum, pages int64) {
	k.sum = k.sum.Add(sum)
	k.data += pages
}

// SetLeaf says what changed in a leaf: runs by page, not overlapping, zero runs for pages that became
// zeroes. Leaves are set in ascending order, each at most once.
func (k *DraftDisk) SetLeaf(ctx context.Context, n uint32, runs []Run) error {
	if err := k.start(); err != nil {
		return err
	}
	if int64(n) <= k.lastNo {
		return errs.New(errs.Invalid, "leaf %d of disk %s was set after leaf %d", n, k.name, k.lastNo)
	}
	k.lastNo = int64(n)
	if err := k.turnDir(ctx, n/dirLeaves); err != nil {
		return err
	}
	v, err := k.version(ctx, n, runs)
	if err != nil {
		return err
	}
	k.dir[n%dirLeaves] = k.seq
	k.leaves.add(k.lineage, k.seq, PartLeaves, n, v.encode())
	if len(k.leaves.buf) >= partBytes {
		return k.flushPart(ctx, &k.leaves)
	}
	return nil
}

// start takes over the parent's directory, which may be shorter or longer than this disk's.
func (k *DraftDisk) start() error {
	if k.started {
		return nil
	}
	k.started, k.lastNo = true, -1
	k.pages = make([]Seq, max(dirPagesOf(k.size), k.parentPages()))
	if k.parent == nil {
		return nil
	}
	if !k.full { // continues what the parent, or the base, holds
		k.sum, k.data = k.sum.Add(k.parent.seal.Sum), k.data+k.parent.seal.Data
	}
	if k.parent.seal.Lineage != k.lineage {
		return nil // a child lineage begins with no map of its own
	}
	old := make([]Seq, k.parentPages())
	if err := decodeSeqs(k.parent.seal.Dirs, old); err != nil {
		return err
	}
	if !k.full {
		copy(k.pages, old)
	}
	return nil
}

func (k *DraftDisk) parentPages() int {
	if k.parent == nil {
		return 0
	}
	return dirPagesOf(k.parent.Size())
}

// turnDir makes page the directory page that SetLeaf changes.
func (k *DraftDisk) turnDir(ctx context.Context, page uint32) error {
	if k.dirOpen && k.dirNo == page {
		return nil
	}
	k.closeDir()
	k.dirNo, k.dirOpen, k.dir = page, true, dirPage{}
	if k.Parent() == nil || k.parent.seal.Lineage != k.lineage {
		return nil
	}
	old, err := k.parent.dir(ctx, page)
	if err == nil && old != nil {
		k.dir = *old
	}
	return err
}

func (k *DraftDisk) closeDir() {
	if !k.dirOpen {
		return
	}
	k.dirOpen = false
	k.pages[k.dirNo] = k.seq
	k.dirs = append(k.dirs, dirEntry{k.dirNo, encodeSeqs(k.dir[:])})
}

// version makes the stored version of a leaf: full when there is none before it, or when the deltas
// have become too many; else a delta.
func (k *DraftDisk) version(ctx context.Context, n uint32, runs []Run) (*leaf, error) {
	prev := k.dir[n%dirLeaves]
	if prev == 0 {
		return k.firstVersion(ctx, n, runs)
	}
	old, err := k.d.s.leafVersion(ctx, k.lineage, n, prev)
	if err != nil {
		return nil, err
	}
	if old.depth < maxDepth {
		return k.delta(ctx, n, runs, prev, old)
	}
	return k.whole(ctx, n, runs, prev)
}

// whole makes a full version behind prev.
func (k *DraftDisk) whole(ctx context.Context, n uint32, runs []Run, prev Seq) (*leaf, error) {
	before, err := k.parent.leaf(ctx, n)
	if err != nil {
		return nil, err
	}
	return &leaf{full: true, prev: prev, runs: flatten([]*leaf{{runs: runs}, {runs: before}})}, nil
}

// delta makes the version behind old, which is prev's: with what changed in as many versions as its depth
// says.
func (k *DraftDisk) delta(ctx context.Context, n uint32, runs []Run, prev Seq, old *leaf) (*leaf, error) {
	depth, newest := int(old.depth)+1, prev
	versions := []*leaf{{runs: runs}}
	for left := spanOf(depth) - 1; left > 0; {
		versions = append(versions, old)
		left -= spanOf(int(old.depth))
		prev = old.prev
		if left == 0 {
			break
		}
		var err error
		if old, err = k.d.s.leafVersion(ctx, k.lineage, n, prev); err != nil {
			return nil, err
		}
		if old.full || spanOf(int(old.depth)) > left {
			return k.whole(ctx, n, runs, newest) // a chain of the first version, whose deltas cover one version each
		}
	}
	return &leaf{depth: uint8(depth), prev: prev, runs: merge(versions)}, nil
}

// firstVersion makes the first version of a leaf in this lineage: with what the base shows there.
func (k *DraftDisk) firstVersion(ctx context.Context, n uint32, runs []Run) (*leaf, error) {
	versions := []*leaf{{runs: runs}}
	if p := k.Parent(); p != nil {
		before, err := p.leaf(ctx, n)
		if err != nil {
			return nil, err
		}
		versions = append(versions, &leaf{runs: before})
	}
	return &leaf{full: true, runs: flatten(versions)}, nil
}

// standsOn returns what shows where the lineage has nothing: less and less of the base as the disk shrinks,
// and nothing of it once all was read anew.
func (k *DraftDisk) standsOn() *base {
	b := k.base
	if b == nil && k.parent != nil {
		b = k.parent.seal.Base
	}
	if b == nil || k.full {
		return nil
	}
	limited := *b
	limited.Limit = min(b.Limit, k.size)
	return &limited
}

func (k *DraftDisk) flushPart(ctx context.Context, w *partWriter) error {
	if w.empty() {
		return nil
	}
	p, err := k.d.writer.PutRecord(ctx, chunkstore.KindMap, w.buf)
	if err != nil {
		return err
	}
	w.part.Ptr = p
	k.parts = append(k.parts, w.part)
	k.mapped += int64(len(w.buf))
	w.buf = w.buf[:0]
	return nil
}

// finish writes the rest of the map and returns the seal.
func (k *DraftDisk) finish(ctx context.Context) (*seal, error) {
	if err := k.start(); err != nil {
		return nil, err
	}
	k.closeDir()
	if err := k.flushPart(ctx, &k.leaves); err != nil {
		return nil, err
	}
	var w partWriter
	for _, e := range k.dirs {
		w.add(k.lineage, k.seq, PartDirs, e.n, e.val)
		if len(w.buf) >= partBytes {
			if err := k.flushPart(ctx, &w); err != nil {
				return nil, err
			}
		}
	}
	if err := k.flushPart(ctx, &w); err != nil {
		return nil, err
	}
	pages := k.pages[:dirPagesOf(k.size)]
	return &seal{
		Lineage: k.lineage, Seq: k.seq, Prev: k.prev, Base: k.standsOn(), Size: k.size, Data: k.data, Sum: k.sum,
		Dirs: encodeSeqs(pages), Parts: k.parts,
	}, nil
}

func (k *DraftDisk) point(sl *seal) PointDisk {
	r := k.Result
	return PointDisk{
		Name: k.name, Lineage: k.lineage, Seq: k.seq, SizeBytes: k.size, DataBytes: sl.Data * chunkstore.PageSize,
		ReadBytes: r.ReadBytes, ChangedBytes: r.ChangedBytes, StoredBytes: r.StoredBytes,
		Mode: r.Mode, Source: r.Source, Image: r.Image, Root: sl.Sum, Skipped: r.Skipped,
	}
}
