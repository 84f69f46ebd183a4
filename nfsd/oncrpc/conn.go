package oncrpc

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"livemount/internal/errs"
)

// conn is a TCP connection. One goroutine reads it; whoever has finished a reply may write it (replies.go).
type conn struct {
	server        *Server
	raw           net.Conn
	in            *bufio.Reader
	client, local netip.AddrPort
	slots         chan struct{} // a token for each request that is not yet answered
	own           *shares
	handlers      sync.WaitGroup
	work          chan *Call    // to handlers that have nothing to do
	idle          atomic.Int32  // how many these are
	over          chan struct{} // closed when no more calls come
	out           replies
	held          bool // of the reader: it has queued replies that may have no writer yet
}

// serve reads requests until the connection or ctx ends.
func (c *conn) serve(ctx context.Context) error {
	cut := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(cut)
		c.raw.Close()
	})
	err := c.read(ctx)
	close(c.over)
	c.flush()
	if errors.Is(err, io.EOF) {
		c.handlers.Wait() // the client has sent all it wanted, and may wait for the answers
	}
	c.raw.Close()
	c.handlers.Wait()
	if !stop() {
		<-cut
	}
	return err
}

// read serves one request after the other. The error is io.EOF when the client ended the connection between
// two requests.
func (c *conn) read(ctx context.Context) error {
	for {
		if err := c.await(); err != nil {
			return err
		}
		if err := c.acquire(ctx); err != nil {
			return err
		}
		request, err := c.readRecord(ctx)
		if err == nil {
			err = c.dispatch(ctx, request)
		}
		if err != nil {
			<-c.slots
			return err
		}
	}
}

// await returns when the first byte of a request is there.
func (c *conn) await() error {
	if c.in.Buffered() > 0 {
		return nil
	}
	c.flush()
	for {
		if err := c.raw.SetReadDeadline(c.server.options.Clock.Now().Add(c.server.options.IdleTimeout)); err != nil {
			return err
		}
		_, err := c.in.Peek(1)
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) || len(c.slots) == 0 {
			return err
		}
	}
}

// acquire waits until the request may be served.
func (c *conn) acquire(ctx context.Context) error {
	select {
	case c.slots <- struct{}{}:
		return nil
	default:
	}
	c.flush() // what it holds back may be what we wait for
	select {
	case c.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// dispatch takes the request over, but for its slot after an error.
func (c *conn) dispatch(ctx context.Context, request *buffer) error {
	call := c.server.newCall(c, request)
	call.Client, call.Local, call.UDP, call.own = c.client, c.local, false, c.own
	status, inline, ok := c.server.begin(call)
	if !ok {
		c.server.free(call)
		return errs.New(errs.Invalid, "a message is no call")
	}
	if !inline {
		c.handOver(ctx, call)
		return nil
	}
	if !c.server.finish(ctx, call, status) {
		c.release(call)
		return nil
	}
	c.hold(call)
	return nil
}

// serve answers a call that is not served inline.
func (c *Call) serve(ctx context.Context) {
	if c.server.finish(ctx, c, Success) {
		c.link.answer(c)
		return
	}
	c.link.release(c)
}

// idleMax is how many handlers of a connection wait for the next call. Their stacks have grown to what a call needs.
const idleMax = 32

// handOver lets a handler serve the call, one that waits or a new one.
func (c *conn) handOver(ctx context.Context, call *Call) {
	select {
	case c.work <- call:
	default:
		c.handlers.Go(func() { c.handle(ctx, call) })
	}
}

// handle serves a call, and those that are handed over then.
func (c *conn) handle(ctx context.Context, call *Call) {
	for {
		call.serve(ctx)
		if c.idle.Add(1) > idleMax {
			c.idle.Add(-1)
			return
		}
		select {
		case call = <-c.work:
			c.idle.Add(-1)
		case <-c.over:
			return
		}
	}
}

// release frees a call that is answered, or never will be.
func (c *conn) release(call *Call) {
	c.server.free(call)
	<-c.slots
}
