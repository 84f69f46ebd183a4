package nbd

import (
	"context"
	"encoding/binary"
	"io"
	"sync"
	"time"

	"livemount/internal/errs"
)

// call is a request that waits for its answer. The goroutine that receives owns its fields until done is closed, but for into.
type call struct {
	request
	mu   sync.Mutex          // guards into, and is held while it is filled
	into []byte              // of a read; nil when nobody waits any more
	got  []span              // of into, ascending
	runs map[uint32][]Status // of a block status, by context
	fail error               // an error chunk came
	bad  int                 // how many came
	done chan struct{}
	err  error // why there is no answer
}

type span struct{ from, to int64 }

// what says for people what was asked.
func (c *call) what() string {
	switch c.cmd {
	case cmdRead:
		return "read"
	case cmdWrite:
		return "write"
	case cmdFlush:
		return "flush"
	case cmdBlockStatus:
		return "ask for block status"
	default:
		return "zero"
	}
}

// do sends a request and waits for its end. payload is that of a write.
func (l *link) do(ctx context.Context, c *call, payload []byte) error {
	c.done = make(chan struct{})
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := l.register(c); err != nil {
		return err
	}
	if err := l.sendCall(c, payload); err != nil {
		l.stop(err)
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		// The answer still comes, and is dropped.
		c.mu.Lock()
		c.into = nil
		c.mu.Unlock()
		return ctx.Err()
	}
	if c.err != nil {
		return c.err
	}
	return c.fail
}

func (l *link) register(c *call) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	l.next++
	c.cookie = l.next
	l.calls[c.cookie] = c
	if len(l.calls) == 1 {
		return gone(l.raw.SetReadDeadline(l.o.Clock.Now().Add(l.o.Timeout)))
	}
	return nil
}

func (l *link) sendCall(c *call, payload []byte) error {
	var b [requestBytes]byte
	l.sending.Lock()
	defer l.sending.Unlock()
	if err := l.raw.SetWriteDeadline(l.o.Clock.Now().Add(l.o.Timeout)); err != nil {
		return gone(err)
	}
	if err := l.write(c.encode(b[:0])); err != nil || len(payload) == 0 {
		return err
	}
	return l.write(payload)
}

// stop makes the link useless: its socket is closed, and the receiver ends all calls.
func (l *link) stop(err error) {
	l.mu.Lock()
	if l.err == nil {
		l.err = err
	}
	l.mu.Unlock()
	l.raw.Close()
}

// close says goodbye.
func (l *link) close() {
	var b [requestBytes]byte
	l.sending.Lock()
	if l.raw.SetWriteDeadline(l.o.Clock.Now().Add(time.Second)) == nil {
		_ = l.write((&request{cmd: cmdDisconnect}).encode(b[:0])) // the server sees the end of the stream anyway
	}
	l.sending.Unlock()
	l.stop(errs.New(errs.Invalid, "the NBD client is closed"))
	<-l.stopped
}

// receive reads answers until the link stops.
func (l *link) receive() {
	defer close(l.stopped)
	err := l.receiveAll()
	l.stop(err)
	l.mu.Lock()
	defer l.mu.Unlock()
	for cookie, c := range l.calls {
		delete(l.calls, cookie)
		c.err = l.err
		close(c.done)
	}
}

func (l *link) receiveAll() error {
	for {
		if err := l.receiveOne(); err != nil {
			return err
		}
		if err := l.stillWaiting(); err != nil {
			return err
		}
	}
}

// stillWaiting gives the server time for the next answer, if it owes one.
func (l *link) stillWaiting() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	until := time.Time{}
	if len(l.calls) > 0 {
		until = l.o.Clock.Now().Add(l.o.Timeout)
	}
	return gone(l.raw.SetReadDeadline(until))
}

