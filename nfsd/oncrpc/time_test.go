package oncrpc

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener for connections in memory, so that time can be the test's.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	end   chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), end: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.end:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.end) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{} }

func (p *pipes) dial() net.Conn {
	here, there := net.Pipe()
	p.conns <- there
	return here
}

// inTime runs a test in time of its own, with the defaults of the options.
func inTime(t *testing.T, test func(t *testing.T, r *rig, dial func() net.Conn)) {
	synctest.Test(t, func(t *testing.T) {
		r, p := newRig(t, Options{}), newPipes()
		ctx, cancel := context.WithCancel(t.Context())
		var served sync.WaitGroup
		served.Go(func() {
			if err := r.ServeTCP(ctx, p); err != nil {
				t.Error(err)
			}
		})
		test(t, r, p.dial)
		cancel()
		served.Wait()
		r.checkNothingHeld(t)
	})
}

// openFor says how long a connection stays open from now on.
func openFor(c net.Conn) time.Duration {
	start := time.Now()
	io.Copy(io.Discard, c)
	return time.Since(start)
}

func TestConnectionsThatAskNothingEnd(t *testing.T) {
	inTime(t, func(t *testing.T, _ *rig, dial func() net.Conn) {
		if d := openFor(dial()); d != 15*time.Minute {
			t.Errorf("without a request: %s", d)
		}
		c := dial()
		time.Sleep(14 * time.Minute)
		c.Write(record(message(1, procNull)))
		if d := openFor(c); d != 15*time.Minute {
			t.Errorf("after a request: %s", d)
		}
	})
}

func TestConnectionsThatWaitForAReplyStay(t *testing.T) {
	inTime(t, func(t *testing.T, r *rig, dial func() net.Conn) {
		c := dial()
		c.Write(record(message(1, procWait)))
		time.Sleep(50 * time.Minute)
		close(r.gate)
		if _, err := io.ReadFull(c, make([]byte, headerBytes)); err != nil {
			t.Error(err)
		}
		if d := openFor(c); d > 15*time.Minute {
			t.Errorf("open for %s", d)
		}
	})
}

func TestRequestsThatStopHalfWayEndTheConnection(t *testing.T) {
	inTime(t, func(t *testing.T, _ *rig, dial func() net.Conn) {
		m := record(message(1, procEcho, make([]byte, 200000)...))
		for _, n := range []int{1, 3, 4, 5, 40, 4099} {
			c := dial()
			c.Write(m[:n])
			if d := openFor(c); d != 30*time.Second {
				t.Errorf("after %d bytes: %s", n, d)
			}
		}
		for _, n := range []int{5000, 100000} { // each larger buffer is a reason to wait
			c := dial()
			c.Write(m[:n])
			if d := openFor(c); d < 30*time.Second || d > time.Minute {
				t.Errorf("after %d bytes: %s", n, d)
			}
		}
	})
}

// TestDripsEnd sends a byte every 20 seconds: each is in time, the request is not.
func TestDripsEnd(t *testing.T) {
	inTime(t, func(t *testing.T, _ *rig, dial func() net.Conn) {
		c, start := dial(), time.Now()
		for _, b := range record(message(1, procNull)) {
			if _, err := c.Write([]byte{b}); err != nil {
				break
			}
			time.Sleep(20 * time.Second)
		}
		if d := time.Since(start); d > time.Minute {
			t.Errorf("ended after %s", d)
		}
	})
}

func TestClientsThatStopReadingAreCut(t *testing.T) {
	for _, proc := range []uint32{procNull, procEcho} {
		inTime(t, func(t *testing.T, _ *rig, dial func() net.Conn) {
			c, start := dial(), time.Now()
			c.Write(bytes.Repeat(record(message(1, proc)), 10))
			for { // the pipe holds nothing, so that writing fails when the server has cut it
				if _, err := c.Write(record(message(1, proc))); err != nil {
					break
				}
			}
			if d := time.Since(start); d > time.Minute {
				t.Errorf("procedure %d: cut after %s", proc, d)
			}
		})
	}
}
