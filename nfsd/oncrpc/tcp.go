package oncrpc

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"livemount/internal/errs"
)

const (
	readerBytes = 64 << 10
	acceptPause = 50 * time.Millisecond
)

// ServeTCP serves connections of l until ctx ends or Close is called, and returns nil then. It closes l, and
// waits for all connections and requests.
func (s *Server) ServeTCP(ctx context.Context, l net.Listener) error {
	return s.serve(ctx, func() { l.Close() }, func(ctx context.Context) error {
		var conns sync.WaitGroup
		defer conns.Wait()
		for {
			nc, err := l.Accept()
			switch {
			case err == nil:
				conns.Go(func() { s.serveConn(ctx, nc) })
			case ctx.Err() != nil:
				return nil
			case !passes(err):
				return errs.New(errs.KindOf(err), "accept connections on %s: %w", l.Addr(), err)
			default:
				s.options.Log.Warn("connection not accepted", "error", err)
				pause(ctx, acceptPause)
			}
		}
	})
}

// passes says that the listener is good and the next Accept may succeed, accept(2).
func passes(err error) bool {
	for _, e := range []error{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EPROTO,
		syscall.ENETDOWN, syscall.ENOPROTOOPT, syscall.EHOSTDOWN, syscall.ENONET, syscall.EHOSTUNREACH,
		syscall.EOPNOTSUPP, syscall.ENETUNREACH,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func pause(ctx context.Context, d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	<-ctx.Done()
}

// addrPort is the address of a socket with IPv4 as IPv4, or nothing when it is no IP socket.
func addrPort(a net.Addr) netip.AddrPort {
	var p netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		p = a.AddrPort()
	case *net.UDPAddr:
		p = a.AddrPort()
	default:
		return p
	}
	return unmap(p)
}

func unmap(p netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(p.Addr().Unmap(), p.Port()) }

// serveConn serves one connection and returns when all its requests have ended.
func (s *Server) serveConn(ctx context.Context, raw net.Conn) {
	client := addrPort(raw.RemoteAddr())
	var own *share
	if s.options.Accept(client) {
		own = s.peers.enter(client.Addr())
	}
	if own == nil {
		s.options.Log.Debug("connection refused", "client", client.String())
		raw.Close()
		return
	}
	defer s.peers.leave(client.Addr())
	s.options.OnConnect(client)
	defer s.options.OnClose(client)
	c := s.newConn(raw, client, own)
	err := c.serve(ctx)
	c.in.Reset(nil)
	s.readers.Put(c.in)
	s.options.Log.Debug("connection closed", "client", client.String(), "error", err)
}

func (s *Server) newConn(raw net.Conn, client netip.AddrPort, address *share) *conn {
	in, ok := s.readers.Get().(*bufio.Reader)
	if !ok {
		in = bufio.NewReaderSize(nil, readerBytes)
	}
	in.Reset(raw)
	return &conn{
		server: s, raw: raw, in: in, client: client, local: addrPort(raw.LocalAddr()),
		slots: make(chan struct{}, s.options.MaxInFlight), own: s.buffers.newShares(address), work: make(chan *Call), over: make(chan struct{}),
	}
}
