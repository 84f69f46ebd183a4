package nbd

import (
	"bufio"
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"

	"livemount/internal/clock"
	"livemount/internal/errs"
)

// ClientOptions are the settings of a client. The zero value works.
type ClientOptions struct {
	// Contexts are the meta contexts to ask for, beside base:allocation. One that the server does not have is NotFound.
	Contexts []string
	// Connections bounds how many are made when the server allows several: 4 by default.
	Connections int
	// Timeout is how long a server may be silent while it owes an answer, and how long the handshake may take: 30 s by default.
	Timeout time.Duration
	// TLS is used for nbds URIs, instead of what the URI's tls-certificates says.
	TLS   *tls.Config
	Clock clock.Clock
	// Writable refuses a read-only export at once.
	Writable bool
}

func (o *ClientOptions) setDefaults() {
	if o.Connections <= 0 {
		o.Connections = 4
	}
	if o.Timeout <= 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Clock == nil {
		o.Clock = clock.System{}
	}
}

// link is one connection of a client.
type link struct {
	o        *ClientOptions
	raw      net.Conn
	w        net.Conn // raw, or TLS above it
	in       *bufio.Reader
	size     int64
	flags    uint16
	min, max uint32            // bytes of a request: what it must be a multiple of, and at most
	contexts map[string]uint32 // ids by name
	ids      map[uint32]bool   // of contexts
	simple   bool              // the server has no structured replies

	sending sync.Mutex // guards what is written

	mu      sync.Mutex // guards the fields below
	calls   map[uint64]*call
	next    uint64
	err     error         // why it is of no use any more
	stopped chan struct{} // closed when nothing is read any more
}

// dial makes a connection and the handshake.
func dial(ctx context.Context, u URI, o *ClientOptions) (*link, error) {
	l, err := connect(ctx, u, o)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { l.raw.Close() })
	err = l.negotiate(u)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		l.raw.Close()
		return nil, err
	}
	l.calls, l.stopped = map[uint64]*call{}, make(chan struct{})
	go l.receive()
	return l, nil
}

// connect begins to talk, inside of TLS when the URI says so.
func connect(ctx context.Context, u URI, o *ClientOptions) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, u.Network, u.Address)
	if err != nil {
		return nil, errs.New(errs.Unreachable, "connect to NBD server: %w", err)
	}
	l := &link{o: o, raw: raw, w: raw, in: bufio.NewReaderSize(raw, readerBytes), min: 1, max: maxRequest}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	err = raw.SetDeadline(o.Clock.Now().Add(o.Timeout))
	if err == nil {
		err = l.hello()
	}
	if err == nil && u.TLS {
		err = l.beginTLS(ctx, u)
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	return l, nil
}

// List asks a server for its exports, with what each is when it tells.
func List(ctx context.Context, u URI, o ClientOptions) ([]Info, error) {
	o.setDefaults()
	l, err := connect(ctx, u, &o)
	if err != nil {
		return nil, err
	}
	defer l.raw.Close()
	stop := context.AfterFunc(ctx, func() { l.raw.Close() })
	defer stop()
	return l.list()
}
