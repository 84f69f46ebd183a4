package snapshotchain

import (
	"context"
	"fmt"
	"iter"
	"sort"
	"sync"
	"sync/atomic"

	"livemount/blockdev"
	"livemount/internal/errs"
	"livemount/snapshotchain/chunkstore"
)

// Disk is a disk as of a point in time, a blockdev.Reader. Opening it reads one record whatever its size
// and history.
type Disk struct {
	s    *Store
	seal *seal
	base *Disk // where its lineage branched off; nil for a main line

	opened atomic.Bool // it keeps what it reads from being collected, until Close

	once  sync.Once // decodes pages
	pages []Seq
	err   error
}

// OpenDisk opens a disk of a sealed point. Until it is closed all of it can be read, also when the point is expired
// meanwhile. NotFound when it was expired before.
func (s *Store) OpenDisk(ctx context.Context, d *PointDisk) (*Disk, error) {
	key := diskAt{d.Lineage, d.Seq}
	if err := s.pins.use(key); err != nil {
		return nil, fmt.Errorf("open disk %s: %w", d.Name, err)
	}
	disk, err := s.openSeal(ctx, d.Lineage, d.Seq)
	if err != nil {
		s.pins.unuse(key)
		return nil, fmt.Errorf("open disk %s: %w", d.Name, err)
	}
	disk.opened.Store(true)
	return disk, nil
}

func (s *Store) openSeal(ctx context.Context, l LineageID, seq Seq) (*Disk, error) {
	sl, err := s.sealOf(ctx, l, seq)
	if err != nil {
		return nil, err
	}
	if sl.Lineage != l || sl.Seq != seq || sl.Size < 0 || sl.Size > MaxDiskBytes {
		return nil, errs.New(errs.Corrupt, "seal of lineage %s, point %d contradicts itself", l, seq)
	}
	d := &Disk{s: s, seal: sl}
	if sl.Base == nil {
		return d, nil
	}
	// A lineage stands on older ones, which have smaller numbers: this ends.
	if sl.Base.Lineage >= l || sl.Base.Limit < 0 {
		return nil, errs.New(errs.Corrupt, "lineage %s, point %d stands on lineage %s", l, seq, sl.Base.Lineage)
	}
	d.base, err = s.openSeal(ctx, sl.Base.Lineage, sl.Base.Seq)
	return d, err
}

// maxLevels bounds how many lineages stand on each other: a read may have to look into all of them.
const maxLevels = 64

// levels is how many lineages the disk stands on.
func (d *Disk) levels() int {
	n := 0
	for b := d.base; b != nil; b = b.base {
		n++
	}
	return n
}

// Size implements blockdev.Reader.
func (d *Disk) Size() int64 { return d.seal.Size }

// Root returns the root hash of the disk's content.
func (d *Disk) Root() chunkstore.Sum { return d.seal.Sum }

// Close implements blockdev.Reader.
func (d *Disk) Close() error {
	if d.opened.Swap(false) {
		d.s.pins.unuse(diskAt{d.seal.Lineage, d.seal.Seq})
	}
	return nil
}

// dirSeq returns the version of a directory page, 0 when this lineage has none.
func (d *Disk) dirSeq(page uint32) (Seq, error) {
	d.once.Do(func() {
		d.pages = make([]Seq, dirPagesOf(d.seal.Size))
		d.err = decodeSeqs(d.seal.Dirs, d.pages)
	})
	if d.err != nil || int(page) >= len(d.pages) {
		return 0, d.err
	}
	return d.pages[page], nil
}

// dir returns a directory page, nil when this lineage has none.
func (d *Disk) dir(ctx context.Context, page uint32) (*dirPage, error) {
	seq, err := d.dirSeq(page)
	if err != nil || seq == 0 {
		return nil, err
	}
	return d.s.dirs.Get(ctx, leafKey{d.seal.Lineage, page, seq}, func() (*dirPage, error) {
		var dp dirPage
		err := d.s.mapEntry(ctx, PartDirs, d.seal.Lineage, page, seq, func(raw []byte) error {
			return decodeSeqs(raw, dp[:])
		})
		return &dp, err
	})
}

// leafSeq returns the version of a leaf that this point sees in its own lineage, 0 when there is none.
func (d *Disk) leafSeq(ctx context.Context, n uint32) (Seq, error) {
	dp, err := d.dir(ctx, n/dirLeaves)
	if err != nil || dp == nil {
		return 0, err
	}
	return dp[n%dirLeaves], nil
}

