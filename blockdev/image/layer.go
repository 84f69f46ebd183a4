package image

import (
	"context"
	"encoding/binary"
	"math/bits"

	"livemount/internal/cache"
)

const (
	// blockBytes is the unit in which the tables of an image are read and kept.
	blockBytes = 64 << 10
	// metaBudget bounds the tables in memory, for all images of a chain together.
	metaBudget = 16 << 20

	offsetMask     uint64 = 0x00ff_ffff_ffff_fe00 // of L1 and standard L2 entries
	flagCopied     uint64 = 1 << 63
	flagCompressed uint64 = 1 << 62
	flagZero       uint64 = 1
	subclusters           = 32
)

// block names a piece of the tables of a chain.
type block struct {
	layer int
	off   int64
}

// layer is one image of a chain: a qcow2 with its tables, or a raw one, which is the last.
type layer struct {
	index  int
	format string
	file   *Raw // what holds the tables
	data   *Raw // what holds the clusters: file itself, or the external data file
	head   header
	size   int64
	meta   *cache.Cache[block, []byte] // of the whole chain
}

// runKind says where the bytes of a run are.
type runKind uint8

const (
	runNone   runKind = iota // not here: the image behind has it, or it is zeroes
	runZero                  // zeroes
	runData                  // at host, in the data file
	runPacked                // compressed; it is never longer than one cluster
)

// run is a range of the disk that one image maps in one way.
type run struct {
	kind  runKind
	n     int64
	host  int64  // runData: offset of the first byte in layer.data
	entry uint64 // runPacked: the L2 entry
	at    int64  // runPacked: offset of the first byte in its cluster
	layer *layer
}

// joins says whether next, which follows r on the disk, can be read together with it.
func (r *run) joins(next run) bool {
	if r.kind != next.kind || r.kind == runPacked {
		return false
	}
	return r.kind != runData || r.host+r.n == next.host
}

// run maps the disk from off on, at most to limit, which is at most the size of the layer.
func (l *layer) run(ctx context.Context, off, limit int64) (run, error) {
	if l.format == formatRaw {
		return run{kind: runData, n: limit - off, host: off, layer: l}, nil
	}
	r := run{layer: l}
	for off < limit {
		more, err := l.extend(ctx, &r, &off, limit)
		if err != nil || !more {
			return r, err
		}
	}
	return r, nil
}

// extend adds what one block of an L2 table maps to r and moves off behind it. It is false when something
// follows that does not join.
func (l *layer) extend(ctx context.Context, r *run, off *int64, limit int64) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	entries, err := l.l2(ctx, *off)
	if err != nil {
		return false, err
	}
	if entries == nil { // no table
		covered := l.head.covered()
		none := run{n: min(limit, *off-*off%covered+covered) - *off, layer: l}
		return r.take(none, off), nil
	}
	for step := l.head.entryBytes(); len(entries) > 0 && *off < limit; {
		next, err := l.classify(entries, *off)
		if err != nil {
			return false, err
		}
		next.n = min(next.n, limit-*off)
		if !r.take(next, off) {
			return false, nil
		}
		if *off&(l.head.cluster()-1) == 0 {
			entries = entries[step:]
		}
	}
	return true, nil
}

// take appends next, if it joins.
func (r *run) take(next run, off *int64) bool {
	if r.n == 0 {
		*r = run{kind: next.kind, host: next.host, entry: next.entry, at: next.at, layer: r.layer}
	} else if !r.joins(next) {
		return false
	}
	r.n += next.n
	*off += next.n
	return true
}

// l2 returns the L2 entries from the one of off to the end of its block, or nil when there is no table.
func (l *layer) l2(ctx context.Context, off int64) ([]byte, error) {
	h := &l.head
	b, err := l.table(ctx, h.l1Off+off/h.covered()*8)
	if err != nil {
		return nil, err
	}
	table := int64(binary.BigEndian.Uint64(b) & offsetMask)
	switch {
	case table == 0:
		return nil, nil
	case table%h.cluster() != 0:
		return nil, damaged(l.file.path, "the L2 table for offset %d at %d is not at the start of a cluster", off, table)
	case table > l.file.size-h.cluster():
		return nil, l.file.outside("the L2 table for offset %d at %d", off, table)
	}
	at := off % h.covered() >> h.clusterBits * h.entryBytes()
	b, err = l.table(ctx, table+at)
	if err != nil {
		return nil, err
	}
	return b[:min(int64(len(b)), h.cluster()-at)], nil
}

