// Package oncrpc is the server side of ONC RPC (RFC 5531) over TCP and UDP, and a small client.
//
// Requests of one connection run at the same time, bounded, and are answered in the order in which they
// finish. A procedure that never waits for a disk is served by the goroutine that reads the connection
// (Program.Inline); any other has a goroutine of its own. Replies that are finished while another is being
// written leave together in one system call, and replies to requests that arrived together do, too.
//
// Whoever sends is not trusted: memory for a record grows as its bytes arrive and never with what its
// length claims; records, connections, requests, buffers and times are bounded (Options); a request that makes
// a program panic costs this request only. A message that is no call ends a connection.
//
// The server knows nothing of what it serves. It does not remember replies: a request that is sent again is
// served again.
package oncrpc

import (
	"context"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"livemount/internal/clock"
	"livemount/internal/errs"
)

// Program is a program in the sense of RFC 5531: a number and versions Low to High.
type Program struct {
	Number    uint32
	Low, High uint32
	// Serve reads c.Args, appends to c.Out and says how it went. Its context ends when the server stops, not
	// when the connection does: a client that comes back sends its request again, and must not find it
	// half done. No reply is sent after that. It may return ProgMismatch for a version between Low and High that is not there.
	Serve func(ctx context.Context, c *Call) Status
	// Inline says that the procedure never waits: not for a disk, a lock held during a disk access, or a
	// large buffer. It may be nil: nothing is served inline.
	Inline func(proc uint32) bool
}

// Options of a Server. Zero values become the defaults in parentheses.
type Options struct {
	Programs []Program
	// Accept says whether somebody may send at all. It is asked for each connection and each datagram. Nil allows all.
	Accept func(netip.AddrPort) bool

	MaxConnections int // open at the same time over all listeners (512), half of them from one address; more are closed at once
	MaxInFlight    int // requests of a connection or UDP socket that are not yet answered (128)
	RecordBytesMax int // length of a request (1 MiB + 4 KiB); a longer one ends the connection
	MediumBuffers  int // buffers of 68 KiB in use by all requests and replies (1024)
	LargeBuffers   int // buffers of 1 MiB + 4 KiB likewise (96); a third of each for one connection, half for one address

	IdleTimeout  time.Duration // ends a connection that waits for no reply and sends none (15 min)
	ReadTimeout  time.Duration // for the rest of a request once it began (30 s)
	WriteTimeout time.Duration // for a client to take replies (60 s)

	Clock clock.Clock  // (the system's); it must not stand still
	Log   *slog.Logger // (none)

	OnConnect func(netip.AddrPort) // after a TCP connection was accepted; may be nil
	OnClose   func(netip.AddrPort) // after its last request ended; may be nil
}

func (o *Options) setDefaults() {
	setInt(&o.MaxConnections, 512)
	setInt(&o.MaxInFlight, 128)
	setInt(&o.RecordBytesMax, largeBytes)
	setInt(&o.MediumBuffers, 1024)
	setInt(&o.LargeBuffers, 96)
	setTime(&o.IdleTimeout, 15*time.Minute)
	setTime(&o.ReadTimeout, 30*time.Second)
	setTime(&o.WriteTimeout, time.Minute)
	if o.Clock == nil {
		o.Clock = clock.System{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Accept == nil {
		o.Accept = func(netip.AddrPort) bool { return true }
	}
	if o.OnConnect == nil {
		o.OnConnect = func(netip.AddrPort) {}
	}
	if o.OnClose == nil {
		o.OnClose = func(netip.AddrPort) {}
	}
}

func setInt(v *int, to int) {
	if *v <= 0 {
		*v = to
	}
}

func setTime(v *time.Duration, to time.Duration) {
	if *v <= 0 {
		*v = to
	}
}

// Server serves programs on any number of listeners and sockets.
type Server struct {
	options  Options
	programs map[uint32]*Program
	buffers  *buffers
	calls    sync.Pool // of *Call
	readers  sync.Pool // of *bufio.Reader
	peers    peers
	done     chan struct{} // closed by Close
	serving  sync.WaitGroup

	mu     sync.Mutex // guards closed, and orders serving.Add before Close waits
	closed bool
}

// NewServer makes a server. Two programs of the same number are Invalid.
func NewServer(o Options) (*Server, error) {
	o.setDefaults()
	s := &Server{
		options: o, programs: map[uint32]*Program{}, done: make(chan struct{}),
		buffers: newBuffers(o.RecordBytesMax, o.MediumBuffers, o.LargeBuffers),
	}
	s.peers = peers{max: o.MaxConnections, buffers: s.buffers, byAddr: map[netip.Addr]*peer{}}
	for i := range o.Programs {
		p := &o.Programs[i]
		if s.programs[p.Number] != nil {
			return nil, errs.New(errs.Invalid, "program %d is there twice", p.Number)
		}
		s.programs[p.Number] = p
	}
	return s, nil
}

// Close cuts all connections and returns when each Serve has ended. A program must not call it.
func (s *Server) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
	}
	s.mu.Unlock()
	s.serving.Wait()
}

// serve runs work under a context that ends with ctx, with Close or when work returns, and calls stop once
// at that time, so that what work waits for ends.
func (s *Server) serve(ctx context.Context, stop func(), work func(context.Context) error) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		stop()
		return errs.New(errs.Canceled, "serve: the server is closed")
	}
	s.serving.Add(1)
	s.mu.Unlock()
	defer s.serving.Done()

	ctx, cancel := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() {
		select {
		case <-ctx.Done():
		case <-s.done:
			cancel()
		}
		stop()
	})
	err := work(ctx)
	cancel()
	watcher.Wait()
	return err
}

// find looks up the program of a call.
func (s *Server) find(c *Call) Status {
	c.program = s.programs[c.Prog]
	switch {
	case c.program == nil:
		return ProgUnavail
	case c.Vers < c.program.Low || c.Vers > c.program.High:
		return ProgMismatch
	default:
		return Success
	}
}

// begin decodes the request of c. It is false when it is no call. When inline is set, finish may be called
// by the goroutine that reads; status is for finish.
func (s *Server) begin(c *Call) (status Status, inline, ok bool) {
	status, ok = c.decode(c.request.b)
	if !ok {
		return 0, false, false
	}
	if status == Success {
		status = s.find(c)
	}
	inline = status != Success || (c.program.Inline != nil && c.program.Inline(c.Proc))
	return status, inline, true
}

// finish serves the call, unless status refuses it already, and completes the reply. It is false when no
// reply is to be sent. A server that stops sends none: the result may say no more than that the context ended,
// and a client that hears nothing asks the next server.
func (s *Server) finish(ctx context.Context, c *Call, status Status) bool {
	if status == Success {
		status = s.run(ctx, c)
	}
	if status == Drop || ctx.Err() != nil {
		return false
	}
	c.seal(status)
	return true
}

// run calls the program. Its panic is our own bug, and one request's failure.
func (s *Server) run(ctx context.Context, c *Call) (status Status) {
	defer func() {
		if p := recover(); p != nil {
			s.options.Log.Error("request panicked", "client", c.Client.String(), "program", c.Prog, "version", c.Vers,
				"procedure", c.Proc, "panic", p, "stack", string(debug.Stack()))
			status = SystemErr
		}
	}()
	return c.program.Serve(ctx, c)
}
