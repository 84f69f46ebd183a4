package oncrpc

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"livemount/internal/errs"
)

// Client calls programs over one TCP connection or UDP socket. Any number of goroutines may call at the same
// time. It sends each request once: over UDP, an answer that is lost is missed until the context ends.
type Client struct {
	raw    net.Conn
	stream bool
	reader sync.WaitGroup
	turn   chan struct{} // holds one token: who has it may write, and use scratch

	scratch []byte

	mu      sync.Mutex // guards what is below
	next    uint32
	waiting map[uint32]*waiter
	err     error // why there is no connection any more
}

// waiter waits for a reply. Those of one xid are a list, the oldest first.
type waiter struct {
	reply chan answer // of length 1: the reader never waits
	next  *waiter
}

type answer struct {
	results []byte
	err     error
}

// ReplyError is an answer that has no results. It is inside of the errors of Call.
type ReplyError struct {
	Status    Status // an accept_stat, or Denied
	Low, High uint32 // of ProgMismatch, and of a server that has no version 2 of ONC RPC
}

func (e *ReplyError) Error() string { return "remote: " + e.Status.String() }

func (e *ReplyError) kind() errs.Kind {
	switch {
	case e.Status.Auth() != 0:
		return errs.Denied
	case e.Status == ProgUnavail:
		return errs.NotFound
	case e.Status == SystemErr:
		return errs.Other
	default:
		return errs.Invalid
	}
}

// Dial connects to a server. The network is "tcp" or "udp".
func Dial(ctx context.Context, network, address string) (*Client, error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, errs.New(errs.Unreachable, "connect to %s over %s: %w", address, network, err)
	}
	return NewClient(raw), nil
}

// NewClient uses a connection, a connected *net.UDPConn or a stream. It is closed by Close.
func NewClient(raw net.Conn) *Client {
	_, datagrams := raw.(*net.UDPConn)
	c := &Client{
		raw: raw, stream: !datagrams, turn: make(chan struct{}, 1), next: rand.Uint32(), waiting: map[uint32]*waiter{},
	}
	c.reader.Go(c.receive)
	return c
}

// Close ends the connection. Calls that wait fail as Canceled.
func (c *Client) Close() error {
	c.end(errs.New(errs.Canceled, "the client is closed"))
	c.reader.Wait()
	return nil
}

// Call calls a procedure and returns its results, which belong to the caller. An answer without results is a
// *ReplyError. A context that ends while the request is on its way out ends the connection; one that ends
// later ends only this call.
func (c *Client) Call(ctx context.Context, prog, vers, proc uint32, cred Cred, args []byte) ([]byte, error) {
	c.mu.Lock()
	c.next++
	xid := c.next
	c.mu.Unlock()
	return c.CallXID(ctx, xid, prog, vers, proc, cred, args)
}

// CallXID is Call with a chosen xid, to send a request again. Two calls of one xid may wait at the same time:
// the first answer is for the older.
func (c *Client) CallXID(ctx context.Context, xid, prog, vers, proc uint32, cred Cred, args []byte) ([]byte, error) {
	w := &waiter{reply: make(chan answer, 1)}
	if err := c.expect(xid, w); err != nil {
		return nil, err
	}
	err := c.send(ctx, xid, prog, vers, proc, &cred, args)
	if err != nil {
		c.forget(xid, w)
		return nil, err
	}
	select {
	case a := <-w.reply:
		return a.results, a.err
	case <-ctx.Done():
		c.forget(xid, w)
		return nil, errs.New(errs.KindOf(ctx.Err()), "wait for a reply: %w", ctx.Err())
	}
}

func (c *Client) expect(xid uint32, w *waiter) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	if first := c.waiting[xid]; first != nil {
		for first.next != nil {
			first = first.next
		}
		first.next = w
		return nil
	}
	c.waiting[xid] = w
	return nil
}

func (c *Client) forget(xid uint32, w *waiter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.waiting[xid]
	if at == w {
		c.setFirst(xid, w.next)
		return
	}
	for at != nil && at.next != w {
		at = at.next
	}
	if at != nil {
		at.next = w.next
	}
}

func (c *Client) setFirst(xid uint32, w *waiter) {
	if w == nil {
		delete(c.waiting, xid)
		return
	}
	c.waiting[xid] = w
}

// send writes a request.
func (c *Client) send(ctx context.Context, xid, prog, vers, proc uint32, cred *Cred, args []byte) error {
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return errs.New(errs.KindOf(ctx.Err()), "wait to send: %w", ctx.Err())
	}
	defer func() { <-c.turn }()
	b := append(c.scratch[:0], 0, 0, 0, 0)
	b = appendCall(b, xid, prog, vers, proc, cred, args)
	c.scratch = b
	binary.BigEndian.PutUint32(b, markLast|uint32(len(b)-markBytes))
	if !c.stream {
		b = b[markBytes:]
	}
	stop := context.AfterFunc(ctx, func() { c.end(errs.New(errs.KindOf(ctx.Err()), "send: %w", ctx.Err())) })
	_, err := c.raw.Write(b)
	stop()
	if err == nil {
		return nil
	}
	return c.end(errs.New(errs.Unreachable, "send: %w", err))
}

// end breaks the connection, once, and fails all who wait. It returns the reason of the first time.
func (c *Client) end(why error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	c.err = why
	c.raw.SetDeadline(time.Unix(1, 0)) // wakes who writes
	c.raw.Close()
	for _, w := range c.waiting {
		for ; w != nil; w = w.next {
			w.reply <- answer{err: why}
		}
	}
	clear(c.waiting)
	return why
}

// deliver gives a reply to who waits for it. A reply for nobody is late, and nothing.
func (c *Client) deliver(xid uint32, a answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.waiting[xid]; w != nil {
		c.setFirst(xid, w.next)
		w.reply <- a
	}
}

// Failed reports whether err is an answer of this status.
func Failed(err error, s Status) bool {
	var r *ReplyError
	return errors.As(err, &r) && r.Status == s
}