// table returns the bytes of the file from off to the end of the block. off is below the end of the file.
func (l *layer) table(ctx context.Context, off int64) ([]byte, error) {
	start := off - off%blockBytes
	b, err := l.meta.Get(ctx, block{l.index, start}, func() ([]byte, error) {
		b := make([]byte, min(blockBytes, l.file.size-start))
		return b, l.file.ReadAt(ctx, b, start)
	})
	if err != nil {
		return nil, err
	}
	return b[off-start:], nil
}

// classify maps the disk from off to the end of its cluster, or to where other subclusters begin.
func (l *layer) classify(entries []byte, off int64) (run, error) {
	h := &l.head
	entry, in := binary.BigEndian.Uint64(entries), off&(h.cluster()-1)
	r := run{n: h.cluster() - in, layer: l}
	if entry&flagCompressed != 0 {
		r.kind, r.entry, r.at = runPacked, entry, in
		if h.has(featureDataFile) {
			return r, damaged(l.file.path, "the cluster for offset %d is compressed in an image with an external data file", off)
		}
		return r, nil
	}
	host := int64(entry & offsetMask)
	// Offset 0 of an external data file is a cluster like any other; the flag tells it from no cluster.
	stored := host != 0 || h.has(featureDataFile) && entry&flagCopied != 0
	switch {
	case h.has(featureExtended):
		if err := l.subcluster(&r, binary.BigEndian.Uint64(entries[8:]), off, stored); err != nil {
			return r, err
		}
	case entry&flagZero != 0 && h.version < 3:
		return r, damaged(l.file.path, "the cluster for offset %d is a zero cluster, which version 2 does not have", off)
	case entry&flagZero != 0:
		r.kind = runZero
	case stored:
		r.kind = runData
	}
	if r.kind == runData {
		r.host = host + in
		return r, l.checkHost(host, off-in, off)
	}
	return r, nil
}

// subcluster narrows r to the subclusters of one kind that start at off. The low half of the bitmap says
// which are stored, the high half which are zeroes.
func (l *layer) subcluster(r *run, bitmap uint64, off int64, stored bool) error {
	data, zero := uint32(bitmap), uint32(bitmap>>32)
	if data&zero != 0 || data != 0 && !stored {
		return damaged(l.file.path, "the subclusters for offset %d contradict each other (%#x)", off, bitmap)
	}
	size := l.head.cluster() / subclusters
	in := off & (l.head.cluster() - 1)
	first := in / size
	same := ^(data | zero)
	switch {
	case data>>first&1 != 0:
		r.kind, same = runData, data
	case zero>>first&1 != 0:
		r.kind, same = runZero, zero
	}
	count := int64(bits.TrailingZeros32(^(same >> first)))
	r.n = min(first+count, subclusters)*size - in
	return nil
}

// checkHost makes sure that a stored cluster is one: an image that was cut off must not give zeroes.
func (l *layer) checkHost(host, cluster, off int64) error {
	switch {
	case host%l.head.cluster() != 0:
		return damaged(l.file.path, "the cluster for offset %d at %d is not at the start of a cluster", off, host)
	case l.head.has(featureDataFile) && host != cluster:
		return damaged(l.file.path, "the cluster for offset %d is at %d of the external data file, not at %d", off, host, cluster)
	case host >= l.data.size:
		return l.data.outside("the cluster for offset %d at %d", off, host)
	}
	return nil
}

// outside is the error for a place behind the end of the file, which is damage unless the file was written
// since it was opened.
func (r *Raw) outside(format string, args ...any) error {
	if err := r.Check(context.Background()); err != nil {
		return err
	}
	return damaged(r.path, format+" ends behind the end of the file at %d", append(args, r.size)...)
}
