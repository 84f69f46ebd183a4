package nbd

import (
	"context"
	"encoding/binary"
	"io"
	"iter"
	"time"

	"livemount/blockdev"
	"livemount/internal/errs"
)

// transmit takes requests until the client goes.
func (c *conn) transmit(ctx context.Context) error {
	var b [requestBytes]byte
	for {
		if _, err := io.ReadFull(c.in, b[:]); err == io.EOF {
			return nil
		} else if err != nil {
			return gone(err)
		}
		r, ok := decodeRequest(b[:])
		if !ok {
			return lies("request with magic %#x", binary.BigEndian.Uint32(b[:]))
		}
		if r.cmd == cmdDisconnect {
			return nil
		}
		c.s.o.Note()
		if err := c.take(ctx, r); err != nil {
			return err
		}
	}
}

// take starts a request. An error ends the connection.
func (c *conn) take(ctx context.Context, r request) error {
	if r.cmd == cmdWrite {
		return c.takeWrite(ctx, r)
	}
	c.slots <- struct{}{} // given back by requests that are bounded in time
	c.running.Go(func() {
		defer func() { <-c.slots }()
		c.handle(ctx, r)
	})
	return nil
}

// check finds what is wrong with a request before anything is done.
func (c *conn) check(r *request) error {
	e := c.export.Load()
	size := e.Disk.Size()
	switch {
	case r.cmd == cmdFlush:
		return nil
	case int64(r.off) < 0 || int64(r.off) > size || int64(r.length) > size-int64(r.off):
		if r.cmd == cmdWrite || r.cmd == cmdWriteZeroes {
			return errs.New(errs.NoSpace, "%d bytes at %d, behind the end %d", r.length, r.off, size)
		}
		return errs.New(errs.Invalid, "%d bytes at %d, behind the end %d", r.length, r.off, size)
	case (r.cmd == cmdWrite || r.cmd == cmdTrim || r.cmd == cmdWriteZeroes) && e.device() == nil:
		return errs.New(errs.Denied, "export %s is read-only", e.Name)
	case r.cmd == cmdRead && r.length > maxRequest:
		return errs.New(errs.Invalid, "a read of %d bytes, more than %d", r.length, maxRequest)
	}
	return nil
}

// handle does a request that has no payload, and answers it.
func (c *conn) handle(ctx context.Context, r request) {
	err := c.check(&r)
	if err == nil {
		switch r.cmd {
		case cmdRead:
			c.read(ctx, r)
			return
		case cmdFlush:
			err = c.flush(ctx)
		case cmdTrim, cmdWriteZeroes:
			err = c.zero(ctx, &r)
		case cmdCache:
			err = c.cache(ctx, &r)
		case cmdBlockStatus:
			err = c.blockStatus(ctx, &r)
			if err == nil {
				return
			}
		default:
			err = errs.New(errs.Invalid, "unknown command %d", r.cmd)
		}
	}
	c.finish(&r, err)
}

// finish answers a request that has no data.
func (c *conn) finish(r *request, err error) {
	if err != nil {
		c.complain(r, err)
	}
	if c.structured && (err != nil || r.cmd == cmdRead || r.cmd == cmdBlockStatus) {
		_ = c.send(failure(r, int64(r.off), err), nil) // the connection is gone then
		return
	}
	_ = c.send(appendSimple(nil, codeOf(err), r.cookie), nil) // likewise
}

// complain logs what is not the client's doing.
func (c *conn) complain(r *request, err error) {
	switch errs.KindOf(err) {
	case errs.Invalid, errs.Denied, errs.NoSpace, errs.Canceled:
		c.s.o.Log.Debug("NBD request refused", "export", c.name(), "command", r.cmd, "offset", r.off, "length", r.length, "err", err)
	default:
		c.s.o.Log.Error("NBD request failed", "export", c.name(), "command", r.cmd, "offset", r.off, "length", r.length, "err", err)
	}
}

// failure is the last chunk of a structured reply, with an error or without.
func failure(r *request, off int64, err error) []byte {
	if err == nil {
		return (&chunk{flags: chunkDone, kind: chunkNone, cookie: r.cookie}).encode(nil)
	}
	text := err.Error()
	text = text[:min(len(text), maxName)]
	h := chunk{flags: chunkDone, kind: chunkError, cookie: r.cookie, length: uint32(6 + len(text))}
	if r.cmd == cmdRead {
		h.kind, h.length = chunkErrorOffset, h.length+8
	}
	b := binary.BigEndian.AppendUint32(h.encode(nil), codeOf(err))
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(text))), text...)
	if r.cmd == cmdRead {
		b = binary.BigEndian.AppendUint64(b, uint64(off))
	}
	return b
}

func (c *conn) flush(ctx context.Context) error {
	if d := c.export.Load().device(); d != nil {
		return d.Sync(ctx)
	}
	return nil
}

