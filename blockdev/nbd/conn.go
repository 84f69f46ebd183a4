package nbd

import (
	"bufio"
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"livemount/blockdev"
	"livemount/internal/errs"
)

const (
	readerBytes = 64 << 10
	writerBytes = 32 << 10
	pieceBytes  = 1 << 20  // of a request that are moved at once
	smallBytes  = 64 << 10 // of one that needs no token
)

// conn is a connection of a client.
type conn struct {
	s    *Server
	raw  net.Conn // TCP or unix; below TLS
	in   *bufio.Reader
	over chan struct{} // closed when it has ended

	export     atomic.Pointer[Export] // that is open; kept by the handshake, then for good
	contexts   []metaContext          // that the client chose
	contextsOf string                 // of which export
	structured bool
	noZeroes   bool
	secure     bool

	slots   chan struct{}  // of requests in flight
	running sync.WaitGroup // requests in flight

	waiting atomic.Int32 // who writes, or waits to
	mu      sync.Mutex   // guards the fields below
	w       net.Conn     // raw, or TLS above it
	out     *bufio.Writer
	broken  error
}

// metaContext is one that the client chose.
type metaContext struct {
	id   uint32
	name string
	of   StatusOf
}

func newConn(s *Server, raw net.Conn) *conn {
	c := &conn{s: s, raw: raw, over: make(chan struct{}), slots: make(chan struct{}, s.o.MaxInFlight)}
	c.use(raw)
	return c
}

// use makes w what is read and written.
func (c *conn) use(w net.Conn) {
	c.w, c.in, c.out = w, bufio.NewReaderSize(w, readerBytes), bufio.NewWriterSize(w, writerBytes)
}

func (c *conn) name() string {
	if e := c.export.Load(); e != nil {
		return e.Name
	}
	return ""
}

// put buffers a message, or writes a large one at once, without a copy. The caller holds mu.
func (c *conn) put(head, body []byte) error {
	if len(body) >= writerBytes/2 && !c.secure {
		if err := c.out.Flush(); err != nil {
			return err
		}
		_, err := (&net.Buffers{head, body}).WriteTo(c.w)
		return err
	}
	if _, err := c.out.Write(head); err != nil {
		return err
	}
	_, err := c.out.Write(body)
	return err
}

// interrupt ends all reads and writes, now and later.
func (c *conn) interrupt() { c.raw.Close() }

func (c *conn) close() {
	c.raw.Close()
	if e := c.export.Swap(nil); e != nil && e.Release != nil {
		e.Release()
	}
}

func (c *conn) serve(ctx context.Context) error {
	if err := c.raw.SetDeadline(c.s.o.Clock.Now().Add(c.s.o.HandshakeTimeout)); err != nil {
		return err
	}
	if err := c.handshake(ctx); err != nil {
		return err
	}
	if c.export.Load() == nil { // the client only looked
		return nil
	}
	if err := c.raw.SetDeadline(time.Time{}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer c.running.Wait()
	defer cancel()
	return c.transmit(ctx)
}

// disk is what the client opened.
func (c *conn) disk() blockdev.Reader { return c.export.Load().Disk }

// send writes a message, of a head and a body that may be nil. What others are about to write is flushed with it.
func (c *conn) send(head, body []byte) error {
	c.waiting.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		c.waiting.Add(-1)
		return c.broken
	}
	err := c.raw.SetWriteDeadline(c.s.o.Clock.Now().Add(c.s.o.StallTimeout))
	if err == nil {
		err = c.put(head, body)
	}
	if c.waiting.Add(-1) == 0 && err == nil {
		err = c.out.Flush()
	}
	if err != nil {
		c.broken = errs.New(errs.Unreachable, "write to NBD client: %w", err)
		c.raw.Close()
	}
	return c.broken
}
