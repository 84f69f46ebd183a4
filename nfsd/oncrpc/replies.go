package oncrpc

import (
	"net"
	"runtime"
	"sync"
)

// replies is what waits to be written to a connection. It needs no bound of its own: each reply holds one of
// the connection's slots until it is written.
//
// There is one writer at most: the goroutine that found none when it had a reply to send. It writes all that
// is queued with one system call, and again until nothing is. Nobody waits for the writer.
type replies struct {
	mu      sync.Mutex // guards what is below
	queue   []*Call
	writing bool

	// What is below belongs to the writer.
	spare  []*Call
	vector [][]byte
	rest   net.Buffers // the part of vector that is not written yet
	broken bool
}

// answer sends a reply of a goroutine that has nothing else to do, so it writes if nobody does.
func (c *conn) answer(call *Call) {
	c.out.mu.Lock()
	c.out.queue = append(c.out.queue, call)
	idle := !c.out.writing
	c.out.writing = true
	c.out.mu.Unlock()
	if idle && len(c.slots) > 1 {
		runtime.Gosched() // others may be about to finish: their replies leave with this one
	}
	for idle && c.writeBatch() {
	}
}

// hold queues a reply of the reader. It leaves with the next flush, or before that with a reply of others.
// Memory that others may wait for is not held back.
func (c *conn) hold(call *Call) {
	keep := call.request.class == small && call.reply.class == small
	c.out.mu.Lock()
	c.out.queue = append(c.out.queue, call)
	c.out.mu.Unlock()
	c.held = true
	if !keep {
		c.flush()
	}
}

// flush writes what the reader has queued. It must be called before the reader waits for anything. The
// reader writes one batch only, which is its own replies; when others have queued theirs meanwhile, they get a
// goroutine, because long replies must not keep the reader from starting the next requests.
func (c *conn) flush() {
	if !c.held {
		return
	}
	c.held = false
	c.out.mu.Lock()
	busy := c.out.writing
	c.out.writing = true
	c.out.mu.Unlock()
	if busy || !c.writeBatch() {
		return
	}
	c.out.mu.Lock()
	more := len(c.out.queue) > 0
	c.out.writing = more
	c.out.mu.Unlock()
	if more {
		c.handlers.Go(func() {
			for c.writeBatch() {
			}
		})
	}
}

// writeBatch writes all that is queued. It is false when nothing was; the caller is not the writer any more
// then.
func (c *conn) writeBatch() bool {
	c.out.mu.Lock()
	batch := c.out.queue
	if len(batch) == 0 {
		c.out.writing = false
		c.out.mu.Unlock()
		return false
	}
	c.out.queue = c.out.spare
	c.out.mu.Unlock()

	c.write(batch)
	for i, call := range batch {
		c.release(call)
		batch[i] = nil
	}
	c.out.spare = batch[:0]
	return true
}

// write sends the replies of a batch. After an error the stream may have ended inside of one: the connection
// is closed, so that the reader sees it, and all that follows goes nowhere.
func (c *conn) write(batch []*Call) {
	if c.out.broken {
		return
	}
	err := c.raw.SetWriteDeadline(c.server.options.Clock.Now().Add(c.server.options.WriteTimeout))
	switch {
	case err != nil:
	case len(batch) == 1:
		_, err = c.raw.Write(batch[0].Out.B)
	default:
		err = c.writeVector(batch)
	}
	if err != nil {
		c.out.broken = true
		c.raw.Close()
		c.server.options.Log.Debug("reply not written", "client", c.client.String(), "error", err)
	}
}

func (c *conn) writeVector(batch []*Call) error {
	v := c.out.vector[:0]
	for _, call := range batch {
		v = append(v, call.Out.B)
	}
	c.out.vector, c.out.rest = v, v
	_, err := c.out.rest.WriteTo(c.raw)
	clear(v)
	return err
}
