package snapshotchain

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sort"

	"livemount/internal/errs"
	"livemount/internal/gate"
	"livemount/internal/kv"
	"livemount/snapshotchain/chunkstore"
)

// marker finds out what the kept points show. It is exact: of a version of a leaf that later ones hide in part, only
// what some kept point sees counts. What Badger lost is read from the map segments instead; what cannot be read at
// all is an error, and then nothing may be taken away.
type marker struct {
	s     *Store
	keep  *keeping
	live  *slotSet
	purge *purger // nil to leave Badger as it is

	lineage LineageID
	kept    *kept
	seals   map[Seq]*segment // of this lineage
	leaf    leafMarker
	// damaged, unless it is nil, is told of what cannot be read, and the rest is marked all the same.
	damaged func(error)

	pointers int64 // runs that were looked at
}

// segment is a seal with the parts of it that are needed.
type segment struct {
	*seal
	needed []bool
}

// mark goes through all lineages, and calls forget with the seals that are not needed.
func (m *marker) mark(ctx context.Context, forget func(forgotten) error) error {
	for _, p := range m.keep.configs {
		m.live.add(p)
	}
	ids := slices.Sorted(maps.Keys(m.keep.lineages))
	for _, id := range ids {
		err := m.markLineage(ctx, id, forget)
		if err != nil {
			err = fmt.Errorf("mark lineage %s: %w", id, err)
		}
		if err = m.tolerate(err); err != nil {
			return err
		}
	}
	return m.purge.flush()
}

// tolerate tells of damage instead of ending, where that is wanted.
func (m *marker) tolerate(err error) error {
	if m.damaged != nil && errs.Is(err, errs.Corrupt) {
		m.damaged(err)
		return nil
	}
	return err
}

func (m *marker) markLineage(ctx context.Context, id LineageID, forget func(forgotten) error) error {
	m.lineage, m.kept, m.seals = id, m.keep.lineages[id], map[Seq]*segment{}
	var views []*dirCursor
	last := 0 // pages that any point has
	for _, seq := range m.kept.seqs {
		sg, err := m.segment(ctx, seq)
		if err != nil {
			return err
		}
		n := dirPagesOf(sg.Size)
		views = append(views, &dirCursor{d: varints{b: sg.Dirs}, left: n})
		last = max(last, n)
	}
	for page := range last {
		if err := m.markDir(ctx, uint32(page), views); err != nil {
			return err
		}
	}
	if err := m.purge.rest(ctx, id, uint32(last), m.kept.upTo); err != nil {
		return err
	}
	return m.markSegments(ctx, forget)
}

// segment returns the seal of a point of the lineage.
func (m *marker) segment(ctx context.Context, seq Seq) (*segment, error) {
	if sg := m.seals[seq]; sg != nil {
		return sg, nil
	}
	sl, err := m.s.sealOf(ctx, m.lineage, seq)
	if err != nil {
		return nil, err
	}
	sg := &segment{seal: sl, needed: make([]bool, len(sl.Parts))}
	m.seals[seq] = sg
	return sg, nil
}

// need notes that an entry of a point's segment is needed.
func (m *marker) need(ctx context.Context, kind PartKind, n uint32, seq Seq) error {
	sg, err := m.segment(ctx, seq)
	if err != nil {
		return err
	}
	if i := sg.part(kind, n); i >= 0 {
		sg.needed[i] = true
	}
	return nil
}

// part returns the index of the part that holds an entry, or -1.
func (sl *seal) part(kind PartKind, n uint32) int {
	i := sort.Search(len(sl.Parts), func(i int) bool {
		return sl.Parts[i].Kind > kind || (sl.Parts[i].Kind == kind && sl.Parts[i].Last >= n)
	})
	if i < len(sl.Parts) && sl.Parts[i].Kind == kind && sl.Parts[i].First <= n {
		return i
	}
	return -1
}

// dirCursor reads the run-coded versions of the directory pages of a point one after the other.
type dirCursor struct {
	d    varints
	run  uint64
	seq  Seq
	left int
}

// next returns the version of the next directory page, 0 when there is none.
func (c *dirCursor) next() (Seq, error) {
	if c.left == 0 {
		return 0, nil
	}
	c.left--
	if c.run == 0 {
		c.run, c.seq = c.d.uint(1<<32-1), Seq(c.d.uint(1<<32-1))
		if c.d.err != nil || c.run == 0 {
			return 0, errs.New(errs.Corrupt, "directory of a point is malformed")
		}
	}
	c.run--
	return c.seq, nil
}

