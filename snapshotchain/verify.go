package snapshotchain

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"livemount/internal/errs"
	"livemount/internal/gate"
	"livemount/snapshotchain/chunkstore"
)

// Proof is what Verify found out about a disk of a point.
type Proof struct {
	DataBytes int64   // pages that are not zero
	Chunks    int64   // that were read; one that comes in several leaves counts in each
	Bad       []Touch // ranges that cannot be read
}

// Verify reads all of a disk of a point from the disks, past the caches: each leaf of the map, each chunk with all its
// checksums and hashes; and compares the root hash that this makes with the one that was recorded when the point was
// sealed. Corrupt when that differs though every chunk is good; bad chunks are listed. count is told of bytes that
// were looked at, and may be nil. It uses all cores.
func (s *Store) Verify(ctx context.Context, d *PointDisk, count *atomic.Int64) (*Proof, error) {
	disk, err := s.OpenDisk(ctx, d)
	if err != nil {
		return nil, err
	}
	defer disk.Close()
	if count == nil {
		count = &atomic.Int64{}
	}
	p := &prover{disk: disk, name: d.Name, count: count}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for n := int64(0); n*LeafBytes < disk.Size(); n++ {
		if n%dirLeaves == 0 {
			if empty, err := disk.emptyDir(uint32(n / dirLeaves)); err == nil && empty {
				n += dirLeaves - 1
				continue
			}
		}
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error { return p.leaf(ctx, uint32(n)) })
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("verify disk %s: %w", d.Name, err)
	}
	if len(p.proof.Bad) == 0 && (p.sum != disk.seal.Sum || p.sum != d.Root || p.data != disk.seal.Data) {
		return &p.proof, errs.New(errs.Corrupt, "disk %s: root hash %s and %d pages of data, recorded are %s and %d", d.Name, p.sum, p.data, d.Root, disk.seal.Data)
	}
	p.proof.DataBytes = p.data * chunkstore.PageSize
	return &p.proof, nil
}

// prover adds up what the leaves of a disk hold.
type prover struct {
	disk  *Disk
	name  string
	count *atomic.Int64

	mu    sync.Mutex // guards what is below
	proof Proof
	sum   chunkstore.Sum
	data  int64
}

func (p *prover) leaf(ctx context.Context, n uint32) error {
	leave, err := p.disk.s.opts.Gate.Enter(ctx, gate.Scrub)
	if err != nil {
		return err
	}
	defer leave()
	l := &leafProof{p: p, n: n, h: p.disk.s.Hasher()}
	runs, err := p.disk.leaf(ctx, n)
	switch {
	case errs.Is(err, errs.Corrupt): // the map itself
		l.bad(0, LeafPages)
	case err != nil:
		return err
	}
	for _, r := range runs {
		if err := l.run(ctx, r); err != nil {
			return err
		}
	}
	p.count.Add(min(LeafBytes, p.disk.Size()-int64(n)*LeafBytes))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sum, p.data = p.sum.Add(l.sum), p.data+l.data
	p.proof.Chunks += l.chunks
	p.proof.Bad = append(p.proof.Bad, l.list...)
	return nil
}

// leafProof adds up a leaf.
type leafProof struct {
	p      *prover
	n      uint32
	h      *chunkstore.Hasher
	sum    chunkstore.Sum
	data   int64
	chunks int64
	list   []Touch

	last   chunkstore.Ptr // the chunk that was read last
	hashes []chunkstore.PageHash
	err    error
}

func (l *leafProof) run(ctx context.Context, r Run) error {
	if r.Ptr != l.last {
		l.last = r.Ptr
		l.hashes, l.err = l.p.disk.s.chunks.ProveChunk(ctx, l.h, r.Ptr)
		l.chunks++
	}
	if l.err == nil && int(r.First)+int(r.Len) > len(l.hashes) {
		l.err = errs.New(errs.Corrupt, "chunk %s is too short for its map", r.Ptr)
	}
	if errs.Is(l.err, errs.Corrupt) {
		l.bad(int64(r.Page), int64(r.Len))
		return nil
	}
	if l.err != nil {
		return l.err
	}
	for i := range int64(r.Len) {
		l.sum = l.sum.Add(l.h.Term(int64(l.n)*LeafPages+int64(r.Page)+i, l.hashes[int64(r.First)+i]))
	}
	l.data += int64(r.Len)
	return nil
}

func (l *leafProof) bad(page, pages int64) {
	off := int64(l.n)*LeafBytes + page*chunkstore.PageSize
	l.list = append(l.list, Touch{Disk: l.p.name, Offset: off, Length: min(l.p.disk.Size()-off, pages*chunkstore.PageSize)})
}