func (l *link) receiveOne() error {
	var b [chunkBytes]byte
	if _, err := io.ReadFull(l.in, b[:4]); err != nil {
		return gone(err)
	}
	switch magic := binary.BigEndian.Uint32(b[:]); {
	case magic == magicSimple:
		if _, err := io.ReadFull(l.in, b[4:simpleBytes]); err != nil {
			return gone(err)
		}
		return l.simpleReply(binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint64(b[8:]))
	case magic == magicChunk && !l.simple:
		if _, err := io.ReadFull(l.in, b[4:chunkBytes]); err != nil {
			return gone(err)
		}
		return l.chunk(decodeChunk(b[4:]))
	default:
		return lies("an answer that begins with %#x", magic)
	}
}

func (l *link) find(cookie uint64) (*call, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.calls[cookie]
	if c == nil {
		return nil, lies("an answer to a request that was not made")
	}
	return c, nil
}

// end takes the call off and lets its owner go on.
func (l *link) end(c *call) {
	l.mu.Lock()
	delete(l.calls, c.cookie)
	l.mu.Unlock()
	close(c.done)
}

func (l *link) simpleReply(code uint32, cookie uint64) error {
	c, err := l.find(cookie)
	if err != nil {
		return err
	}
	switch {
	case code != 0:
		c.fail = answered(c.what(), code, "")
	case c.cmd == cmdRead && !l.simple, c.cmd == cmdBlockStatus:
		return lies("a simple reply where a structured one is due")
	case c.cmd == cmdRead:
		if err := l.fill(c, 0, int64(c.length)); err != nil {
			return err
		}
	}
	l.end(c)
	return nil
}

// chunk takes a part of a structured reply.
func (l *link) chunk(h chunk) error {
	c, err := l.find(h.cookie)
	if err != nil {
		return err
	}
	switch {
	case h.kind == chunkNone:
		if h.length > 0 || h.flags&chunkDone == 0 {
			err = lies("an empty part of %d bytes", h.length)
		}
	case h.kind == chunkData && c.cmd == cmdRead:
		err = l.data(c, h.length)
	case h.kind == chunkHole && c.cmd == cmdRead:
		err = l.hole(c, h.length)
	case h.kind == chunkBlockStatus && c.cmd == cmdBlockStatus:
		err = l.status(c, h.length)
	case h.kind&(1<<15) != 0:
		err = l.errorChunk(c, h)
	default:
		err = lies("a part of type %d in the answer to command %d", h.kind, c.cmd)
	}
	if err != nil || h.flags&chunkDone == 0 {
		return err
	}
	if c.fail == nil {
		if err := c.whole(); err != nil {
			return err
		}
	}
	l.end(c)
	return nil
}

// whole finds out whether all of the answer has come.
func (c *call) whole() error {
	switch {
	case c.cmd == cmdRead && (len(c.got) != 1 || c.got[0] != span{0, int64(c.length)}):
		return lies("a read of %d bytes was answered in part", c.length)
	case c.cmd == cmdBlockStatus && len(c.runs) == 0:
		return lies("block status without a context")
	}
	return nil
}

// place checks that a part lies in the request, and nothing was there before, and notes it.
func (c *call) place(off uint64, n int64) (from int64, err error) {
	from = int64(off - c.off)
	if off < c.off || n <= 0 || from < 0 || from > int64(c.length) || n > int64(c.length)-from {
		return 0, lies("%d bytes at %d in the answer to a read of %d at %d", n, off, c.length, c.off)
	}
	return from, c.note(span{from, from + n})
}

