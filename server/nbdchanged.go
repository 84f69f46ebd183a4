package server

import (
	"context"
	"encoding/hex"
	"iter"
	"strings"
	"sync"
	"time"

	"livemount/blockdev"
	"livemount/blockdev/nbd"
	"livemount/blockdev/overlay"
	"livemount/internal/errs"
	"livemount/snapshotchain"
)

// changedSince begins the meta contexts that say in which ranges a disk differs from a point: flag 1 is changed. What follows is
// the id of the point, or a TIME as in VM@TIME.
const changedSinceContext = "livemount:changed-since:"

// earlier opens disks of points that others are compared with, until it is closed.
type earlier struct {
	s    *Server
	mu   sync.Mutex // guards open
	open []*snapshotchain.Disk
}

func (e *earlier) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, d := range e.open {
		if err := d.Close(); err != nil {
			e.s.log.Warn("disk that an NBD export was compared with was not closed", "err", err)
		}
	}
	e.open = nil
}

// disk finds the disk that a context names.
func (e *earlier) disk(ctx context.Context, vm, disk, name string) (*snapshotchain.Disk, error) {
	when, ok := strings.CutPrefix(name, changedSinceContext)
	if !ok {
		return nil, errs.New(errs.NotFound, "no meta context %q", name)
	}
	if b, err := hex.DecodeString(when); err == nil && len(b) == 8 {
		when = "id:" + when
	}
	_, p, err := e.s.store.Resolve(ctx, vm+"@"+when, e.s.clock.Now(), time.Local)
	if err != nil {
		return nil, err
	}
	d := p.Disk(disk)
	if d == nil {
		return nil, errs.New(errs.NotFound, "%s@%s has no disk %q", vm, when, disk)
	}
	opened, err := e.s.store.OpenDisk(ctx, d)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.open = append(e.open, opened)
	return opened, nil
}

// changedOf says in which ranges a disk of a point differs from an earlier one.
func changedOf(before, now *snapshotchain.Disk) nbd.StatusOf {
	return func(ctx context.Context, off, n int64) iter.Seq2[nbd.Status, error] {
		return changedRuns(off, n, snapshotchain.DiffFrom(ctx, before, now, off))
	}
}

// changedOfMount says the same of a disk of a mount: all that was written there counts.
func changedOfMount(log *overlay.Log, node uint64, before, base *snapshotchain.Disk) nbd.StatusOf {
	return func(ctx context.Context, off, n int64) iter.Seq2[nbd.Status, error] {
		return func(yield func(nbd.Status, error) bool) {
			frozen, err := log.Freeze(ctx)
			if err != nil {
				yield(nbd.Status{}, err)
				return
			}
			defer frozen.Close()
			written, err := frozen.Changed(node, overlay.Position{})
			if err != nil {
				yield(nbd.Status{}, err)
				return
			}
			for st, err := range changedRuns(off, n, snapshotchain.DiffFrom(ctx, before, base, off), always(written)) {
				if !yield(st, err) {
					return
				}
			}
		}
	}
}

func always(seq iter.Seq[blockdev.Extent]) iter.Seq2[blockdev.Extent, error] {
	return func(yield func(blockdev.Extent, error) bool) {
		for e := range seq {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// source is one of the sequences of what changed.
type changedSource struct {
	next func() (blockdev.Extent, error, bool)
	stop func()
	cur  blockdev.Extent // the first that ends behind where we are
	over bool
}

// skip goes to the first extent that ends behind off.
func (c *changedSource) skip(off int64) error {
	for !c.over && c.cur.End() <= off {
		e, err, ok := c.next()
		if err != nil {
			return err
		}
		c.cur, c.over = e, !ok
	}
	return nil
}

// changedRuns covers [off, off+n) with runs of what is in any of the sequences and what is in none. Each is in order.
func changedRuns(off, n int64, sequences ...iter.Seq2[blockdev.Extent, error]) iter.Seq2[nbd.Status, error] {
	return func(yield func(nbd.Status, error) bool) {
		var list []*changedSource
		for _, seq := range sequences {
			c := &changedSource{}
			c.next, c.stop = iter.Pull2(seq)
			defer c.stop()
			list = append(list, c)
		}
		for end := off + n; off < end; {
			to, flags := end, uint32(0)
			for _, c := range list {
				if err := c.skip(off); err != nil {
					yield(nbd.Status{}, err)
					return
				}
				switch {
				case c.over:
				case c.cur.Off <= off && flags == 0:
					to, flags = min(end, c.cur.End()), 1
				case c.cur.Off <= off:
					to = min(end, max(to, c.cur.End()))
				case flags == 0:
					to = min(to, c.cur.Off)
				}
			}
			if !yield(nbd.Status{Len: to - off, Flags: flags}, nil) {
				return
			}
			off = to
		}
	}
}
