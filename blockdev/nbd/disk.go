package nbd

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"livemount/blockdev"
	"livemount/internal/errs"
)

// Client is an export of a server, as a blockdev.Device. When a connection breaks, everything that needs it is an error:
// open it again.
type Client struct {
	uri   URI
	links []*link
	turn  atomic.Uint32
	over  sync.Once
}

// Open opens the export that a URI names. NotFound when the server has none of the name, or lacks one of the contexts.
func Open(ctx context.Context, u URI, o ClientOptions) (*Client, error) {
	o.setDefaults()
	c := &Client{uri: u}
	for len(c.links) < o.Connections {
		l, err := dial(ctx, u, &o)
		if err == nil && len(c.links) > 0 && (l.size != c.links[0].size || l.flags != c.links[0].flags) {
			l.close()
			err = lies("two connections to one export differ")
		}
		if err != nil {
			c.Close()
			return nil, fmt.Errorf("open %s: %w", u, err)
		}
		if c.links = append(c.links, l); l.flags&sendMultiConn == 0 {
			break
		}
	}
	return c, nil
}

// Size implements blockdev.Reader.
func (c *Client) Size() int64 { return c.links[0].size }

// ReadOnly says that the server takes no writes.
func (c *Client) ReadOnly() bool { return c.links[0].flags&sendReadOnly != 0 }

// Close implements blockdev.Reader.
func (c *Client) Close() error {
	c.over.Do(func() {
		for _, l := range c.links {
			l.close()
		}
	})
	return nil
}

// next spreads requests over the connections.
func (c *Client) next() *link { return c.links[int(c.turn.Add(1))%len(c.links)] }

const (
	splitBytes = 256 << 10 // what a larger read or write is split into, to be in flight at once
	maxFlight  = 64        // requests that one read or write has in flight
)

// split calls f with parts of a range, several at once. Each but the last ends at a multiple of splitBytes.
func (c *Client) split(ctx context.Context, off, n int64, f func(ctx context.Context, off, n int64) error) error {
	part := min(splitBytes, int64(c.links[0].max))
	if n <= part {
		return f(ctx, off, n)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxFlight)
	for n > 0 {
		at, step := off, min(n, part-off%part)
		g.Go(func() error { return f(ctx, at, step) })
		off, n = off+step, n-step
	}
	return g.Wait()
}

func (c *Client) failed(what string, off, n int64, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %d bytes at %d of %s: %w", what, n, off, c.uri, err)
}

// ReadAt implements blockdev.Reader.
func (c *Client) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := blockdev.CheckRange(c.Size(), off, int64(len(p))); err != nil || len(p) == 0 {
		return err
	}
	err := c.split(ctx, off, int64(len(p)), func(ctx context.Context, at, n int64) error { return c.readPart(ctx, p[at-off:][:n], at) })
	return c.failed("read", off, int64(len(p)), err)
}

// readPart reads what the server's blocks allow, and copies what is wanted.
func (c *Client) readPart(ctx context.Context, p []byte, off int64) error {
	l := c.next()
	unit := int64(l.min)
	from, to := off&^(unit-1), (off+int64(len(p))+unit-1)&^(unit-1)
	if to = min(to, c.Size()); from == off && to == off+int64(len(p)) {
		return l.do(ctx, &call{request: request{cmd: cmdRead, off: uint64(off), length: uint32(len(p))}, into: p}, nil)
	}
	b := make([]byte, to-from)
	err := l.do(ctx, &call{request: request{cmd: cmdRead, off: uint64(from), length: uint32(len(b))}, into: b}, nil)
	copy(p, b[off-from:])
	return err
}

// aligned is Invalid for a change that is not of whole blocks of the server.
func (c *Client) aligned(off, n int64) error {
	unit := int64(c.links[0].min)
	if off%unit != 0 || n%unit != 0 && off+n != c.Size() {
		return errs.New(errs.Invalid, "%d bytes at %d are not whole blocks of %d", n, off, unit)
	}
	return nil
}

// WriteAt implements blockdev.Device. Invalid when the range is not of whole blocks of the server (mostly 1 byte).
func (c *Client) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := firstError(blockdev.CheckRange(c.Size(), off, int64(len(p))), c.aligned(off, int64(len(p)))); err != nil || len(p) == 0 {
		return err
	}
	err := c.split(ctx, off, int64(len(p)), func(ctx context.Context, at, n int64) error {
		return c.next().do(ctx, &call{request: request{cmd: cmdWrite, off: uint64(at), length: uint32(n)}}, p[at-off:][:n])
	})
	return c.failed("write", off, int64(len(p)), err)
}

