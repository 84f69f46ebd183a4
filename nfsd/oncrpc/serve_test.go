package oncrpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"livemount/internal/errs"
	"livemount/nfsd/xdr"
)

// The program of the tests and its procedures.
const (
	testProgram = 400000
	testLow     = 2
	testHigh    = 3

	procNull    = 0
	procEcho    = 1 // returns its arguments
	procWait    = 2 // until the test lets go
	procPanic   = 3
	procRead    = 4 // returns as many bytes as its argument says
	procDrop    = 5
	procGarbage = 6
	procDeny    = 7
	procWho     = 8 // returns the credentials and addresses
	procSystem  = 9
	procOldVers = 10
	procPanicIn = 11 // panics inline, after it wrote results
	procTwice   = 12 // grows to the large class though its request may be there already
)

// rig is a server with the program of the tests.
type rig struct {
	*Server
	gate    chan struct{} // procWait waits for it to be closed
	waiting atomic.Int32
	most    atomic.Int32
}

func newRig(t testing.TB, o Options) *rig {
	t.Helper()
	r := &rig{gate: make(chan struct{})}
	o.Programs = append(o.Programs, Program{
		Number: testProgram, Low: testLow, High: testHigh, Serve: r.serve,
		Inline: func(proc uint32) bool { return proc == procNull || proc == procWho || proc == procPanicIn },
	})
	var err error
	if r.Server, err = NewServer(o); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) serve(ctx context.Context, c *Call) Status {
	switch c.Proc {
	case procNull:
		return Success
	case procEcho:
		return echo(ctx, c)
	case procWait:
		return r.wait(ctx)
	case procPanic, procPanicIn:
		c.Out.Uint64(1)
		panic("as the test wants")
	case procRead:
		return readLike(ctx, c)
	case procWho:
		fmt.Fprintf((*writer)(&c.Out), "%d %s %d %d %v %s %s %v", c.Cred.Flavor, c.Cred.Machine, c.Cred.UID, c.Cred.GID,
			c.Cred.Groups(), c.Client.Addr(), c.Local.Addr(), c.UDP)
		return Success
	case procTwice:
		if err := c.Grow(ctx, 1<<20); err != nil {
			c.Out.String(errs.KindOf(err).String())
			return Success
		}
		return Success
	default:
		return plainStatus(c.Proc)
	}
}

func plainStatus(proc uint32) Status {
	switch proc {
	case procDrop:
		return Drop
	case procGarbage:
		return GarbageArgs
	case procDeny:
		return Denied(AuthTooWeak)
	case procSystem:
		return SystemErr
	case procOldVers:
		return ProgMismatch
	default:
		return ProcUnavail
	}
}

type writer xdr.Encoder

func (w *writer) Write(b []byte) (int, error) {
	w.B = append(w.B, b...)
	return len(b), nil
}

func echo(ctx context.Context, c *Call) Status {
	args := c.Args.Rest()
	if err := c.Grow(ctx, len(args)); err != nil {
		return SystemErr
	}
	c.Out.B = append(c.Out.B, args...)
	return Success
}

func (r *rig) wait(ctx context.Context) Status {
	n := r.waiting.Add(1)
	defer r.waiting.Add(-1)
	for old := r.most.Load(); n > old && !r.most.CompareAndSwap(old, n); old = r.most.Load() {
	}
	select {
	case <-r.gate:
		return Success
	case <-ctx.Done():
		return SystemErr
	}
}

func readLike(ctx context.Context, c *Call) Status {
	n := int(c.Args.Uint32())
	if !c.Args.OK() {
		return GarbageArgs
	}
	if err := c.Grow(ctx, n+200); err != nil {
		return SystemErr
	}
	c.Out.Uint32(uint32(n))
	place := c.Out.Reserve(n)
	for i := range place {
		place[i] = byte(i)
	}
	return Success
}

// tcp serves on a free port of the loopback address until the test ends.
func (r *rig) tcp(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.run(t, func() error { return r.ServeTCP(context.Background(), l) })
	return l.Addr().String()
}

func (r *rig) udp(t testing.TB, network, address string) *net.UDPAddr {
	t.Helper()
	where, err := net.ResolveUDPAddr(network, address)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := net.ListenUDP(network, where)
	if err != nil {
		t.Fatal(err)
	}
	r.run(t, func() error { return r.ServeUDP(context.Background(), raw) })
	return raw.LocalAddr().(*net.UDPAddr)
}

func (r *rig) run(t testing.TB, serve func() error) {
	var served sync.WaitGroup
	served.Go(func() {
		if err := serve(); err != nil && !errs.Is(err, errs.Canceled) {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		r.Close()
		served.Wait()
		r.checkNothingHeld(t)
	})
}

// checkNothingHeld finds a buffer or a connection that was not given back.
func (r *rig) checkNothingHeld(t testing.TB) {
	t.Helper()
	if m, l, n := len(r.buffers.all[medium]), len(r.buffers.all[large]), int64(r.peers.count()); m+l != 0 || n != 0 {
		t.Errorf("%d medium and %d large buffers and %d connections are left", m, l, n)
	}
}

func dial(t testing.TB, network, address string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func connect(t testing.TB, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

const patience = 20 * time.Second

// eventually polls, with a bound.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in %s: not %s", patience, what)
		}
	}
}

// noLeak fails when there are more goroutines or descriptors after the test and its servers than now.
func noLeak(t *testing.T) {
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close() // the runtime has its own descriptors now
	}
	goroutines, files := runtime.NumGoroutine(), descriptors(t)
	t.Cleanup(func() {
		eventually(t, fmt.Sprintf("back to %d goroutines and %d descriptors", goroutines, files), func() bool {
			return runtime.NumGoroutine() <= goroutines && descriptors(t) <= files
		})
	})
}

func descriptors(t *testing.T) int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// message is a call without a record mark.
func message(xid, proc uint32, args ...byte) []byte {
	return appendCall(nil, xid, testProgram, testHigh, proc, &Cred{}, args)
}

// record is a message in one fragment.
func record(m []byte) []byte {
	var e xdr.Encoder
	e.Uint32(markLast | uint32(len(m)))
	return append(e.B, m...)
}

// words are XDR integers.
func words(v ...uint32) []byte {
	var e xdr.Encoder
	for _, w := range v {
		e.Uint32(w)
	}
	return e.B
}

// ended reads until the connection is closed by the server, and fails after a while.
func ended(t testing.TB, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 64<<10)
	for {
		if _, err := c.Read(b); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the connection is still open")
			}
			return
		}
	}
}
