package overlay

import (
	"fmt"

	"github.com/tidwall/btree"
)

// extentMap holds the extents of a node, in order and without overlap, in packed leaves: there may be tens
// of millions. Copies share the leaves, which are never changed but replaced.
type extentMap struct {
	leaves btree.Map[int64, string] // by the offset of their first extent
	count  int
	bytes  int64 // of all leaves
	data   int64 // bytes that the extents of data cover
	form   form  // how the leaves are packed
}

// Len is the number of extents.
func (m *extentMap) Len() int { return m.count }

// copy needs the same lock as a change, because it marks the tree as shared.
func (m *extentMap) copy() extentMap {
	return extentMap{*m.leaves.Copy(), m.count, m.bytes, m.data, m.form}
}

// leafOf is the key of the leaf where an extent that covers off is, if there is one.
func (m *extentMap) leafOf(off int64) (key int64) {
	m.leaves.Descend(off, func(k int64, _ string) bool {
		key = k
		return false
	})
	return key
}

// from calls f with each extent that ends behind off, in order, until it returns false.
func (m *extentMap) from(off int64, f func(extent) bool) {
	m.leaves.Ascend(m.leafOf(off), func(_ int64, leaf string) bool {
		u := m.form.unpack(leaf)
		for e, ok := u.next(); ok; e, ok = u.next() {
			if e.end() > off && !f(e) {
				return false
			}
		}
		u.finish()
		return true
	})
}

// finish finds our own bugs: a leaf that is broken would let the base show where it must not.
func (u *unpacker) finish() {
	if u.broken {
		panic(fmt.Sprintf("overlay: broken leaf %x", u.leaf))
	}
}

// around returns the last extent that starts before lo and the last one that starts before hi; one of no
// length stands for none. Both are mostly in one leaf.
func (m *extentMap) around(lo, hi int64) (left, right extent) {
	first := int64(0)
	m.leaves.Descend(hi-1, func(key int64, leaf string) bool {
		first = key
		left, right = m.lastBefore(leaf, lo, hi)
		return false
	})
	if left.len == 0 && first >= lo {
		m.leaves.Descend(lo-1, func(_ int64, leaf string) bool {
			left, _ = m.lastBefore(leaf, lo, lo)
			return false
		})
	}
	return left, right
}

func (m *extentMap) lastBefore(leaf string, lo, hi int64) (left, right extent) {
	u := m.form.unpack(leaf)
	for e, ok := u.next(); ok && e.off < hi; e, ok = u.next() {
		if right = e; e.off < lo {
			left = e
		}
	}
	u.finish()
	return left, right
}

// at returns the first extent that ends behind off.
func (m *extentMap) at(off int64) (found extent, ok bool) {
	m.from(off, func(e extent) bool {
		found, ok = e, true
		return false
	})
	return found, ok
}

// splice removes the extents that start in [lo, hi), which is not empty, and puts others there: at most 3,
// none of which may overlap one that stays. live is told of the removed ones.
func (m *extentMap) splice(lo, hi int64, with []extent, live *liveCount) {
	var buf [2*leafMost + 4]extent
	list := buf[:0]
	first, leaf, found := m.leafAt(m.leafOf(lo))
	for key, more := first, found; more; {
		m.bytes -= int64(len(leaf))
		var behind bool
		list, behind = m.keep(list, leaf, lo, hi, &with, live)
		if key != first {
			m.leaves.Delete(key)
		}
		key, leaf, more = m.leafAt(key + 1)
		few := len(list)+len(with) < leafMost/4 // leaves would get ever smaller
		more = more && (few || !behind && key < hi)
	}
	list = append(list, with...)
	if found && (len(list) == 0 || list[0].off != first) {
		m.leaves.Delete(first)
	}
	m.store(list)
}

// leafAt returns the first leaf at or behind a key.
func (m *extentMap) leafAt(at int64) (key int64, leaf string, ok bool) {
	m.leaves.Ascend(at, func(k int64, l string) bool {
		key, leaf, ok = k, l, true
		return false
	})
	return key, leaf, ok
}

// keep appends what stays of a leaf, and with where it belongs. All leaf's extents are taken off the count;
// store adds them again.
func (m *extentMap) keep(list []extent, leaf string, lo, hi int64, with *[]extent, live *liveCount) (kept []extent, behind bool) {
	u := m.form.unpack(leaf)
	for e, ok := u.next(); ok; e, ok = u.next() {
		m.count--
		m.data -= e.dataBytes()
		if e.off >= lo && e.off < hi {
			live.sub(e)
			continue
		}
		if e.off >= hi {
			list, behind = append(list, *with...), true
			*with = nil
		}
		list = append(list, e)
	}
	u.finish()
	return list, behind
}

// store packs extents into leaves. At the end of the map it fills them, because more will follow there.
func (m *extentMap) store(list []extent) {
	size := leafMost
	if n := len(list); n > leafMost {
		if last, _, _ := m.leaves.Max(); last > list[n-1].off {
			parts := (n + leafMost - 1) / leafMost
			size = (n + parts - 1) / parts
		}
	}
	for len(list) > 0 {
		n := min(size, len(list))
		m.add(m.form.packLeaf(list[:n]), list[:n])
		list = list[n:]
	}
}

// add adds a leaf that holds these extents.
func (m *extentMap) add(leaf string, list []extent) {
	m.leaves.Set(list[0].off, leaf)
	m.count += len(list)
	m.bytes += int64(len(leaf))
	for i := range list {
		m.data += list[i].dataBytes()
	}
}

// filler fills a map with extents that come in order.
type filler struct {
	m    *extentMap
	list []extent
}

func (f *filler) push(e extent) {
	if f.list = append(f.list, e); len(f.list) == leafMost {
		f.flush()
	}
}

func (f *filler) flush() {
	f.m.store(f.list)
	f.list = f.list[:0]
}
