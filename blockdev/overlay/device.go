package overlay

import (
	"context"
	"iter"

	"livemount/blockdev"
	"livemount/internal/errs"
)

// device is a node seen as a disk.
type device struct {
	l *Log
	n *node
}

// Size implements blockdev.Reader. It changes with SetSize, AppendSize, and, in a node that grows, with writes.
func (d *device) Size() int64 { return d.n.size.Load() }

// Close implements blockdev.Reader.
func (d *device) Close() error { return nil }

// ReadAt implements blockdev.Reader.
func (d *device) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := blockdev.CheckRange(d.Size(), off, int64(len(p))); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	d.l.note()
	return d.l.readAt(ctx, d.n, p, off)
}

// WriteAt implements blockdev.WriterAt. A write of more than 1 MiB is several records.
func (d *device) WriteAt(ctx context.Context, p []byte, off int64) error {
	end := d.Size()
	if d.n.grows {
		end = sizeEnd - 1
	}
	if err := blockdev.CheckRange(end, off, int64(len(p))); err != nil {
		return err
	}
	d.l.note()
	for limit := d.l.payloadLimit(); len(p) > 0; {
		n := min(limit, int64(len(p)))
		if err := d.l.log(ctx, essentials{kindData, d.n.id, off, n}, p[:n], nil); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// note tells who wants to know that somebody reads or writes.
func (l *Log) note() {
	if l.opts.Note != nil {
		l.opts.Note()
	}
}

// Zero implements blockdev.Device. What is zero in the overlay already costs no record.
func (d *device) Zero(ctx context.Context, off, n int64) error {
	if err := blockdev.CheckRange(d.Size(), off, n); err != nil {
		return err
	}
	if n == 0 || d.zeroAlready(off, n) {
		return ctx.Err()
	}
	return d.l.log(ctx, essentials{kindZero, d.n.id, off, n}, nil, nil)
}

func (d *device) zeroAlready(off, n int64) bool {
	if d.l.Err() != nil {
		return false
	}
	d.l.index.RLock()
	defer d.l.index.RUnlock()
	return d.n.isZero(off, off+n) && !d.l.closed
}

// Sync implements blockdev.WriterAt; it syncs all nodes.
func (d *device) Sync(ctx context.Context) error { return d.l.Sync(ctx) }

// Extents implements blockdev.Reader.
func (d *device) Extents(ctx context.Context, off, n int64) iter.Seq2[blockdev.Extent, error] {
	if err := blockdev.CheckRange(d.Size(), off, n); err != nil {
		return blockdev.Fail(err)
	}
	return func(yield func(blockdev.Extent, error) bool) {
		d.n.yieldAll(ctx, off, off+n, d.batch, yield)
	}
}

// extentsBatch is how many extents are taken under the lock at once.
const extentsBatch = 256

func (d *device) batch(off, end int64) (list []extent, stop int64) {
	d.l.index.RLock()
	defer d.l.index.RUnlock()
	return d.n.batch(off, end)
}

// batch returns the extents up to stop, so that no lock is held while they are yielded.
func (n *node) batch(off, end int64) (list []extent, stop int64) {
	n.extents.from(off, func(e extent) bool {
		if e.off < end {
			list = append(list, e.cut(off, end))
		}
		return e.off < end && len(list) < extentsBatch
	})
	if len(list) < extentsBatch {
		return list, end
	}
	return list, list[len(list)-1].end()
}

// yieldAll yields [off, end) in batches.
func (n *node) yieldAll(ctx context.Context, off, end int64, batch func(off, end int64) ([]extent, int64), yield func(blockdev.Extent, error) bool) {
	for off < end {
		list, stop := batch(off, end)
		if !n.yieldBatch(ctx, list, off, stop, yield) {
			return
		}
		off = stop
	}
}

func (n *node) yieldBatch(ctx context.Context, list []extent, off, stop int64, yield func(blockdev.Extent, error) bool) bool {
	if err := ctx.Err(); err != nil {
		yield(blockdev.Extent{}, err)
		return false
	}
	for _, e := range list {
		if !n.yieldBase(ctx, off, e.off, yield) || !yield(e.shown(), nil) {
			return false
		}
		off = e.end()
	}
	return n.yieldBase(ctx, off, stop, yield)
}

// yieldBase yields what the base knows of [off, end), and a hole behind its end.
func (n *node) yieldBase(ctx context.Context, off, end int64, yield func(blockdev.Extent, error) bool) bool {
	if inside := min(end, n.baseSize()); inside > off {
		for e, err := range n.base.Extents(ctx, off, inside-off) {
			if !yield(e, err) || err != nil {
				return false
			}
		}
		off = inside
	}
	return off >= end || yield(blockdev.Extent{Off: off, Len: end - off, Kind: blockdev.Hole}, nil)
}

// SetSize makes a node larger or smaller. What lay behind the smaller size reads as zeroes if the node
// grows again. NotFound when there is no such node.
func (l *Log) SetSize(ctx context.Context, node uint64, size int64) error {
	if size < 0 || size >= sizeEnd {
		return errs.New(errs.Invalid, "overlay node %d: size %d", node, size)
	}
	if _, err := l.Device(node); err != nil {
		return err
	}
	return l.log(ctx, essentials{kindSize, node, size, 0}, nil, nil)
}

// Forget drops a node without a base, and all its bytes. Its devices must not be used any more. The id
// can be added again and is a new node then. NotFound when there is no such node.
func (l *Log) Forget(ctx context.Context, id uint64) error {
	l.index.RLock()
	n := l.nodes[id]
	l.index.RUnlock()
	if n == nil || !n.attached {
		return errs.New(errs.NotFound, "overlay node %d", id)
	}
	if n.base != nil {
		return errs.New(errs.Invalid, "overlay node %d has a base and cannot be forgotten", id)
	}
	return l.log(ctx, essentials{kindForget, id, 0, 0}, nil, func() { l.drop(id) })
}

// DataBytes is how many bytes of a node are data in the log; 0 when there is no such node.
func (l *Log) DataBytes(id uint64) int64 {
	l.index.RLock()
	defer l.index.RUnlock()
	if n := l.nodes[id]; n != nil {
		return n.extents.data
	}
	return 0
}

func (l *Log) drop(id uint64) {
	l.index.Lock()
	defer l.index.Unlock()
	delete(l.nodes, id)
}

// Append logs a payload of the layer above, at most 1 MiB (less in small segments), and runs apply
// before any later record is written. After a crash Options.Meta gets the payload again. apply runs with
// the log's lock on writes held and must not call the log (see Options.Snapshot).
func (l *Log) Append(ctx context.Context, payload []byte, apply func()) error {
	return l.appendMeta(ctx, essentials{}, payload, false, apply)
}

// AppendFreeing is Append of what leads to space being given back: room is asked of Options.AdmitFreeing.
func (l *Log) AppendFreeing(ctx context.Context, payload []byte, apply func()) error {
	return l.appendMeta(ctx, essentials{}, payload, true, apply)
}

// AppendSize is Append that sets the size of a node, as SetSize does, in the same record. NotFound when there is
// no such node.
func (l *Log) AppendSize(ctx context.Context, payload []byte, node uint64, size int64, apply func()) error {
	if size < 0 || size >= sizeEnd {
		return errs.New(errs.Invalid, "overlay node %d: size %d", node, size)
	}
	d, err := l.Device(node)
	if err != nil {
		return err
	}
	return l.appendMeta(ctx, essentials{node: node, off: size}, payload, size < d.Size(), apply)
}

func (l *Log) appendMeta(ctx context.Context, e essentials, payload []byte, freeing bool, apply func()) error {
	if l.opts.Meta == nil || l.opts.Snapshot == nil || l.opts.Restore == nil {
		return errs.New(errs.Invalid, "overlay log %s was opened without a layer above", l.opts.Dir)
	}
	if int64(len(payload)) > l.payloadLimit() {
		return errs.New(errs.Invalid, "payload of %d bytes, more than the %d allowed", len(payload), l.payloadLimit())
	}
	e.kind = kindMeta
	if len(payload) <= mirrorMax {
		e.kind, payload = kindMirror, mirror(payload)
	}
	e.length = int64(len(payload))
	admit := l.opts.Admit
	if freeing {
		admit = l.opts.AdmitFreeing
	}
	return l.logAdmitted(ctx, admit, e, payload, func() {
		l.logMeta = true
		if apply != nil {
			apply()
		}
	})
}
