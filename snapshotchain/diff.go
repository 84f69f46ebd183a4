package snapshotchain

import (
	"context"
	"fmt"
	"iter"

	"livemount/blockdev"
	"livemount/internal/errs"
	"livemount/snapshotchain/chunkstore"
)

// Diff yields the ranges in which b differs from a, ascending and joined: Data or Zero as in b. It is exact in
// pages of 4 KiB, which are compared by their hashes where the maps point to different places, so a page that
// was written again as it was does not differ. What only one of the disks is long enough for differs where it
// holds data. What both disks see of the same version of the map is not read, so the cost follows the change.
//
// The disks are of one store, of whatever lineages. A page hash that cannot be read is an error, Corrupt when
// it is bad. An error ends the sequence.
func Diff(ctx context.Context, a, b *Disk) iter.Seq2[blockdev.Extent, error] {
	return DiffFrom(ctx, a, b, 0)
}

// DiffFrom is Diff without what lies before off. When off is inside a page, that page comes as a whole.
func DiffFrom(ctx context.Context, a, b *Disk, off int64) iter.Seq2[blockdev.Extent, error] {
	if a.s != b.s {
		return blockdev.Fail(errs.New(errs.Invalid, "disks of different stores cannot be compared"))
	}
	return func(yield func(blockdev.Extent, error) bool) {
		w := &differ{a: a, b: b, out: merger{yield: yield}, from: max(0, off) / blockdev.PageSize * blockdev.PageSize}
		err := w.run(ctx)
		w.out.flush()
		if err != nil && !w.out.stopped {
			yield(blockdev.Extent{}, err)
		}
	}
}

// differ compares two disks.
type differ struct {
	a, b *Disk
	from int64
	out  merger
}

const dirBytes = dirLeaves * LeafBytes

