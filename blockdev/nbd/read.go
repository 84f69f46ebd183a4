package nbd

import (
	"context"
	"encoding/binary"

	"livemount/blockdev"
	"livemount/internal/errs"
)

// read answers a read. Reads of this length and more tell what is zero instead of sending it.
const sparseBytes = 64 << 10

func (c *conn) read(ctx context.Context, r request) {
	var err error
	switch {
	case r.length == 0:
		c.finish(&r, nil)
		return
	case !c.structured:
		err = c.readSimple(ctx, &r)
	case r.flags&reqDF != 0 && r.length > pieceBytes:
		err = errs.New(errs.Invalid, "a read of %d bytes in one part, more than %d", r.length, pieceBytes)
	default:
		err = c.readStructured(ctx, &r)
	}
	if err != nil {
		c.finish(&r, err)
	}
}

// readSimple sends the bytes behind their header. An error after the header can only end the connection.
func (c *conn) readSimple(ctx context.Context, r *request) error {
	if int64(r.length) <= pieceBytes {
		return c.inPieces(ctx, int64(r.off), int64(r.length), func(p []byte, off int64) error {
			if err := c.disk().ReadAt(ctx, p, off); err != nil {
				return err
			}
			_ = c.send(appendSimple(nil, 0, r.cookie), p) // the connection is gone then
			return nil
		})
	}
	release, err := c.s.tokensFor(ctx, int64(r.length))
	if err != nil {
		return err
	}
	defer release()
	b := make([]byte, r.length)
	if err := c.disk().ReadAt(ctx, b, int64(r.off)); err != nil {
		return err
	}
	_ = c.send(appendSimple(nil, 0, r.cookie), b) // likewise
	return nil
}

// readStructured sends pieces of data, and holes. The last one says that it is.
func (c *conn) readStructured(ctx context.Context, r *request) error {
	end := int64(r.off) + int64(r.length)
	if r.flags&reqDF != 0 || r.length < sparseBytes {
		return c.sendData(ctx, r, int64(r.off), end, end)
	}
	at := int64(r.off) // data from here on is not sent yet
	for e, err := range c.disk().Extents(ctx, int64(r.off), int64(r.length)) {
		if err != nil {
			return err
		}
		if e.Kind == blockdev.Data || e.Len < sparseBytes/4 {
			continue
		}
		if err := c.sendData(ctx, r, at, e.Off, end); err != nil {
			return err
		}
		if c.sendHole(r, e.Off, e.Len, end) != nil {
			return nil // the client is gone
		}
		at = e.End()
	}
	return c.sendData(ctx, r, at, end, end)
}

func doneAt(at, end int64) uint16 {
	if at == end {
		return chunkDone
	}
	return 0
}

// sendData sends [from, to) of a request that ends at end.
func (c *conn) sendData(ctx context.Context, r *request, from, to, end int64) error {
	if from == to {
		return nil
	}
	return c.inPieces(ctx, from, to-from, func(p []byte, off int64) error {
		if err := c.disk().ReadAt(ctx, p, off); err != nil {
			return err
		}
		h := chunk{flags: doneAt(off+int64(len(p)), end), kind: chunkData, cookie: r.cookie, length: uint32(8 + len(p))}
		_ = c.send(binary.BigEndian.AppendUint64(h.encode(nil), uint64(off)), p) // the connection is gone then
		return nil
	})
}

func (c *conn) sendHole(r *request, off, n, end int64) error {
	h := chunk{flags: doneAt(off+n, end), kind: chunkHole, cookie: r.cookie, length: 12}
	b := binary.BigEndian.AppendUint64(h.encode(nil), uint64(off))
	return c.send(binary.BigEndian.AppendUint32(b, uint32(n)), nil)
}

// tokensFor takes as many tokens as n bytes need, one after the other.
func (s *Server) tokensFor(ctx context.Context, n int64) (release func(), err error) {
	taken := 0
	release = func() {
		for range taken {
			<-s.tokens
		}
	}
	s.many.Lock() // or two could wait for each other's
	defer s.many.Unlock()
	for want := min(int((n+pieceBytes-1)/pieceBytes), cap(s.tokens)); taken < want; taken++ {
		select {
		case s.tokens <- struct{}{}:
		case <-ctx.Done():
			release()
			return nil, ctx.Err()
		}
	}
	return release, nil
}

// maxRuns bounds the runs of one answer to block status in one context.
const maxRuns = 4096

// blockStatus answers with one chunk for each context that was chosen.
func (c *conn) blockStatus(ctx context.Context, r *request) error {
	switch {
	case !c.structured || len(c.contexts) == 0 || c.contextsOf != c.export.Load().Name:
		return errs.New(errs.Invalid, "no meta context was chosen")
	case r.length == 0:
		return errs.New(errs.Invalid, "the status of no bytes")
	}
	most := maxRuns
	if r.flags&reqOne != 0 {
		most = 1
	}
	var list [][]byte
	for i := range c.contexts {
		b, err := runs(ctx, &c.contexts[i], int64(r.off), int64(r.length), most)
		if err != nil {
			return err
		}
		list = append(list, b)
	}
	for i, b := range list {
		h := chunk{kind: chunkBlockStatus, cookie: r.cookie, length: uint32(len(b))}
		if i == len(list)-1 {
			h.flags = chunkDone
		}
		if c.send(h.encode(nil), b) != nil {
			return nil // the client is gone
		}
	}
	return nil
}

// runs encodes the runs at the beginning of a range, those that adjoin with the same flags as one.
func runs(ctx context.Context, m *metaContext, off, n int64, most int) ([]byte, error) {
	be := binary.BigEndian
	b := be.AppendUint32(nil, m.id)
	var last Status
	count := 0
	flush := func() {
		if last.Len > 0 {
			b = be.AppendUint32(be.AppendUint32(b, uint32(last.Len)), last.Flags)
			count++
		}
	}
	for st, err := range m.of(ctx, off, n) {
		if err != nil {
			return nil, err
		}
		if st.Flags == last.Flags && last.Len > 0 {
			last.Len += st.Len
			continue
		}
		if flush(); count == most {
			last.Len = 0
			break
		}
		last = st
	}
	flush()
	if count == 0 {
		return nil, errs.New(errs.Other, "no status of %d bytes at %d in %s", n, off, m.name)
	}
	return b, nil
}
