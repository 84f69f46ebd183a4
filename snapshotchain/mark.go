package snapshotchain

import (
	"cmp"
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
	own   *owners // nil not to find out what is a point's own

	lineage LineageID
	kept    *kept
	seals   map[Seq]*segment // of this lineage
	seen    seenLeaves       // of the directory page that is marked now
	needed  []version        // of the leaf that is marked now, newest first
	leaf    leafMarker
	// damaged, unless it is nil, is told of what cannot be read, and the rest is marked all the same.
	damaged func(error)

	pointers int64 // runs that were looked at
}

// nameOfLineage says for people which disk a lineage is of.
func (s *Store) nameOfLineage(id LineageID) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, vm := range s.cat.vms {
		for _, d := range vm.Disks {
			if d.Lineage == id {
				return fmt.Sprintf("disk %s of %s", d.Name, vm.Name)
			}
		}
	}
	return fmt.Sprintf("a disk that is in use no more (lineage %s)", id)
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
			err = fmt.Errorf("mark %s: %w", m.s.nameOfLineage(id), err)
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
	if err := m.leavesSeen(ctx, page, dirs); err != nil {
		return err
	}
	from, to := page*dirLeaves, (page+1)*dirLeaves
	w := &leafWalk{m: m, ctx: ctx, next: from}
	err = m.s.db.Scan(keyLeaf(m.lineage, from, 0), keyLeaf(m.lineage, to, 0), w.entry)
	if err != nil {
		return err
	}
	return w.upTo(to)
}