// leaf returns what a leaf maps, as runs of data by page. The result is shared.
func (d *Disk) leaf(ctx context.Context, n uint32) ([]Run, error) {
	seq, err := d.leafSeq(ctx, n)
	if err != nil {
		return nil, err
	}
	if seq == 0 {
		return d.baseLeaf(ctx, n)
	}
	return d.s.leaves.Get(ctx, leafKey{d.seal.Lineage, n, seq}, func() ([]Run, error) {
		versions, err := d.s.versions(ctx, d.seal.Lineage, n, seq)
		if err != nil {
			return nil, err
		}
		return flatten(versions), nil
	})
}

// baseLeaf returns what shows of a leaf where the lineage has none of its own.
func (d *Disk) baseLeaf(ctx context.Context, n uint32) ([]Run, error) {
	if d.base == nil || int64(n)*LeafBytes >= d.seal.Base.Limit {
		return nil, nil
	}
	runs, err := d.base.leaf(ctx, n)
	return clip(runs, d.seal.Base.Limit-int64(n)*LeafBytes), err
}

// clip returns the runs of a leaf as far as the page that holds the last of so many bytes. It does not change
// runs, which may be shared.
func clip(runs []Run, bytes int64) []Run {
	pages := (bytes + blockdev.PageSize - 1) / blockdev.PageSize
	if pages >= LeafPages {
		return runs
	}
	i := sort.Search(len(runs), func(i int) bool { return int64(runs[i].end()) > pages })
	clipped := append([]Run(nil), runs[:i]...)
	if i < len(runs) && int64(runs[i].Page) < pages {
		r := runs[i]
		r.Len = uint16(pages) - r.Page
		clipped = append(clipped, r)
	}
	return clipped
}

// emptyDir reports whether nothing is mapped in a directory page.
func (d *Disk) emptyDir(page uint32) (bool, error) {
	if seq, err := d.dirSeq(page); err != nil || seq != 0 {
		return false, err
	}
	if d.base == nil || int64(page)*dirLeaves*LeafBytes >= d.seal.Base.Limit {
		return true, nil
	}
	return d.base.emptyDir(page)
}

// versions returns the versions of a leaf that a reader of seq needs, newest first.
func (s *Store) versions(ctx context.Context, l LineageID, n uint32, seq Seq) ([]*leaf, error) {
	var list []*leaf
	for {
		v, err := s.leafVersion(ctx, l, n, seq)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
		if v.full {
			return list, nil
		}
		if v.prev >= seq || len(list) > maxDepth {
			return nil, errs.New(errs.Corrupt, "leaf %d of lineage %s, point %d: its versions do not end", n, l, seq)
		}
		seq = v.prev
	}
}

func (s *Store) leafVersion(ctx context.Context, l LineageID, n uint32, seq Seq) (v *leaf, err error) {
	err = s.mapEntry(ctx, PartLeaves, l, n, seq, func(raw []byte) error {
		v, err = decodeLeaf(raw)
		return err
	})
	return v, err
}

// ReadAt implements blockdev.ReaderAt.
func (d *Disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := blockdev.CheckRange(d.Size(), off, int64(len(p))); err != nil {
		return err
	}
	d.s.opts.Gate.Guest()
	if len(p) > pieceBytes {
		return d.readParallel(ctx, p, off)
	}
	d.s.ahead.note(d, off, off+int64(len(p)))
	return d.readRange(ctx, p, off, false)
}

// readRange reads; once says that the range will hardly be asked for again soon.
func (d *Disk) readRange(ctx context.Context, p []byte, off int64, once bool) error {
	for len(p) > 0 {
		n := min(int64(len(p)), LeafBytes-off%LeafBytes)
		if err := d.readLeaf(ctx, p[:n], off, once); err != nil {
			return fmt.Errorf("lineage %s, point %d, offset %d: %w", d.seal.Lineage, d.seal.Seq, off, err)
		}
		p, off = p[n:], off+n
	}
	return nil
}

// readLeaf reads a range that lies in one leaf.
func (d *Disk) readLeaf(ctx context.Context, p []byte, off int64, once bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	runs, err := d.leaf(ctx, uint32(off/LeafBytes))
	if err != nil {
		return err
	}
	pos, end := off%LeafBytes, off%LeafBytes+int64(len(p)) // within the leaf
	i := sort.Search(len(runs), func(i int) bool { return int64(runs[i].end())*blockdev.PageSize > pos })
	for pos < end {
		stop := end
		if i < len(runs) {
			stop = min(end, max(pos, int64(runs[i].Page)*blockdev.PageSize))
		}
		clear(p[:stop-pos])
		p, pos = p[stop-pos:], stop
		if pos == end {
			return nil
		}
		stop = min(end, int64(runs[i].end())*blockdev.PageSize)
		if err := d.s.readRun(ctx, p[:stop-pos], runs[i], pos, once); err != nil {
			return err
		}
		p, pos, i = p[stop-pos:], stop, i+1
	}
	return nil
}