// markDir marks the leaves of a directory page.
func (m *marker) markDir(ctx context.Context, page uint32, views []*dirCursor) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	leave, err := m.s.opts.Gate.Enter(ctx, gate.Collect)
	if err != nil {
		return err
	}
	defer leave()
	dirs, err := m.dirVersions(ctx, page, views)
	if err != nil {
		return err
	}
	if err := m.purge.dirs(m.lineage, page, m.kept.upTo, dirs); err != nil {
		return err
	}
	seen, err := m.leavesSeen(ctx, page, dirs)
	if err != nil {
		return err
	}
	from, to := page*dirLeaves, (page+1)*dirLeaves
	w := &leafWalk{m: m, ctx: ctx, seen: seen, next: from}
	err = m.s.db.Scan(keyLeaf(m.lineage, from, 0), keyLeaf(m.lineage, to, 0), w.entry)
	if err != nil {
		return err
	}
	return w.upTo(to)
}

// dirVersions returns the versions of a directory page that kept points see, ascending.
func (m *marker) dirVersions(ctx context.Context, page uint32, views []*dirCursor) ([]Seq, error) {
	var list []Seq
	for _, v := range views {
		seq, err := v.next()
		if err != nil {
			return nil, err
		}
		if seq != 0 && (len(list) == 0 || list[len(list)-1] != seq) {
			list = append(list, seq)
		}
	}
	slices.Sort(list)
	list = slices.Compact(list)
	for _, seq := range list {
		if err := m.need(ctx, PartDirs, page, seq); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// leavesSeen returns for each leaf of a directory page the versions that kept points see, ascending.
func (m *marker) leavesSeen(ctx context.Context, page uint32, dirs []Seq) (*[dirLeaves][]Seq, error) {
	var seen [dirLeaves][]Seq
	for _, seq := range dirs {
		var dp dirPage
		err := m.s.mapEntry(ctx, PartDirs, m.lineage, page, seq, func(raw []byte) error { return decodeSeqs(raw, dp[:]) })
		if err != nil {
			return nil, err
		}
		for i, v := range dp {
			if n := len(seen[i]); v != 0 && (n == 0 || seen[i][n-1] != v) {
				seen[i] = append(seen[i], v)
			}
		}
	}
	for i := range seen {
		slices.Sort(seen[i])
		seen[i] = slices.Compact(seen[i])
	}
	return &seen, nil
}

// leafWalk gathers the versions of one leaf after the other.
type leafWalk struct {
	m    *marker
	ctx  context.Context
	seen *[dirLeaves][]Seq
	next uint32 // the leaf whose versions are gathered
	have []leafEntry
}

// leafEntry is a version of a leaf as Badger has it; nil when it is spoiled.
type leafEntry struct {
	seq Seq
	raw []byte
}

func (w *leafWalk) entry(key, val []byte, err error) error {
	if len(key) != 17 {
		return nil
	}
	if err := w.upTo(binary.BigEndian.Uint32(key[9:])); err != nil {
		return err
	}
	if err != nil {
		val = nil
	}
	w.have = append(w.have, leafEntry{Seq(binary.BigEndian.Uint32(key[13:])), append([]byte(nil), val...)})
	return nil
}

// upTo marks the leaves before n.
func (w *leafWalk) upTo(n uint32) error {
	for ; w.next < n; w.next++ {
		err := w.m.markLeaf(w.ctx, w.next, w.seen[w.next%dirLeaves], w.have)
		if err != nil {
			err = fmt.Errorf("lineage %s: leaf %d: %w", w.m.lineage, w.next, err)
		}
		if err = w.m.tolerate(err); err != nil {
			return err
		}
		w.have = w.have[:0]
	}
	return nil
}

// markLeaf marks what the seen versions of a leaf show, and purges the versions that none of them needs.
func (m *marker) markLeaf(ctx context.Context, n uint32, seen []Seq, have []leafEntry) error {
	needed := map[Seq]*leaf{}
	for _, seq := range slices.Backward(seen) {
		if err := m.chain(ctx, n, seq, have, needed); err != nil {
			return err
		}
	}
	for _, e := range have {
		if e.seq <= m.kept.upTo && needed[e.seq] == nil {
			if err := m.purge.add(keyLeaf(m.lineage, n, e.seq)); err != nil {
				return err
			}
		}
	}
	if len(needed) == 0 {
		return nil
	}
	m.leaf.begin()
	for _, seq := range slices.Sorted(maps.Keys(needed)) {
		m.pointers += int64(len(needed[seq].runs))
		m.leaf.lay(needed[seq])
		if _, ok := slices.BinarySearch(seen, seq); ok {
			m.leaf.mark(m.live)
		}
		if err := m.need(ctx, PartLeaves, n, seq); err != nil {
			return err
		}
	}
	return nil
}

// chain decodes a version and those that it builds upon.
func (m *marker) chain(ctx context.Context, n uint32, seq Seq, have []leafEntry, needed map[Seq]*leaf) error {
	for needed[seq] == nil {
		v, err := m.version(ctx, n, seq, have)
		if err != nil {
			return err
		}
		needed[seq] = v
		if v.full {
			return nil
		}
		if v.prev >= seq {
			return errs.New(errs.Corrupt, "version %d builds upon version %d", seq, v.prev)
		}
		seq = v.prev
	}
	return nil
}

func (m *marker) version(ctx context.Context, n uint32, seq Seq, have []leafEntry) (*leaf, error) {
	i, ok := slices.BinarySearchFunc(have, seq, func(e leafEntry, seq Seq) int { return int(int64(e.seq) - int64(seq)) })
	if ok && have[i].raw != nil {
		if v, err := decodeLeaf(have[i].raw); err == nil {
			return v, nil
		}
	}
	return m.s.leafVersion(ctx, m.lineage, n, seq)
}

// markSegments marks the parts that are needed, and tells which seals are not.
func (m *marker) markSegments(ctx context.Context, forget func(forgotten) error) error {
	for _, sg := range m.seals {
		for i, need := range sg.needed {
			if need {
				m.live.add(sg.Parts[i].Ptr)
			}
		}
	}
	f := forgotten{Lineage: m.lineage}
	prefix := be64("s", uint64(m.lineage))
	err := m.s.db.Scan(prefix, keySeal(m.lineage, m.kept.upTo+1), func(key, _ []byte, _ error) error {
		if len(key) == 13 {
			if seq := Seq(binary.BigEndian.Uint32(key[9:])); m.seals[seq] == nil {
				f.Seqs = append(f.Seqs, seq)
			}
		}
		return ctx.Err()
	})
	if err != nil || forget == nil {
		return err
	}
	return forget(f)
}

// leafMarker lays versions of a leaf over each other, in ascending order, and marks what can be seen.
type leafMarker struct {
	pages [LeafPages]cell
	fresh []uint16 // pages that changed since the last mark; some twice
}

// cell is where a page is.
type cell struct {
	ptr   chunkstore.Ptr
	first uint16
}

func (l *leafMarker) begin() {
	clear(l.pages[:])
	l.fresh = l.fresh[:0]
}

// lay puts a version over those before it. A delta says at least what changed since the version before it, because it
// builds upon that one or an older one.
func (l *leafMarker) lay(v *leaf) {
	page := 0
	for _, r := range v.runs {
		if v.full {
			clear(l.pages[page:r.Page])
		}
		page = r.end()
		for i := r.Page; i < uint16(r.end()); i++ {
			c := cell{}
			if !r.IsZero() {
				c = cell{r.Ptr, r.First + i - r.Page}
			}
			if l.pages[i] != c {
				l.pages[i] = c
				l.fresh = append(l.fresh, i)
			}
		}
	}
	if v.full {
		clear(l.pages[page:])
	}
}

// mark adds what is seen now and was not when it was called before.
func (l *leafMarker) mark(live *slotSet) {
	var last chunkstore.Ptr
	for _, i := range l.fresh {
		if p := l.pages[i].ptr; p.Container != 0 && p != last {
			live.add(p)
			last = p
		}
	}
	l.fresh = l.fresh[:0]
}

// purger removes from Badger what no kept point needs. A nil purger removes nothing.
type purger struct {
	db     *kv.DB
	admit  func() error // asked before Badger is written to; on a full disk nothing is purged
	batch  *kv.Batch
	n      int
	purged int64
}

// purgeAtOnce bounds how much is deleted before it is committed.
const purgeAtOnce = 10000

func (p *purger) add(key []byte) error {
	if p == nil {
		return nil
	}
	if p.batch == nil {
		p.batch = p.db.NewBatch()
	}
	if err := p.batch.Delete(key); err != nil {
		return err
	}
	p.purged++
	if p.n++; p.n >= purgeAtOnce {
		return p.flush()
	}
	return nil
}

func (p *purger) flush() error {
	if p == nil || p.batch == nil {
		return nil
	}
	b := p.batch
	p.batch, p.n = nil, 0
	if err := p.admit(); err != nil {
		b.Cancel()
		return nil
	}
	return b.Flush()
}

// dirs removes the versions of a directory page up to upTo but those that are seen.
func (p *purger) dirs(l LineageID, page uint32, upTo Seq, seen []Seq) error {
	if p == nil {
		return nil
	}
	return p.db.Scan(keyDir(l, page, 0), keyDir(l, page, upTo+1), func(key, _ []byte, _ error) error {
		if _, ok := slices.BinarySearch(seen, Seq(binary.BigEndian.Uint32(key[13:]))); ok {
			return nil
		}
		return p.add(key)
	})
}

// rest removes what lies behind the last directory page that a kept point has.
func (p *purger) rest(ctx context.Context, l LineageID, page uint32, upTo Seq) error {
	if p == nil {
		return nil
	}
	remove := func(key, _ []byte, _ error) error {
		if Seq(binary.BigEndian.Uint32(key[13:])) > upTo {
			return nil
		}
		return firstError(p.add(key), ctx.Err())
	}
	if err := p.db.Scan(keyDir(l, page, 0), be64("d", uint64(l)+1), remove); err != nil {
		return err
	}
	return p.db.Scan(keyLeaf(l, page*dirLeaves, 0), be64("l", uint64(l)+1), remove)
}
