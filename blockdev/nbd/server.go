package nbd

import (
	"context"
	"crypto/tls"
	"iter"
	"log/slog"
	"net"
	"sync"
	"time"

	"livemount/blockdev"
	"livemount/internal/clock"
	"livemount/internal/errs"
)

// Status is a run of blocks with the same flags in a meta context.
type Status struct {
	Len   int64 // bytes
	Flags uint32
}

// StatusOf yields the runs of [off, off+n), in order and covering it.
type StatusOf func(ctx context.Context, off, n int64) iter.Seq2[Status, error]

// Export is a disk that clients may open.
type Export struct {
	Name, Description string
	// Disk is served writable when it is a blockdev.Device and ReadOnly is not set.
	Disk     blockdev.Reader
	ReadOnly bool
	// Contexts names the meta contexts that can be listed, beside base:allocation.
	Contexts []string
	// Context finds a meta context by its whole name; NotFound when there is none. nil: there are no others.
	Context func(ctx context.Context, name string) (StatusOf, error)
	// Release is called once when the client is gone; nil is not.
	Release func()
}

func (e *Export) device() blockdev.Device {
	d, _ := e.Disk.(blockdev.Device)
	if e.ReadOnly {
		return nil
	}
	return d
}

// Exports is what a Server serves.
type Exports interface {
	// Open finds an export; NotFound when there is none of the name. "" is the default. ctx lasts as long as the connection.
	Open(ctx context.Context, name string) (*Export, error)
	// List tells the names and descriptions, for people and programs that browse.
	List(ctx context.Context) ([]Info, error)
}

// Info is what a server tells of an export before it is opened.
type Info struct {
	Name, Description string
	SizeBytes         int64
	ReadOnly          bool
	Contexts          []string
}

// ServerOptions are the settings of a server. The zero value works.
type ServerOptions struct {
	// TLS lets clients begin TLS; TLSRequired refuses everything else before they do, but for those on unix sockets.
	TLS         *tls.Config
	TLSRequired bool
	// MaxConnections bounds the connections of all clients: 256 by default. MaxInFlight the requests of one: 32.
	MaxConnections, MaxInFlight int
	// BufferBytes bounds what is being moved for all clients: 256 MiB by default.
	BufferBytes int64
	// HandshakeTimeout bounds the handshake: 30 s by default. StallTimeout is how long a client may not take what it asked for,
	// or not send what it announced: 2 min.
	HandshakeTimeout, StallTimeout time.Duration
	Clock                          clock.Clock
	Log                            *slog.Logger
	// Note is told of each request; nil is not.
	Note func()
}

func (o *ServerOptions) setDefaults() {
	if o.MaxConnections <= 0 {
		o.MaxConnections = 256
	}
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = 32
	}
	if o.BufferBytes <= 0 {
		o.BufferBytes = 256 << 20
	}
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = 30 * time.Second
	}
	if o.StallTimeout <= 0 {
		o.StallTimeout = 2 * time.Minute
	}
	if o.Clock == nil {
		o.Clock = clock.System{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Note == nil {
		o.Note = func() {}
	}
}

// Server serves exports on any number of listeners.
type Server struct {
	o       ServerOptions
	exports Exports
	tokens  chan struct{} // one for each piece that is being moved
	many    sync.Mutex    // held by who takes several tokens
	pieces  sync.Pool     // *[]byte of pieceBytes
	smalls  sync.Pool     // *[]byte of smallBytes

	mu    sync.Mutex // guards conns
	conns map[*conn]struct{}
}

// NewServer makes a server; Serve starts it.
func NewServer(exports Exports, o ServerOptions) *Server {
	o.setDefaults()
	s := &Server{o: o, exports: exports, conns: map[*conn]struct{}{}, tokens: make(chan struct{}, max(1, o.BufferBytes/pieceBytes))}
	s.pieces.New = func() any { b := make([]byte, pieceBytes); return &b }
	s.smalls.New = func() any { b := make([]byte, smallBytes); return &b }
	return s
}

// Serve serves the connections of l until ctx ends, and returns nil then. It closes l, and waits for all of its connections
// and requests.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		raw, err := l.Accept()
		switch {
		case err == nil:
			conns.Go(func() { s.serveConn(ctx, raw) })
		case ctx.Err() != nil:
			return nil
		case errs.KindOf(err) == errs.Canceled:
			return errs.New(errs.Canceled, "accept NBD connections on %s: %w", l.Addr(), err)
		default:
			s.o.Log.Warn("NBD connection not accepted", "err", err)
			if clock.Sleep(ctx, acceptPause) != nil {
				return nil
			}
		}
	}
}

const acceptPause = 50 * time.Millisecond

func (s *Server) serveConn(ctx context.Context, raw net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := newConn(s, raw)
	defer c.close()
	if !s.enter(c) {
		s.o.Log.Warn("NBD connection refused: too many", "client", raw.RemoteAddr())
		return
	}
	defer s.leave(c)
	stop := context.AfterFunc(ctx, c.interrupt)
	defer stop()
	err := c.serve(ctx)
	level := slog.LevelDebug
	if errs.Is(err, errs.Invalid) {
		level = slog.LevelWarn
	}
	s.o.Log.Log(ctx, level, "NBD connection ended", "client", raw.RemoteAddr().String(), "export", c.name(), "err", err)
}

func (s *Server) enter(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= s.o.MaxConnections {
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *Server) leave(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	close(c.over)
}

// Clients lists the addresses of those who have an export of which is says so.
func (s *Server) Clients(is func(e *Export) bool) []net.Addr {
	var list []net.Addr
	for _, c := range s.connsOf(is) {
		list = append(list, c.raw.RemoteAddr())
	}
	return list
}

func (s *Server) connsOf(is func(e *Export) bool) []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*conn
	for c := range s.conns {
		if e := c.export.Load(); e != nil && is(e) {
			list = append(list, c)
		}
	}
	return list
}

// Disconnect ends the connections to exports of which is says so, and waits for them. Whoever opens one meanwhile is the
// caller's concern.
func (s *Server) Disconnect(is func(e *Export) bool) {
	list := s.connsOf(is)
	for _, c := range list {
		c.interrupt()
	}
	for _, c := range list {
		<-c.over
	}
}
