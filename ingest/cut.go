package ingest

import (
	"encoding/binary"
	"math/bits"

	"livemount/blockdev"
	"livemount/snapshotchain"
	"livemount/snapshotchain/chunkstore"
)

// Chunks end where the hash of a page says so, so that the same files are cut alike wherever they lie on
// whichever disk: seldom below normalPages, soon above it, which keeps most chunks near 70 KiB (normalized
// chunking: Xia et al., "FastCDC", USENIX ATC 2016). Changed pages that do not adjoin are cut in the same
// way, which gathers what a database wrote all over its disk; but a chunk of gapPages ends where they do not
// adjoin, so that extents of 64 KiB, as hypervisors report them, are read again without their neighbours.
const (
	minPages    = 6
	gapPages    = 8
	normalPages = 16
	seldomBits  = 6 // one page in 64
	soonBits    = 2 // one page in 4
)

// maxApart bounds how far apart the pages of a chunk may lie, in leaves: that many wait for it.
const maxApart = 64

// page is a changed page on its way into a chunk.
type page struct {
	no   int64
	hash chunkstore.PageHash
	data []byte
}

func (p *page) leaf() int64 { return p.no / snapshotchain.LeafPages }

// chunk is a stored or a compressed chunk and the pages that it holds, in order.
type chunk struct {
	pages []page
	found bool
	ptr   chunkstore.Ptr
	enc   chunkstore.Encoded
}

// cut is what the cutter makes of a batch. Chunks may begin with pages of the batch before.
type cut struct {
	chunks []chunk
	open   int64 // leaf of the first page that waits for the next batch, -1 for none
}

// cutter cuts the changed pages of a disk into chunks.
type cutter struct {
	hasher *chunkstore.Hasher
	open   []page // of the chunk in the making
}

func (c *cutter) batch(b *batch) {
	b.cut = cut{chunks: b.cut.chunks[:0]}
	for _, p := range b.found.pages {
		if c.endsBefore(&p) {
			c.close(&b.cut)
		}
		c.open = append(c.open, p)
		if c.ends(p.hash) {
			c.close(&b.cut)
		}
	}
	if len(c.open) > 0 && b.lastLeaf()-c.open[0].leaf() > maxApart {
		c.close(&b.cut)
	}
	c.keep(b)
}

// endsBefore reports whether the chunk in the making ends before a page.
func (c *cutter) endsBefore(p *page) bool {
	n := len(c.open)
	return n > 0 && (p.leaf()-c.open[0].leaf() > maxApart || (n >= gapPages && p.no != c.open[n-1].no+1))
}

// ends reports whether the chunk in the making ends with a page of this hash.
func (c *cutter) ends(h chunkstore.PageHash) bool {
	n, zeroes := len(c.open), bits.TrailingZeros32(binary.LittleEndian.Uint32(h[:]))
	switch {
	case n < minPages:
		return false
	case n < normalPages:
		return zeroes >= seldomBits
	default:
		return zeroes >= soonBits || n >= chunkstore.MaxChunkPages
	}
}

func (c *cutter) close(to *cut) {
	hashes := make([]chunkstore.PageHash, len(c.open))
	for i := range c.open {
		hashes[i] = c.open[i].hash
	}
	to.chunks = append(to.chunks, chunk{pages: c.open, enc: chunkstore.Encoded{ID: c.hasher.Chunk(hashes), Hashes: hashes}})
	c.open = nil
}

// keep copies the pages that wait for the next batch: this one's buffer is used again.
func (c *cutter) keep(b *batch) {
	b.cut.open = -1
	if len(c.open) == 0 {
		return
	}
	b.cut.open = c.open[0].leaf()
	kept := make([]byte, 0, len(c.open)*blockdev.PageSize)
	for i := range c.open {
		kept = append(kept, c.open[i].data...)
		c.open[i].data = kept[i*blockdev.PageSize:]
	}
}

// end makes what is left the last chunk.
func (c *cutter) end(b *batch) {
	b.cut.open = -1
	c.close(&b.cut)
}

// join returns the bytes of pages: those of the first page's buffer when they adjoin there, else a copy.
func join(pages []page) []byte {
	n := len(pages) * blockdev.PageSize
	first := pages[0].data
	adjoin := cap(first) >= n
	for i := 1; adjoin && i < len(pages); i++ {
		adjoin = &first[:n][i*blockdev.PageSize] == &pages[i].data[0]
	}
	if adjoin {
		return first[:n]
	}
	raw := make([]byte, 0, n)
	for i := range pages {
		raw = append(raw, pages[i].data...)
	}
	return raw
}