// readRun reads bytes of one run; pos is where they lie in the leaf.
func (s *Store) readRun(ctx context.Context, p []byte, r Run, pos int64, once bool) error {
	return s.chunks.ReadChunk(ctx, r.Ptr, int64(r.First)*blockdev.PageSize+pos-int64(r.Page)*blockdev.PageSize, p, once)
}

// Extents implements blockdev.Reader: mapped pages are data, all else is holes.
func (d *Disk) Extents(ctx context.Context, off, n int64) iter.Seq2[blockdev.Extent, error] {
	if err := blockdev.CheckRange(d.Size(), off, n); err != nil {
		return blockdev.Fail(err)
	}
	return func(yield func(blockdev.Extent, error) bool) {
		m := &merger{yield: yield}
		for end := off + n; off < end && !m.stopped; {
			next, err := d.extentsAt(ctx, off, end, m)
			if err != nil {
				m.flush()
				if !m.stopped {
					yield(blockdev.Extent{}, err)
				}
				return
			}
			off = next
		}
		m.flush()
	}
}

// extentsAt adds the extents from off to the end of its leaf, or of its directory page when that is empty.
func (d *Disk) extentsAt(ctx context.Context, off, end int64, m *merger) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	n := uint32(off / LeafBytes)
	if empty, err := d.emptyDir(n / dirLeaves); err != nil || empty {
		next := min(end, int64(n/dirLeaves+1)*dirLeaves*LeafBytes)
		m.add(off, next, blockdev.Hole)
		return next, err
	}
	runs, err := d.leaf(ctx, n)
	if err != nil {
		return 0, err
	}
	start := int64(n) * LeafBytes
	next := min(end, start+LeafBytes)
	for _, r := range runs {
		m.add(off, min(next, start+int64(r.Page)*blockdev.PageSize), blockdev.Hole)
		off = max(off, min(next, start+int64(r.Page)*blockdev.PageSize))
		stop := min(next, start+int64(r.end())*blockdev.PageSize)
		m.add(off, stop, blockdev.Data)
		off = max(off, stop)
	}
	m.add(off, next, blockdev.Hole)
	return next, nil
}

// merger joins adjoining extents of one kind.
type merger struct {
	yield   func(blockdev.Extent, error) bool
	cur     blockdev.Extent
	stopped bool
}

func (m *merger) add(from, to int64, kind blockdev.Kind) {
	if to <= from || m.stopped {
		return
	}
	if m.cur.Len > 0 && m.cur.Kind == kind && m.cur.End() == from {
		m.cur.Len += to - from
		return
	}
	m.flush()
	m.cur = blockdev.Extent{Off: from, Len: to - from, Kind: kind}
}

func (m *merger) flush() {
	if m.cur.Len > 0 && !m.stopped {
		m.stopped = !m.yield(m.cur, nil)
	}
	m.cur.Len = 0
}

// PageHashes fills out with the hashes of the pages from first, zero for pages of zeroes and for those
// behind the end of the disk, and bad, of the same length, with whether their bytes are known to be lost. No
// chunk is decoded.
func (d *Disk) PageHashes(ctx context.Context, first int64, out []chunkstore.PageHash, bad []bool) error {
	clear(out)
	clear(bad)
	pages := (d.Size() + blockdev.PageSize - 1) / blockdev.PageSize
	for i := int64(0); i < int64(len(out)) && first+i < pages; {
		page := first + i
		n := min(int64(len(out))-i, LeafPages-page%LeafPages)
		if err := d.leafHashes(ctx, uint32(page/LeafPages), int(page%LeafPages), out[i:i+n], bad[i:i+n]); err != nil {
			return err
		}
		i += n
	}
	return nil
}

func (d *Disk) leafHashes(ctx context.Context, n uint32, first int, out []chunkstore.PageHash, bad []bool) error {
	runs, err := d.leaf(ctx, n)
	if err != nil {
		return err
	}
	for _, r := range runs {
		from, to := max(first, int(r.Page)), min(first+len(out), r.end())
		if from >= to {
			continue
		}
		hashes, err := d.s.runHashes(ctx, r, from, to)
		if err != nil {
			return err
		}
		copy(out[from-first:to-first], hashes)
		if d.s.chunks.IsBad(r.Ptr) {
			for i := from - first; i < to-first; i++ {
				bad[i] = true
			}
		}
	}
	return nil
}