// Zero implements blockdev.Device. A server that cannot zero gets zeroes.
func (c *Client) Zero(ctx context.Context, off, n int64) error {
	if err := firstError(blockdev.CheckRange(c.Size(), off, n), c.aligned(off, n)); err != nil || n == 0 {
		return err
	}
	if c.links[0].flags&sendWriteZeroes == 0 {
		return c.split(ctx, off, n, func(ctx context.Context, at, n int64) error { return c.WriteAt(ctx, make([]byte, n), at) })
	}
	const step = 1 << 30
	for n > 0 {
		part := min(n, step)
		err := c.next().do(ctx, &call{request: request{cmd: cmdWriteZeroes, off: uint64(off), length: uint32(part)}}, nil)
		if err != nil {
			return c.failed("zero", off, part, err)
		}
		off, n = off+part, n-part
	}
	return nil
}

// Sync implements blockdev.Device. Several connections to one export share what a flush makes durable (MULTI_CONN).
func (c *Client) Sync(ctx context.Context) error {
	if c.links[0].flags&sendFlush == 0 {
		return errs.New(errs.Invalid, "%s cannot flush: nothing says when writes are on disk", c.uri)
	}
	return c.failed("flush", 0, c.Size(), c.next().do(ctx, &call{request: request{cmd: cmdFlush}}, nil))
}

// Extents implements blockdev.Reader. Without base:allocation all is data.
func (c *Client) Extents(ctx context.Context, off, n int64) iter.Seq2[blockdev.Extent, error] {
	if err := blockdev.CheckRange(c.Size(), off, n); err != nil {
		return blockdev.Fail(err)
	}
	if _, ok := c.links[0].contexts[contextAllocation]; !ok {
		return blockdev.One(off, n, blockdev.Data)
	}
	return func(yield func(blockdev.Extent, error) bool) {
		for st, err := range c.Status(ctx, contextAllocation, off, n) {
			e := blockdev.Extent{Off: off, Len: st.Len}
			switch {
			case st.Flags&stateZero == 0: // a hole of which nothing is said may hold anything
			case st.Flags&stateHole != 0:
				e.Kind = blockdev.Hole
			default:
				e.Kind = blockdev.Zero
			}
			if !yield(e, err) || err != nil {
				return
			}
			off += st.Len
		}
	}
}

// statusBytes is how much one request for block status covers.
const statusBytes = 1 << 30

// Status yields the runs of a range in a meta context that was asked for, cut to the range.
func (c *Client) Status(ctx context.Context, name string, off, n int64) iter.Seq2[Status, error] {
	return func(yield func(Status, error) bool) {
		for n > 0 {
			list, err := c.statusAt(ctx, name, off, min(n, statusBytes))
			if err != nil {
				yield(Status{}, c.failed("ask for "+name+" of", off, n, err))
				return
			}
			for _, st := range list {
				if off, n = off+st.Len, n-st.Len; !yield(st, nil) {
					return
				}
			}
		}
	}
}

// statusAt returns at least one run, and what follows as far as the server tells.
func (c *Client) statusAt(ctx context.Context, name string, off, n int64) ([]Status, error) {
	l := c.next()
	id, ok := l.contexts[name]
	if !ok {
		return nil, errs.New(errs.NotFound, "the server has no such meta context")
	}
	unit := int64(l.min)
	from := off &^ (unit - 1)
	to := min((off+n+unit-1)&^(unit-1), c.Size())
	q := &call{request: request{cmd: cmdBlockStatus, off: uint64(from), length: uint32(to - from)}}
	if err := l.do(ctx, q, nil); err != nil {
		return nil, err
	}
	list := cut(q.runs[id], off-from, n)
	if len(list) == 0 {
		return nil, lies("no status of %d bytes at %d", n, off)
	}
	return list, nil
}

// cut leaves out the first skip bytes of runs, and what is behind n more.
func cut(list []Status, skip, n int64) (out []Status) {
	for _, st := range list {
		drop := min(skip, st.Len)
		skip, st.Len = skip-drop, min(st.Len-drop, n)
		if st.Len > 0 {
			n -= st.Len
			out = append(out, st)
		}
	}
	return out
}
