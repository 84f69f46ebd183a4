package oncrpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"livemount/internal/errs"
)

func TestFragmentsOfOneByteMakeARecord(t *testing.T) {
	c := connect(t, newRig(t, Options{}).tcp(t))
	m := message(9, procEcho, 1, 2, 3, 4)
	for i, b := range m {
		mark := uint32(1)
		if i == len(m)-1 {
			mark |= markLast
		}
		if i%7 == 0 {
			c.Write(words(0)) // an empty fragment within
		}
		for _, part := range append(words(mark), b) {
			c.Write([]byte{part}) // one byte a packet, also within the marks
		}
	}
	c.SetDeadline(time.Now().Add(patience))
	got := make([]byte, headerBytes+4)
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got[headerBytes:], []byte{1, 2, 3, 4}) {
		t.Errorf("%x, %v", got, err)
	}
}

func TestLongRecordsInFragmentsAreWhole(t *testing.T) {
	c := connect(t, newRig(t, Options{}).tcp(t))
	for _, n := range []int{1, 4000, 4096, 9000, 69632, 69700, 300000, 1 << 20} {
		args := make([]byte, n)
		for i := range args {
			args[i] = byte(rand.Uint32())
		}
		m := message(9, procEcho, args...)
		go func() {
			for len(m) > 0 {
				part := m[:min(len(m), 1+rand.IntN(1+n/3))]
				m = m[len(part):]
				mark := uint32(len(part))
				if len(m) == 0 {
					mark |= markLast
				}
				c.Write(append(words(mark), part...))
			}
		}()
		c.SetDeadline(time.Now().Add(patience))
		got := make([]byte, headerBytes+n)
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got[headerBytes:], args) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
}

func TestRecordsOverTheLimitEndTheConnection(t *testing.T) {
	noLeak(t)
	r := newRig(t, Options{RecordBytesMax: 10000})
	address := r.tcp(t)
	for name, b := range map[string][]byte{
		"one": words(markLast | 10001), "most": words(markLast | (1<<31 - 1)), "not last": words(10001),
		"sum": append(words(9000), append(make([]byte, 9000), words(markLast|1001)...)...), "all ones": bytes.Repeat([]byte{255}, 100),
	} {
		c := connect(t, address)
		c.Write(b)
		ended(t, c)
		t.Log(name)
	}
	c := dial(t, "tcp", address)
	overhead := len(message(0, 0))
	if _, err := c.Call(t.Context(), testProgram, testLow, procEcho, Cred{}, make([]byte, 10000-overhead)); err != nil {
		t.Errorf("at the limit: %v", err)
	}
	if _, err := c.Call(t.Context(), testProgram, testLow, procEcho, Cred{}, make([]byte, 10001-overhead)); !errs.Is(err, errs.Unreachable) {
		t.Errorf("over the limit: %v", err)
	}
}

// TestEmptyFragmentsAreBounded writes until the server has had enough.
func TestEmptyFragmentsAreBounded(t *testing.T) {
	noLeak(t)
	c := connect(t, newRig(t, Options{}).tcp(t))
	c.Write(bytes.Repeat(words(0), emptyFragmentsMax+1))
	ended(t, c)
}

func TestMemoryGrowsWithWhatArrives(t *testing.T) {
	noLeak(t)
	r := newRig(t, Options{})
	address := r.tcp(t)
	state := func(m, l int) func() bool {
		return func() bool { return len(r.buffers.all[medium]) == m && len(r.buffers.all[large]) == l }
	}
	const n = 20
	var conns []net.Conn
	send := func(b []byte) {
		for _, c := range conns {
			c.Write(b)
		}
	}
	for range n {
		conns = append(conns, connect(t, address))
	}
	send(append(words(markLast|(1<<20)), make([]byte, 44)...)) // a 48-byte packet that claims 1 MiB
	eventually(t, "accepted", func() bool { return r.peers.count() == n })
	send(make([]byte, smallBytes-44-1))
	eventually(t, "no more than 4 KiB each", state(0, 0))
	send(make([]byte, 1))
	eventually(t, "68 KiB each", state(n, 0))
	send(make([]byte, mediumBytes-smallBytes))
	eventually(t, "1 MiB each", state(0, n))
	for _, c := range conns {
		c.Close()
	}
	eventually(t, "nothing held", state(0, 0))
}

