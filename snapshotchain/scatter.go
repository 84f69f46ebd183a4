package snapshotchain

import (
	"context"

	"livemount/blockdev"
	"livemount/snapshotchain/chunkstore"
)

// scatterLimit is in how many chunks the 8 MiB of a leaf may lie before they are gathered. A first backup cuts
// about 120; each increment adds at least one.
const scatterLimit = 400

// Scattered reports whether a leaf would lie in too many chunks when runs are set, and what it would show.
func (k *DraftDisk) Scattered(ctx context.Context, n uint32, runs []Run) (view []Run, scattered bool, err error) {
	p, limit := k.Parent(), k.d.s.opts.ScatterLimit
	if p == nil {
		return nil, false, nil
	}
	before, err := p.leaf(ctx, n)
	if err != nil || len(before)+len(runs) <= limit {
		return nil, false, err
	}
	view = flatten([]*leaf{{runs: runs}, {runs: before}})
	chunks := map[chunkstore.Ptr]struct{}{}
	for _, r := range view {
		chunks[r.Ptr] = struct{}{}
	}
	return view, len(chunks) > limit, nil
}

// ReadRun fills buf with the pages of a run and returns their hashes.
func (k *DraftDisk) ReadRun(ctx context.Context, r Run, buf []byte) ([]chunkstore.PageHash, error) {
	if err := k.d.s.readRun(ctx, buf, r, int64(r.Page)*blockdev.PageSize, false); err != nil {
		return nil, err
	}
	return k.d.s.runHashes(ctx, r, int(r.Page), r.end())
}
