package oncrpc

import (
	"context"
	"net/netip"

	"livemount/internal/errs"
	"livemount/nfsd/xdr"
)

// Call is one request and the place for its results. It belongs to the program until Serve returns and is used
// again for another request then: nothing of it, nor of the memory that it points to, may be kept.
type Call struct {
	Client netip.AddrPort // who asks; IPv4 is never mapped into IPv6
	Local  netip.AddrPort // the address that was asked
	UDP    bool

	XID, Prog, Vers, Proc uint32

	Cred Cred
	Args xdr.Decoder // the arguments, all of them until the program reads

	// Out takes the results. There is room before them for the header, so what is in Out.B already stays
	// there: only append, or cut back to a length that it had. Stored results are appended like any.
	Out xdr.Encoder

	program *Program
	server  *Server
	link    link
	request *buffer // what Args and Cred.Machine point into
	reply   *buffer // what Out.B began in; Out.B has left it when it grew by append
	peer    datagramPeer
	own     *shares
}

// link is where a call came from and its reply goes.
type link interface {
	// answer sends what c.Out.B holds and frees c, at once or soon. It may be called by several
	// goroutines.
	answer(c *Call)
	// release frees c without a reply.
	release(c *Call)
}

// Grow makes room for n more bytes of results, in a buffer of a larger class when the present one is too
// small: READ calls it once, appends what comes before the data, reserves the room for the data and reads the
// disk right into that. Large buffers are bounded; Grow waits for one until ctx ends. It is Busy when
// it must not wait because the request itself holds a large one, and Invalid when n is over every class
// (1 MiB + 4 KiB, or RecordBytesMax when that is more). After an error Out is as it was.
//
// A procedure that is served inline must not grow beyond 4 KiB, because it would wait.
func (c *Call) Grow(ctx context.Context, n int) error {
	need := len(c.Out.B) + n
	if need <= cap(c.Out.B) {
		return nil
	}
	class, ok := c.server.buffers.class(need)
	if !ok || n < 0 {
		return errs.New(errs.Invalid, "a reply of %d bytes is over the limit", need)
	}
	held := max(c.request.class, c.reply.class)
	b, err := c.server.buffers.take(ctx, class, c.own, held < class)
	if err != nil {
		return err
	}
	b.b = b.b[:len(c.Out.B)]
	copy(b.b, c.Out.B)
	c.server.buffers.give(c.reply)
	c.reply, c.Out.B = b, b.b
	return nil
}

// newCall takes a call and its buffer for the reply out of the pool. The request's buffer now belongs to it.
func (s *Server) newCall(l link, request *buffer) *Call {
	c, ok := s.calls.Get().(*Call)
	if !ok {
		c = &Call{server: s}
	}
	c.link, c.request, c.reply = l, request, s.buffers.small()
	c.Out.B = c.reply.b[:headerBytes]
	return c
}

// free gives all memory of the call back.
func (s *Server) free(c *Call) {
	s.buffers.give(c.request)
	s.buffers.give(c.reply)
	c.request, c.reply, c.link, c.program, c.own = nil, nil, nil, nil, nil
	c.Out.B, c.Args, c.Cred.Machine = nil, xdr.Decoder{}, nil
	s.calls.Put(c)
}
