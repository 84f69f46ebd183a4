package image

import (
	"context"
	"encoding/binary"
	"iter"

	"livemount/blockdev"
)

// asQcow2 is a qcow2 image that is made while it is read.
type asQcow2 struct {
	disk blockdev.Reader
	lay  *layout
}

// AsQcow2 returns a Reader whose bytes are a qcow2 image, version 3, of the disk r: for `qemu-img check` it
// is clean, and the same disk gives the same bytes. Only clusters of 64 KiB that r calls Data are in it, so
// the whole is read in order and sent on, or any part of it again later. The disk in it is as large as r, in
// whole sectors of 512 bytes, at most 64 TiB. ctx ends the walk over r's extents that the layout needs;
// some 20 bytes for each 512 MiB are kept of it. Close closes r.
//
// r must be sealed: when its extents are not what they were, reads are Corrupt.
func AsQcow2(ctx context.Context, r blockdev.Reader) (blockdev.Reader, error) {
	lay, err := newLayout(ctx, r)
	if err != nil {
		return nil, err
	}
	return &asQcow2{disk: r, lay: lay}, nil
}

// Size implements blockdev.Reader: the bytes of the image, not of the disk.
func (a *asQcow2) Size() int64 { return a.lay.clusters << outBits }

// Extents implements blockdev.Reader: an image made so has nothing but tables and data.
func (a *asQcow2) Extents(_ context.Context, off, n int64) iter.Seq2[blockdev.Extent, error] {
	if err := blockdev.CheckRange(a.Size(), off, n); err != nil {
		return blockdev.Fail(err)
	}
	return blockdev.One(off, n, blockdev.Data)
}

// Close implements blockdev.Reader.
func (a *asQcow2) Close() error { return a.disk.Close() }

// ReadAt implements blockdev.ReaderAt.
func (a *asQcow2) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := blockdev.CheckRange(a.Size(), off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		n, err := a.readSome(ctx, p, off)
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// readSome fills the start of p: at most the rest of one table, or of neighbouring clusters of data.
func (a *asQcow2) readSome(ctx context.Context, p []byte, off int64) (int, error) {
	c, in := off>>outBits, off&(outCluster-1)
	if c >= a.lay.firstGroup {
		return a.readGroup(ctx, p, c, in)
	}
	b := make([]byte, outCluster)
	switch {
	case c == 0:
		a.lay.header(b)
	case c < a.lay.refTable:
		a.lay.l1(b, (c-1)*outEntries)
	case c < a.lay.refBlocks:
		a.lay.refcountTable(b, (c-a.lay.refTable)*outEntries)
	default:
		a.lay.refcounts(b, (c-a.lay.refBlocks)*refsPerBlock)
	}
	return copy(p, b[in:]), nil
}

// readGroup reads from the L2 table or the data clusters that the table maps.
func (a *asQcow2) readGroup(ctx context.Context, p []byte, c, in int64) (int, error) {
	g := a.lay.groupOf(c)
	m, err := a.lay.groupMap(ctx, a.disk, g)
	if err != nil {
		return 0, err
	}
	rank := int(c - a.lay.start[g] - 1)
	if rank < 0 {
		b := make([]byte, outCluster)
		m.l2(b, a.lay.start[g]+1)
		return copy(p, b[in:]), nil
	}
	first, count := m.neighbours(rank, int((in+int64(len(p))+outCluster-1)>>outBits))
	n := min(int64(len(p)), int64(count)<<outBits-in)
	return int(n), a.readDisk(ctx, p[:n], int64(g)*groupBytes+int64(first)<<outBits+in)
}

// readDisk reads from the disk; behind its end the last cluster is filled with zeroes.
func (a *asQcow2) readDisk(ctx context.Context, p []byte, off int64) error {
	n := max(0, min(int64(len(p)), a.disk.Size()-off))
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return a.disk.ReadAt(ctx, p[:n], off)
}

// header writes the first cluster. Source: QEMU, docs/interop/qcow2, section "Header".
func (y *layout) header(b []byte) {
	be := binary.BigEndian
	copy(b, magic)
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], outBits)
	be.PutUint64(b[24:], uint64(y.diskBytes))
	be.PutUint32(b[36:], uint32(len(y.start)))
	be.PutUint64(b[40:], 1<<outBits)
	be.PutUint64(b[48:], uint64(y.refTable)<<outBits)
	be.PutUint32(b[56:], uint32(y.refBlocks-y.refTable))
	be.PutUint32(b[96:], 4) // reference counts of 2^4 bits
	be.PutUint32(b[100:], headerV3)
}

// l1 writes a cluster of the L1 table, from entry i on.
func (y *layout) l1(b []byte, i int64) {
	for ; len(b) > 0 && i < int64(len(y.start)); i, b = i+1, b[8:] {
		if y.count[i] > 0 {
			binary.BigEndian.PutUint64(b, uint64(y.start[i])<<outBits|flagCopied)
		}
	}
}

// refcountTable writes a cluster of it, from entry i on: the blocks lie in a row.
func (y *layout) refcountTable(b []byte, i int64) {
	for ; len(b) > 0 && y.refBlocks+i < y.firstGroup; i, b = i+1, b[8:] {
		binary.BigEndian.PutUint64(b, uint64(y.refBlocks+i)<<outBits)
	}
}

// refcounts writes a block of them, from the one of cluster c on: each cluster of the file is used once.
func (y *layout) refcounts(b []byte, c int64) {
	for n := min(refsPerBlock, y.clusters-c); n > 0; n, b = n-1, b[2:] {
		binary.BigEndian.PutUint16(b, 1)
	}
}

// groupOf is the group that has the cluster, which is not below firstGroup. A group without data starts where
// the next one does, so of equal starts the last one is that of the data.
func (y *layout) groupOf(c int64) int {
	lo, hi := 0, len(y.start)
	for hi-lo > 1 {
		if mid := int(uint(lo+hi) >> 1); y.start[mid] <= c {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo
}