func TestSlowRequestsDelayNoOthers(t *testing.T) {
	r := newRig(t, Options{})
	c := dial(t, "tcp", r.tcp(t))
	var slow sync.WaitGroup
	for range 100 {
		slow.Go(func() {
			if _, err := c.Call(t.Context(), testProgram, testLow, procWait, Cred{}, nil); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "100 underway", func() bool { return r.waiting.Load() == 100 })
	for _, proc := range []uint32{procNull, procEcho} {
		if _, err := c.Call(t.Context(), testProgram, testLow, proc, Cred{}, nil); err != nil {
			t.Error(err)
		}
	}
	close(r.gate)
	slow.Wait()
}

func TestRequestsInFlightAreBounded(t *testing.T) {
	r := newRig(t, Options{MaxInFlight: 5})
	c := dial(t, "tcp", r.tcp(t))
	var calls sync.WaitGroup
	for range 50 {
		calls.Go(func() {
			if _, err := c.Call(t.Context(), testProgram, testLow, procWait, Cred{}, nil); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "5 underway", func() bool { return r.waiting.Load() == 5 })
	close(r.gate)
	calls.Wait()
	if n := r.most.Load(); n != 5 {
		t.Errorf("%d ran at the same time", n)
	}
}

// TestLargeBuffersAreShared has more large requests and replies than buffers, on many connections.
func TestLargeBuffersAreShared(t *testing.T) {
	noLeak(t)
	r := newRig(t, Options{LargeBuffers: 3, MediumBuffers: 3})
	address := r.tcp(t)
	var calls sync.WaitGroup
	for i := range 8 {
		c := dial(t, "tcp", address)
		for k := range 8 {
			calls.Go(func() {
				proc, args := uint32(procRead), words(uint32(60000+i*k*10000))
				if k%2 == 0 {
					proc, args = procTwice, make([]byte, 1<<20-k)
				}
				if _, err := c.Call(t.Context(), testProgram, testLow, proc, Cred{}, args); err != nil {
					t.Error(err)
				}
			})
		}
	}
	calls.Wait()
}

// TestALargeRequestNeverWaitsForALargeReply because many of them would wait for each other.
func TestALargeRequestNeverWaitsForALargeReply(t *testing.T) {
	r := newRig(t, Options{LargeBuffers: 1})
	c := dial(t, "tcp", r.tcp(t))
	got, err := c.Call(t.Context(), testProgram, testLow, procTwice, Cred{}, make([]byte, 1<<20))
	if err != nil || !bytes.Contains(got, []byte("busy")) {
		t.Errorf("%q, %v", got, err)
	}
}

// TestAClientThatTakesNoRepliesStopsNoOther fills the share of one connection.
func TestAClientThatTakesNoRepliesStopsNoOther(t *testing.T) {
	r := newRig(t, Options{LargeBuffers: 6})
	address := r.tcp(t)
	dead := connect(t, address)
	for i := range 40 {
		dead.Write(record(message(uint32(i), procRead, words(1<<20)...)))
	}
	eventually(t, "its share is used", func() bool { return len(r.buffers.all[large]) == 2 })
	c := dial(t, "tcp", address)
	for range 10 {
		if _, err := c.Call(t.Context(), testProgram, testLow, procRead, Cred{}, words(1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(r.buffers.all[large]); n < 2 {
		t.Errorf("the dead client holds %d", n) // else the test has tested nothing
	}
}

func TestConnectionsAreBoundedAndAdmitted(t *testing.T) {
	noLeak(t)
	var opened, closed atomic.Int32
	allowed := atomic.Bool{}
	r := newRig(t, Options{
		MaxConnections: 6, Accept: func(a netip.AddrPort) bool { return allowed.Load() && a.Addr().Is4() },
		OnConnect: func(netip.AddrPort) { opened.Add(1) }, OnClose: func(netip.AddrPort) { closed.Add(1) },
	})
	address := r.tcp(t)
	ended(t, connect(t, address))
	port := r.udp(t, "udp", ":0").Port
	udp := dial(t, "udp", fmt.Sprintf("127.0.0.1:%d", port))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := udp.Call(ctx, testProgram, testLow, procNull, Cred{}, nil); !errs.Is(err, errs.Unreachable) {
		t.Errorf("a datagram of a stranger: %v", err)
	}
	allowed.Store(true)
	if _, err := udp.Call(t.Context(), testProgram, testLow, procNull, Cred{}, nil); err != nil {
		t.Error(err)
	}
	for range 3 {
		c := dial(t, "tcp", address)
		if _, err := c.Call(t.Context(), testProgram, testLow, procNull, Cred{}, nil); err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	ended(t, connect(t, address))
	if opened.Load() != 3 || closed.Load() != 0 {
		t.Errorf("%d opened, %d closed", opened.Load(), closed.Load())
	}
	r.Close()
	if closed.Load() != 3 {
		t.Errorf("%d closed at the end", closed.Load())
	}
}

// TestConnectionsComeAndGo drops 10,000 connections at all points of a request.
func TestConnectionsComeAndGo(t *testing.T) {
	noLeak(t)
	r := newRig(t, Options{})
	address := r.tcp(t)
	whole := bytes.Join([][]byte{record(message(1, procNull)), record(message(2, procRead, words(100000)...)), record(message(3, procDrop))}, nil)
	var workers sync.WaitGroup
	for w := range 20 {
		workers.Go(func() {
			for i := range 500 {
				c, err := net.Dial("tcp", address)
				if err != nil {
					t.Error(err)
					return
				}
				c.Write(whole[:(w*500+i)%len(whole)])
				if i%3 == 0 {
					c.(*net.TCPConn).SetLinger(0) // a reset
				}
				c.Close()
			}
		})
	}
	workers.Wait()
	eventually(t, "all connections closed", func() bool { return int64(r.peers.count()) == 0 })
	c := dial(t, "tcp", address)
	if _, err := c.Call(t.Context(), testProgram, testLow, procNull, Cred{}, nil); err != nil {
		t.Error(err)
	}
}

func TestRandomBytesHurtNobody(t *testing.T) {
	noLeak(t)
	address := newRig(t, Options{}).tcp(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		b := make([]byte, random.IntN(5000))
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		if len(b) > 8 && random.IntN(2) == 0 { // past the mark
			binary.BigEndian.PutUint32(b, markLast|uint32(random.IntN(len(b))))
		}
		c := connect(t, address)
		c.Write(b)
		c.(*net.TCPConn).CloseWrite()
		ended(t, c)
		c.Close()
	}
}

func TestAnswersComeAfterTheLastRequest(t *testing.T) {
	r := newRig(t, Options{})
	c := connect(t, r.tcp(t))
	c.Write(append(record(message(1, procWait)), record(message(2, procNull))...))
	c.(*net.TCPConn).CloseWrite()
	eventually(t, "underway", func() bool { return r.waiting.Load() == 1 })
	close(r.gate)
	c.SetDeadline(time.Now().Add(patience))
	got, err := io.ReadAll(c)
	if err != nil || len(got) != 2*headerBytes {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestCloseEndsAllAndWaits(t *testing.T) {
	noLeak(t)
	r := newRig(t, Options{})
	c, u := dial(t, "tcp", r.tcp(t)), dial(t, "udp", r.udp(t, "udp", "127.0.0.1:0").String())
	var calls sync.WaitGroup
	for _, c := range []*Client{c, u} {
		calls.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := c.Call(ctx, testProgram, testLow, procWait, Cred{}, nil); err == nil {
				t.Error("answered")
			}
		})
	}
	eventually(t, "underway", func() bool { return r.waiting.Load() == 2 })
	r.Close()
	if n := r.waiting.Load(); n != 0 {
		t.Errorf("%d requests go on after Close", n)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.ServeTCP(t.Context(), l); !errs.Is(err, errs.Canceled) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener: %v", err)
	}
	calls.Wait()
}

func TestServeEndsWithItsContext(t *testing.T) {
	noLeak(t)
	r := newRig(t, Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.ServeTCP(ctx, l) }()
	c := connect(t, l.Addr().String())
	c.Write(record(message(1, procWait)))
	eventually(t, "underway", func() bool { return r.waiting.Load() == 1 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	ended(t, c)
}

func TestProgramsAreThereOnce(t *testing.T) {
	if _, err := NewServer(Options{Programs: []Program{{Number: 1}, {Number: 1}}}); !errs.Is(err, errs.Invalid) {
		t.Error(err)
	}
}
