package image

import (
	"context"
	"encoding/binary"
	"hash/maphash"
	"math/bits"

	"livemount/blockdev"
	"livemount/internal/cache"
	"livemount/internal/errs"
)

// The image that AsQcow2 makes: clusters of 64 KiB, so an L2 table maps a group of 8192 clusters, 512 MiB.
const (
	outBits      = 16
	outCluster   = 1 << outBits
	outEntries   = outCluster / 8
	refsPerBlock = outCluster / 2
	groupBytes   = outEntries << outBits
	// mapBudget bounds the maps of groups in memory.
	mapBudget = 1 << 20
)

// layout says which cluster of the file holds what: the header, the L1 table, the table of reference counts,
// their blocks, then for each group with data its L2 table and its data in the order of the disk.
type layout struct {
	diskBytes  int64 // in whole sectors
	refTable   int64 // cluster; the L1 table is between 1 and here
	refBlocks  int64
	firstGroup int64
	clusters   int64 // of the file
	start      []int64
	count      []uint16 // clusters with data, of each group
	sums       []uint64 // of their maps, to find that the disk changed
	seed       maphash.Seed
	maps       *cache.Cache[int, *groupMap]
}

// groupMap has a bit for each cluster of a group that has data.
type groupMap [outEntries / 64]uint64

func newLayout(ctx context.Context, r blockdev.Reader) (*layout, error) {
	size := r.Size()
	if size > maxDiskSize {
		return nil, errs.New(errs.Invalid, "a disk of %d bytes as qcow2: at most %d", size, int64(maxDiskSize))
	}
	groups := max(1, (size+groupBytes-1)/groupBytes)
	y := &layout{
		diskBytes: (size + 511) &^ 511, start: make([]int64, groups), count: make([]uint16, groups), sums: make([]uint64, groups),
		seed: maphash.MakeSeed(), maps: cache.New[int](mapBudget, func(*groupMap) int64 { return 1200 }, nil),
	}
	if err := y.scan(ctx, r); err != nil {
		return nil, err
	}
	y.place()
	return y, nil
}

// scan counts the clusters with data of all groups in one walk.
func (y *layout) scan(ctx context.Context, r blockdev.Reader) error {
	var m groupMap
	at := 0
	for e, err := range r.Extents(ctx, 0, r.Size()) {
		if err != nil {
			return err
		}
		for e.Kind == blockdev.Data && e.Len > 0 {
			g := int(e.Off / groupBytes)
			for ; at < g; at++ {
				y.note(at, &m)
			}
			n := min(e.Len, int64(g+1)*groupBytes-e.Off)
			m.set(e.Off-int64(g)*groupBytes, n)
			e.Off, e.Len = e.Off+n, e.Len-n
		}
	}
	for ; at < len(y.start); at++ {
		y.note(at, &m)
	}
	return nil
}

// note takes over what is known of a group, and clears m for the next.
func (y *layout) note(g int, m *groupMap) {
	y.count[g], y.sums[g] = uint16(m.len()), maphash.Comparable(y.seed, *m)
	clear(m[:])
}

// place gives everything its cluster. The blocks count themselves and their table too, so it goes in rounds
// until it fits; each adds to what it found before, and 64 TiB need two.
func (y *layout) place() {
	var body int64
	for _, n := range y.count {
		if n > 0 {
			body += 1 + int64(n)
		}
	}
	y.refTable = 1 + (int64(len(y.start))+outEntries-1)/outEntries
	for blocks := int64(1); ; {
		y.refBlocks = y.refTable + (blocks+outEntries-1)/outEntries
		y.firstGroup = y.refBlocks + blocks
		y.clusters = y.firstGroup + body
		need := (y.clusters + refsPerBlock - 1) / refsPerBlock
		if need <= blocks {
			break
		}
		blocks = need
	}
	next := y.firstGroup
	for g, n := range y.count {
		y.start[g] = next
		if n > 0 {
			next += 1 + int64(n)
		}
	}
}

// groupMap reads the extents of a group again.
func (y *layout) groupMap(ctx context.Context, r blockdev.Reader, g int) (*groupMap, error) {
	return y.maps.Get(ctx, g, func() (*groupMap, error) {
		var m groupMap
		from := int64(g) * groupBytes
		for e, err := range r.Extents(ctx, from, min(groupBytes, r.Size()-from)) {
			if err != nil {
				return nil, err
			}
			if e.Kind == blockdev.Data {
				m.set(e.Off-from, e.Len)
			}
		}
		if maphash.Comparable(y.seed, m) != y.sums[g] {
			return nil, errs.New(errs.Corrupt, "disk as qcow2: what has data between %d and %d is not what it was", from, from+groupBytes)
		}
		return &m, nil
	})
}

// set marks the clusters that [off, off+n) touches, a word at a time.
func (m *groupMap) set(off, n int64) {
	for c, end := off>>outBits, (off+n+outCluster-1)>>outBits; c < end; c = c&^63 + 64 {
		word := ^uint64(0) << (c % 64)
		if end < c&^63+64 {
			word &= 1<<(end%64) - 1
		}
		m[c/64] |= word
	}
}

func (m *groupMap) has(c int) bool { return c < outEntries && m[c/64]>>(c%64)&1 != 0 }

func (m *groupMap) len() int {
	n := 0
	for _, w := range m {
		n += bits.OnesCount64(w)
	}
	return n
}

// l2 writes the L2 table of the group, whose data starts at the given cluster of the file.
func (m *groupMap) l2(b []byte, next int64) {
	for c := range outEntries {
		if m.has(c) {
			binary.BigEndian.PutUint64(b[c*8:], uint64(next)<<outBits|flagCopied)
			next++
		}
	}
}

// neighbours finds the cluster with data of the given rank, and how many that follow it in the file follow it
// on the disk as well, itself included, at most limit.
func (m *groupMap) neighbours(rank, limit int) (first, count int) {
	for w := range m {
		n := bits.OnesCount64(m[w])
		if rank < n {
			first = w*64 + nthBit(m[w], rank)
			break
		}
		rank -= n
	}
	for count = 1; count < limit && m.has(first+count); count++ {
	}
	return first, count
}

// nthBit is the place of the set bit that has n set bits below it.
func nthBit(w uint64, n int) int {
	for ; n > 0; n-- {
		w &= w - 1
	}
	return bits.TrailingZeros64(w)
}