// durable is what FUA asks for.
func (c *conn) durable(ctx context.Context, r *request) error {
	if r.flags&reqFUA == 0 {
		return nil
	}
	return c.flush(ctx)
}

func (c *conn) zero(ctx context.Context, r *request) error {
	if r.length > 0 {
		if err := c.export.Load().device().Zero(ctx, int64(r.off), int64(r.length)); err != nil {
			return err
		}
	}
	return c.durable(ctx, r)
}

// cache reads, so that what is read next is at hand.
func (c *conn) cache(ctx context.Context, r *request) error {
	return c.inPieces(ctx, int64(r.off), int64(r.length), func(p []byte, off int64) error { return c.disk().ReadAt(ctx, p, off) })
}

// inPieces calls f with a buffer for each piece of a range.
func (c *conn) inPieces(ctx context.Context, off, n int64, f func(p []byte, off int64) error) error {
	b, back, err := c.s.buffer(ctx, n)
	if err != nil {
		return err
	}
	defer back()
	for n > 0 {
		p := b[:min(n, int64(len(b)))]
		if err := f(p, off); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}

// buffer returns a buffer for n bytes, or for a piece of them.
func (s *Server) buffer(ctx context.Context, n int64) (b []byte, back func(), err error) {
	if n <= smallBytes {
		p := s.smalls.Get().(*[]byte)
		return (*p)[:n], func() { s.smalls.Put(p) }, nil
	}
	select {
	case s.tokens <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	p := s.pieces.Get().(*[]byte)
	return (*p)[:min(n, pieceBytes)], func() { s.pieces.Put(p); <-s.tokens }, nil
}

// takeWrite reads the payload; one that fits a piece is written while the next request is read.
func (c *conn) takeWrite(ctx context.Context, r request) error {
	if r.length > maxRequest {
		return lies("a write of %d bytes, more than %d", r.length, maxRequest)
	}
	if err := c.check(&r); err != nil {
		if err := c.skip(ctx, int64(r.length)); err != nil {
			return err
		}
		c.finish(&r, err)
		return nil
	}
	if r.length > pieceBytes {
		return c.writeLarge(ctx, &r)
	}
	c.slots <- struct{}{} // before the buffer: who has a slot may wait for one
	b, back, err := c.s.buffer(ctx, int64(r.length))
	if err == nil {
		if err = c.payload(b); err != nil {
			back()
		}
	}
	if err != nil {
		<-c.slots
		return err
	}
	c.running.Go(func() {
		defer func() { <-c.slots }()
		err := c.write(ctx, b, int64(r.off))
		back()
		if err == nil {
			err = c.durable(ctx, &r)
		}
		c.finish(&r, err)
	})
	return nil
}

func (c *conn) write(ctx context.Context, b []byte, off int64) error {
	if len(b) == 0 {
		return nil
	}
	return c.export.Load().device().WriteAt(ctx, b, off)
}

// writeLarge writes the payload as it comes, piece by piece. What is left of it after an error is read and dropped.
func (c *conn) writeLarge(ctx context.Context, r *request) error {
	var failed, broken error
	err := c.inPieces(ctx, int64(r.off), int64(r.length), func(p []byte, off int64) error {
		if broken = c.payload(p); broken != nil {
			return broken
		}
		if failed == nil {
			failed = c.write(ctx, p, off)
		}
		return nil
	})
	if broken != nil || err != nil { // not all of the payload was read
		return firstError(broken, err)
	}
	if failed == nil {
		failed = c.durable(ctx, r)
	}
	c.finish(r, failed)
	return nil
}

func firstError(list ...error) error {
	for _, err := range list {
		if err != nil {
			return err
		}
	}
	return nil
}

// skip drops a payload.
func (c *conn) skip(ctx context.Context, n int64) error {
	return c.inPieces(ctx, 0, n, func(p []byte, _ int64) error { return c.payload(p) })
}

// payload fills b with what the client sends behind a request, which it has begun to.
func (c *conn) payload(b []byte) error {
	wait := c.in.Buffered() < len(b)
	if wait {
		if err := c.raw.SetReadDeadline(c.s.o.Clock.Now().Add(c.s.o.StallTimeout)); err != nil {
			return gone(err)
		}
	}
	if _, err := io.ReadFull(c.in, b); err != nil {
		return gone(err)
	}
	if wait {
		return gone(c.raw.SetReadDeadline(time.Time{}))
	}
	return nil
}

// allocationOf is base:allocation of a disk.
func allocationOf(d blockdev.Reader) StatusOf {
	return func(ctx context.Context, off, n int64) iter.Seq2[Status, error] {
		return func(yield func(Status, error) bool) {
			for e, err := range d.Extents(ctx, off, n) {
				st := Status{Len: e.Len}
				switch e.Kind {
				case blockdev.Zero:
					st.Flags = stateZero
				case blockdev.Hole:
					st.Flags = stateZero | stateHole
				}
				if !yield(st, err) || err != nil {
					return
				}
			}
		}
	}
}