// dirVersions returns the versions of a directory page that kept points see, ascending.
func (m *marker) dirVersions(ctx context.Context, page uint32, views []*dirCursor) ([]Seq, error) {
	var list []Seq
	m.own.dir()
	for i, v := range views {
		seq, err := v.next()
		if err != nil {
			return nil, err
		}
		m.own.sees(diskAt{m.lineage, m.kept.seqs[i]}, seq)
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

// seenLeaves holds for each leaf of a directory page the versions that kept points see, ascending.
type seenLeaves [dirLeaves][]Seq

func (s *seenLeaves) clear() {
	for i := range s {
		s[i] = s[i][:0]
	}
}

func (s *seenLeaves) add(dp *dirPage) {
	for i, v := range dp {
		if n := len(s[i]); v != 0 && (n == 0 || s[i][n-1] != v) {
			s[i] = append(s[i], v)
		}
	}
}

// leavesSeen finds the versions of leaves that kept points see, and purges the versions of the directory page that
// none of them sees. It reads them in one go, and by their keys only those that Badger does not have.
func (m *marker) leavesSeen(ctx context.Context, page uint32, dirs []Seq) error {
	m.seen.clear()
	var dp dirPage
	have := make([]bool, len(dirs))
	err := m.s.db.Scan(keyDir(m.lineage, page, 0), keyDir(m.lineage, page, m.kept.upTo+1), func(key, val []byte, err error) error {
		if len(key) != 17 {
			return nil
		}
		i, ok := slices.BinarySearch(dirs, Seq(binary.BigEndian.Uint32(key[13:])))
		if !ok {
			return m.purge.add(key)
		}
		if err == nil && decodeSeqs(val, dp[:]) == nil {
			have[i] = true
			m.seen.add(&dp)
			m.own.leaves(dirs[i], &dp)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i, seq := range dirs {
		if have[i] {
			continue
		}
		err := m.s.mapEntry(ctx, PartDirs, m.lineage, page, seq, func(raw []byte) error { return decodeSeqs(raw, dp[:]) })
		if err != nil {
			return err
		}
		m.seen.add(&dp)
		m.own.leaves(seq, &dp)
	}
	for i := range m.seen {
		slices.Sort(m.seen[i])
		m.seen[i] = slices.Compact(m.seen[i])
	}
	return nil
}

// leafWalk gathers the versions of one leaf after the other.
type leafWalk struct {
	m    *marker
	ctx  context.Context
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
	w.have = append(w.have, leafEntry{Seq(binary.BigEndian.Uint32(key[13:])), val})
	return nil
}

// upTo marks the leaves before n.
func (w *leafWalk) upTo(n uint32) error {
	for ; w.next < n; w.next++ {
		err := w.m.markLeaf(w.ctx, w.next, w.m.seen[w.next%dirLeaves], w.have)
		if err != nil {
			err = fmt.Errorf("%d bytes at %d: %w", LeafBytes, int64(w.next)*LeafBytes, err)
		}
		if err = w.m.tolerate(err); err != nil {
			return err
		}
		w.have = w.have[:0]
	}
	return nil
}

// version is a version of a leaf that is needed.
type version struct {
	seq Seq
	*leaf
}

// find looks for a version among the needed ones: where it is, or belongs.
func (m *marker) find(seq Seq) (int, bool) {
	return slices.BinarySearchFunc(m.needed, seq, func(v version, seq Seq) int { return cmp.Compare(seq, v.seq) })
}

// markLeaf marks what the seen versions of a leaf show, and purges the versions that none of them needs.
func (m *marker) markLeaf(ctx context.Context, n uint32, seen []Seq, have []leafEntry) error {
	m.needed = m.needed[:0]
	for _, seq := range slices.Backward(seen) {
		if err := m.chain(ctx, n, seq, have); err != nil {
			return err
		}
	}
	for _, e := range have {
		if _, ok := m.find(e.seq); !ok && e.seq <= m.kept.upTo {
			if err := m.purge.add(keyLeaf(m.lineage, n, e.seq)); err != nil {
				return err
			}
		}
	}
	m.own.leaf(n, m.needed, m.kept.forked)
	for i, v := range slices.Backward(m.needed) {
		m.pointers += int64(len(v.runs))
		_, shown := slices.BinarySearch(seen, v.seq)
		oldest := i == len(m.needed)-1
		if len(m.needed) > 1 { // else nothing is laid over it
			switch {
			case oldest:
				m.leaf.begin()
				m.leaf.lay(v.leaf)
			case !m.kept.forked || v.full || v.prev == m.needed[i+1].seq:
				m.leaf.lay(v.leaf)
			default: // the version before it may be of a point that this one was not compared with
				m.layChain(i)
			}
		}
		switch {
		case shown && oldest:
			m.leaf.markFirst(v.leaf, m.live)
		case shown:
			m.leaf.mark(m.live)
		}
		if err := m.need(ctx, PartLeaves, n, v.seq); err != nil {
			return err
		}
	}
	return nil
}

// layChain lays what the i-th needed version builds upon, and it, and nothing else.
func (m *marker) layChain(i int) {
	var list []int
	for {
		list = append(list, i)
		if m.needed[i].full {
			break
		}
		i, _ = m.find(m.needed[i].prev)
	}
	m.leaf.begin()
	for _, k := range slices.Backward(list) {
		m.leaf.lay(m.needed[k].leaf)
	}
}

// chain decodes a version and those that it builds upon, down to a full one.
func (m *marker) chain(ctx context.Context, n uint32, seq Seq, have []leafEntry) error {
	for {
		i, ok := m.find(seq)
		if ok {
			return nil
		}
		v, err := m.version(ctx, n, seq, have)
		if err != nil {
			return err
		}
		m.needed = slices.Insert(m.needed, i, version{seq, v})
		if v.full {
			return nil
		}
		if v.prev >= seq {
			return errs.New(errs.Corrupt, "version %d builds upon version %d", seq, v.prev)
		}
		seq = v.prev
	}
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
	pages [LeafPages]chunkstore.Ptr // where each is; the zero Ptr for zeroes
	fresh []uint16                  // pages that changed since the last mark; some twice
}

// begin forgets the leaf before.
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
		for i := r.Page; i < uint16(page); i++ {
			if l.pages[i] != r.Ptr {
				l.pages[i] = r.Ptr
				l.fresh = append(l.fresh, i)
			}
		}
	}
	if v.full {
		clear(l.pages[page:])
	}
}

// markFirst adds what is seen of the oldest version, which is full: all that it says.
func (l *leafMarker) markFirst(v *leaf, live *slotSet) {
	for _, r := range v.runs {
		if !r.IsZero() {
			live.add(r.Ptr)
		}
	}
	l.fresh = l.fresh[:0]
}

// mark adds what is seen now and was not when it was called before.
func (l *leafMarker) mark(live *slotSet) {
	var last chunkstore.Ptr
	for _, i := range l.fresh {
		if p := l.pages[i]; p.Container != 0 && p != last {
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