func (w *differ) run(ctx context.Context) error {
	size := max(w.a.Size(), w.b.Size())
	for pos := w.from; pos < size && !w.out.stopped; pos = (pos/dirBytes + 1) * dirBytes {
		if err := ctx.Err(); err != nil {
			return err
		}
		page := uint32(pos / dirBytes)
		same, err := sameDir(w.a, w.b, page)
		if err == nil && !same {
			err = w.dir(ctx, pos, min(size, int64(page+1)*dirBytes))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dir compares the leaves from the one with pos to end, which lie in one directory page.
func (w *differ) dir(ctx context.Context, pos, end int64) error {
	for ; pos < end && !w.out.stopped; pos = (pos/LeafBytes + 1) * LeafBytes {
		n := uint32(pos / LeafBytes)
		same, err := sameLeaf(ctx, w.a, w.b, n)
		if err == nil && !same {
			err = w.leaf(ctx, n)
		}
		if err != nil {
			return fmt.Errorf("compare at offset %d: %w", int64(n)*LeafBytes, err)
		}
	}
	return nil
}

// view is a lineage as far as it shows through those above it.
type view struct {
	d     *Disk
	limit int64
}

func (d *Disk) view() view { return view{d, d.Size()} }

// below is what shows where v's lineage has nothing.
func (v view) below() view {
	if v.d.base == nil {
		return view{}
	}
	return view{v.d.base, min(v.limit, v.d.seal.Base.Limit)}
}

// shown finds the first lineage, from v downwards, that has a version of something at pos, and which.
func (v view) shown(pos int64, version func(*Disk) (Seq, error)) (view, Seq, error) {
	for ; v.d != nil && pos < v.limit; v = v.below() {
		if seq, err := version(v.d); err != nil || seq != 0 {
			return v, seq, err
		}
	}
	return view{}, 0, nil
}

// equal says whether both show the same version as far as end.
func (v view) equal(o view, end int64) bool {
	if v.d == nil || o.d == nil {
		return v.d == o.d
	}
	return v.d.seal.Lineage == o.d.seal.Lineage && min(v.limit, end) == min(o.limit, end)
}

// sameDir reports whether two disks see the same versions of a directory page, in all lineages that show there.
func sameDir(a, b *Disk, page uint32) (bool, error) {
	pos := int64(page) * dirBytes
	version := func(d *Disk) (Seq, error) { return d.dirSeq(page) }
	x, y := a.view(), b.view()
	for {
		var i, j Seq
		var err error
		if x, i, err = x.shown(pos, version); err == nil {
			y, j, err = y.shown(pos, version)
		}
		if err != nil || i != j || !x.equal(y, pos+dirBytes) {
			return false, err
		}
		if x.d == nil {
			return true, nil
		}
		x, y = x.below(), y.below()
	}
}

// sameLeaf reports whether two disks see the same version of a leaf. A version says all of its leaf, so the
// first lineage that has one counts.
func sameLeaf(ctx context.Context, a, b *Disk, n uint32) (bool, error) {
	pos := int64(n) * LeafBytes
	version := func(d *Disk) (Seq, error) { return d.leafSeq(ctx, n) }
	x, i, err := a.view().shown(pos, version)
	if err != nil {
		return false, err
	}
	y, j, err := b.view().shown(pos, version)
	return err == nil && i == j && x.equal(y, pos+LeafBytes), err
}

// leaf compares the pages of a leaf.
func (w *differ) leaf(ctx context.Context, n uint32) error {
	old, err := w.a.shownLeaf(ctx, n)
	if err != nil {
		return err
	}
	now, err := w.b.shownLeaf(ctx, n)
	if err != nil {
		return err
	}
	start := int64(n) * LeafBytes
	for page := max(0, int(w.from-start)/blockdev.PageSize); page < LeafPages && !w.out.stopped; {
		var x, y Run
		var endX, endY int
		old, x, endX = piece(old, page)
		now, y, endY = piece(now, page)
		end := min(endX, endY)
		if err := w.pages(ctx, start, page, end, x, y); err != nil {
			return err
		}
		page = end
	}
	return nil
}

// shownLeaf returns what a leaf maps, up to the end of the disk.
func (d *Disk) shownLeaf(ctx context.Context, n uint32) ([]Run, error) {
	left := d.Size() - int64(n)*LeafBytes
	if left <= 0 {
		return nil, nil
	}
	runs, err := d.leaf(ctx, n)
	return clip(runs, left), err
}

// piece returns the runs from the one that ends behind page on, the run that holds the page, zero when it
// is in none, and where that is over.
func piece(runs []Run, page int) ([]Run, Run, int) {
	for len(runs) > 0 && runs[0].end() <= page {
		runs = runs[1:]
	}
	switch {
	case len(runs) == 0:
		return runs, Run{}, LeafPages
	case int(runs[0].Page) > page:
		return runs, Run{}, int(runs[0].Page)
	default:
		return runs, runs[0], runs[0].end()
	}
}

// pages compares [page, end) of the leaf at start, which lie in one run, or in none, of either disk.
func (w *differ) pages(ctx context.Context, start int64, page, end int, x, y Run) error {
	switch {
	case x.IsZero() && y.IsZero():
		return nil
	case x.IsZero():
		w.add(start, page, end, blockdev.Data)
		return nil
	case y.IsZero():
		w.add(start, page, end, blockdev.Zero)
		return nil
	case x.Ptr == y.Ptr && int(x.First)-int(x.Page) == int(y.First)-int(y.Page):
		return nil
	}
	old, err := w.a.s.runHashes(ctx, x, page, end)
	if err != nil {
		return err
	}
	now, err := w.b.s.runHashes(ctx, y, page, end)
	if err != nil {
		return err
	}
	for i := range now {
		if old[i] != now[i] {
			w.add(start, page+i, page+i+1, blockdev.Data)
		}
	}
	return nil
}

// add notes that pages differ. Data ends with b; what only a holds behind that is gone.
func (w *differ) add(start int64, page, end int, kind blockdev.Kind) {
	from, to := start+int64(page)*blockdev.PageSize, start+int64(end)*blockdev.PageSize
	to = min(to, max(w.a.Size(), w.b.Size()))
	if kind == blockdev.Data && to > w.b.Size() {
		w.out.add(from, w.b.Size(), kind)
		from, kind = max(from, w.b.Size()), blockdev.Zero
	}
	w.out.add(from, to, kind)
}

// runHashes returns the hashes of [page, end) of a leaf, which lie in the run. The result is shared.
func (s *Store) runHashes(ctx context.Context, r Run, page, end int) ([]chunkstore.PageHash, error) {
	hashes, err := s.hashes.Get(ctx, r.Ptr, func() ([]chunkstore.PageHash, error) { return s.chunks.Hashes(ctx, r.Ptr) })
	if err != nil {
		return nil, err
	}
	first := int(r.First) + page - int(r.Page)
	if first+end-page > len(hashes) {
		return nil, errs.New(errs.Corrupt, "chunk %s of %d pages is too short for its map", r.Ptr, len(hashes))
	}
	return hashes[first : first+end-page], nil
}