// note adds a span to those that have come. There are few: neighbours are joined.
func (c *call) note(s span) error {
	i := 0
	for i < len(c.got) && c.got[i].to <= s.from {
		i++
	}
	if i < len(c.got) && c.got[i].from < s.to {
		return lies("parts of an answer overlap at %d", s.from)
	}
	if i > 0 && c.got[i-1].to == s.from {
		i--
		c.got[i].to = s.to
	} else {
		c.got = append(c.got, span{})
		copy(c.got[i+1:], c.got[i:])
		c.got[i] = s
	}
	if i+1 < len(c.got) && c.got[i].to == c.got[i+1].from {
		c.got[i].to = c.got[i+1].to
		c.got = append(c.got[:i+1], c.got[i+2:]...)
	}
	if len(c.got) > maxSpans {
		return lies("more than %d parts out of order", maxSpans)
	}
	return nil
}

const maxSpans = 1024

func (l *link) data(c *call, n uint32) error {
	if n <= 8 {
		return lies("a part of %d bytes with data", n)
	}
	var b [8]byte
	if _, err := io.ReadFull(l.in, b[:]); err != nil {
		return gone(err)
	}
	from, err := c.place(binary.BigEndian.Uint64(b[:]), int64(n-8))
	if err != nil {
		return err
	}
	return l.fill(c, from, int64(n-8))
}

// fill takes n bytes of a read, or drops them when nobody waits for them any more.
func (l *link) fill(c *call, from, n int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.into == nil {
		_, err := io.CopyN(io.Discard, l.in, n)
		return gone(err)
	}
	_, err := io.ReadFull(l.in, c.into[from:][:n])
	return gone(err)
}

func (l *link) hole(c *call, n uint32) error {
	var b [12]byte
	if n != uint32(len(b)) {
		return lies("a hole of %d bytes", n)
	}
	if _, err := io.ReadFull(l.in, b[:]); err != nil {
		return gone(err)
	}
	size := int64(binary.BigEndian.Uint32(b[8:]))
	from, err := c.place(binary.BigEndian.Uint64(b[:]), size)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil && c.into != nil {
		clear(c.into[from:][:size])
	}
	return err
}

// maxStatusBytes bounds an answer to block status in one context.
const maxStatusBytes = 8 << 20

// status takes the runs of one context.
func (l *link) status(c *call, n uint32) error {
	if n < 12 || n > maxStatusBytes || (n-4)%8 != 0 {
		return lies("block status of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(l.in, b); err != nil {
		return gone(err)
	}
	id := binary.BigEndian.Uint32(b)
	if !l.ids[id] || c.runs[id] != nil {
		return lies("block status of context %d, which was not asked for, or twice", id)
	}
	list, err := c.statusRuns(b[4:])
	if c.runs == nil {
		c.runs = map[uint32][]Status{}
	}
	c.runs[id] = list
	return err
}

// statusRuns reads runs. The last may reach behind what was asked; it is cut.
func (c *call) statusRuns(b []byte) ([]Status, error) {
	left := int64(c.length)
	list := make([]Status, 0, len(b)/8)
	for ; len(b) > 0; b = b[8:] {
		st := Status{int64(binary.BigEndian.Uint32(b)), binary.BigEndian.Uint32(b[4:])}
		if st.Len == 0 || left == 0 {
			return nil, lies("block status of %d bytes has a run of %d with %d left", c.length, st.Len, left)
		}
		st.Len = min(st.Len, left)
		left -= st.Len
		list = append(list, st)
	}
	return list, nil
}

func (l *link) errorChunk(c *call, h chunk) error {
	if h.length < 6 || h.length > maxOptionBytes {
		return lies("an error of %d bytes", h.length)
	}
	b := make([]byte, h.length)
	if _, err := io.ReadFull(l.in, b); err != nil {
		return gone(err)
	}
	code, n := binary.BigEndian.Uint32(b), int(binary.BigEndian.Uint16(b[4:]))
	if code == 0 || n > len(b)-6 {
		return lies("an error with the code %d and a text of %d bytes", code, n)
	}
	if c.fail == nil {
		c.fail = answered(c.what(), code, string(b[6:][:n]))
	}
	if c.bad++; c.bad > maxSpans {
		return lies("more than %d errors in one answer", maxSpans)
	}
	return nil
}
