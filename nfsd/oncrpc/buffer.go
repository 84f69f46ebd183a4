package oncrpc

import (
	"context"
	"sync"

	"livemount/internal/errs"
)

// The classes of buffers: a small one for nearly all calls and replies, a medium one for 64 KiB of data and
// a large one for 1 MiB, each with room for headers.
const (
	small = iota
	medium
	large
	classes

	smallBytes  = 5 << 10 // an answer with a page of 4 KiB fits
	mediumBytes = 68 << 10
	largeBytes  = 1<<20 + 4<<10
)

// buffer is memory of a class. b has length 0 when it is taken from the pool; its capacity never changes.
type buffer struct {
	class int
	b     []byte
	own   *shares // where the owner's share is given back, nil for small ones
}

// buffers holds the pools of a server. There is a bound on the larger classes over the server, and each
// connection and each address has a share of it, so that a client that died with many replies underway stops no other.
//
// Whoever holds a buffer of a bounded class never waits for one of the same or a smaller class, else two
// calls could wait for each other for ever.
type buffers struct {
	pools [classes]sync.Pool
	size  [classes]int
	all   [classes]chan struct{} // a token for each buffer in use
}

func newBuffers(recordMax, mediums, larges int) *buffers {
	p := &buffers{size: [classes]int{smallBytes, mediumBytes, max(largeBytes, recordMax)}}
	p.all[medium] = make(chan struct{}, mediums)
	p.all[large] = make(chan struct{}, larges)
	return p
}

// share is what somebody may hold of each class.
type share [classes]chan struct{}

// newShare is one part in so many of the bounds.
func (p *buffers) newShare(parts int) *share {
	var s share
	for i := medium; i < classes; i++ {
		s[i] = make(chan struct{}, max(1, cap(p.all[i])/parts))
	}
	return &s
}

// shares is what a connection may hold, a third of the bounds, and all connections of its address together, a half.
type shares struct{ connection, address *share }

func (p *buffers) newShares(address *share) *shares { return &shares{p.newShare(3), address} }

// class is the smallest class of n bytes; false when there is none.
func (p *buffers) class(n int) (int, bool) {
	for i, size := range p.size {
		if n <= size {
			return i, true
		}
	}
	return 0, false
}

func (p *buffers) small() *buffer { return p.new(small, nil) }

func (p *buffers) new(class int, own *shares) *buffer {
	b, ok := p.pools[class].Get().(*buffer)
	if !ok {
		b = &buffer{class: class, b: make([]byte, 0, p.size[class])}
	}
	b.own = own
	return b
}

// take returns a buffer of the class. It waits for one of a bounded class until ctx ends, or is Busy at once
// when the caller must not wait.
func (p *buffers) take(ctx context.Context, class int, own *shares, wait bool) (*buffer, error) {
	if class == small {
		return p.small(), nil
	}
	tokens := [...]chan struct{}{own.connection[class], own.address[class], p.all[class]}
	for i, t := range tokens {
		if err := acquire(ctx, t, wait); err != nil {
			for _, have := range tokens[:i] {
				<-have
			}
			return nil, err
		}
	}
	return p.new(class, own), nil
}

func acquire(ctx context.Context, tokens chan struct{}, wait bool) error {
	select {
	case tokens <- struct{}{}:
		return nil
	default:
	}
	if !wait {
		return errs.New(errs.Busy, "all buffers are in use")
	}
	select {
	case tokens <- struct{}{}:
		return nil
	case <-ctx.Done():
		return errs.New(errs.KindOf(ctx.Err()), "wait for a buffer: %w", ctx.Err())
	}
}

// give takes the buffer back. A nil one is nothing.
func (p *buffers) give(b *buffer) {
	if b == nil {
		return
	}
	if b.own != nil {
		<-b.own.connection[b.class]
		<-b.own.address[b.class]
		<-p.all[b.class]
	}
	b.b, b.own = b.b[:0], nil
	p.pools[b.class].Put(b)
}
