package ingest

import (
	"context"
	"iter"

	"livemount/blockdev"
	"livemount/snapshotchain"
)

// span is a range of pages of one leaf to look at. zero says that the source holds zeroes there, and
// that the parent does not.
type span struct {
	page, n int64
	zero    bool
}

func (s span) leaf() int64 { return s.page / snapshotchain.LeafPages }

func pagesOf(bytes int64) int64 { return (bytes + blockdev.PageSize - 1) / blockdev.PageSize }

// plan yields what must be looked at, in order. Holes of the source are only looked at where the parent
// has data.
func (r *run) plan(ctx context.Context) iter.Seq2[span, error] {
	return func(yield func(span, error) bool) {
		p := &planner{r: r, ctx: ctx, yield: yield}
		for _, rg := range r.ranges() {
			if !p.source(rg.Offset, rg.Offset+rg.Length) {
				return
			}
		}
		// What a smaller disk lost must not come back when it grows again.
		p.parentOnly(pagesOf(r.size), pagesOf(r.parentSize()))
	}
}

// ranges are the parts of the source that may differ from the parent.
func (r *run) ranges() []snapshotchain.ByteRange {
	if r.mode() != "list" {
		return []snapshotchain.ByteRange{{Offset: 0, Length: r.size}}
	}
	list := r.disk.Changed
	old := r.parentSize() / blockdev.PageSize * blockdev.PageSize
	if r.size < r.parentSize() && r.size%blockdev.PageSize != 0 {
		// The last page was cut short: what lay behind the end is gone. Ranges may name it already; planning
		// leaves out what was looked at.
		last := r.size / blockdev.PageSize * blockdev.PageSize
		return append(append([]snapshotchain.ByteRange(nil), list...), snapshotchain.ByteRange{Offset: last, Length: r.size - last})
	}
	if r.size <= r.parentSize() {
		return list
	}
	// A disk that grew: all behind the old end is new, whatever the list says.
	var out []snapshotchain.ByteRange
	for _, rg := range list {
		if end := min(rg.Offset+rg.Length, old); end > rg.Offset {
			out = append(out, snapshotchain.ByteRange{Offset: rg.Offset, Length: end - rg.Offset})
		}
	}
	return append(out, snapshotchain.ByteRange{Offset: old, Length: r.size - old})
}

type planner struct {
	r     *run
	ctx   context.Context
	yield func(span, error) bool
	next  int64 // first page that was not looked at yet
	done  bool
}

// source plans a range of the source, widened to whole pages. It reports whether to go on.
func (p *planner) source(from, to int64) bool {
	from = from / blockdev.PageSize * blockdev.PageSize
	to = min(p.r.size, pagesOf(to)*blockdev.PageSize)
	for e, err := range p.r.disk.Source.Extents(p.ctx, from, to-from) {
		if err != nil {
			p.yield(span{}, err)
			return false
		}
		// A page that is partly data is data: it is widened downwards by whoever comes first.
		if e.Kind == blockdev.Data {
			p.emit(e.Off/blockdev.PageSize, pagesOf(e.End()), false)
		} else {
			p.parentOnly(pagesOf(e.Off), e.End()/blockdev.PageSize)
			if e.End() == p.r.size { // the last page may be cut short
				p.parentOnly(e.End()/blockdev.PageSize, pagesOf(e.End()))
			}
		}
		if p.done {
			return false
		}
	}
	return true
}

// parentOnly plans pages that the source has as zeroes, where the parent has data.
func (p *planner) parentOnly(from, to int64) {
	if p.r.parent == nil || from >= to {
		return
	}
	end := min(to*blockdev.PageSize, p.r.parent.Size())
	start := from * blockdev.PageSize
	if start >= end {
		return
	}
	for e, err := range p.r.parent.Extents(p.ctx, start, end-start) {
		if err != nil {
			p.done = true
			p.yield(span{}, err)
			return
		}
		if e.Kind == blockdev.Data {
			p.emit(e.Off/blockdev.PageSize, pagesOf(e.End()), true)
		}
		if p.done {
			return
		}
	}
}

// emit yields [from, to) in spans of one leaf, leaving out what was yielded before.
func (p *planner) emit(from, to int64, zero bool) {
	from = max(from, p.next)
	for from < to && !p.done {
		n := min(to-from, snapshotchain.LeafPages-from%snapshotchain.LeafPages, batchPages)
		p.done = !p.yield(span{from, n, zero}, nil)
		from += n
	}
	p.next = max(p.next, to)
}
