package oncrpc

import (
	"net/netip"
	"sync"
)

// peers counts connections by address, so that no client takes them all, and hands out the share of buffers that all
// connections of one address have together.
type peers struct {
	max     int // connections
	buffers *buffers

	mu     sync.Mutex // guards what is below
	all    int
	byAddr map[netip.Addr]*peer
}

type peer struct {
	connections int
	own         *share
}

// enter counts a connection, or returns nil when there are too many, in all or from its address.
func (p *peers) enter(addr netip.Addr) *share {
	p.mu.Lock()
	defer p.mu.Unlock()
	one := p.byAddr[addr]
	if one == nil {
		one = &peer{own: p.buffers.newShare(2)}
	}
	if p.all >= p.max || one.connections >= max(1, p.max/2) {
		return nil
	}
	p.all++
	one.connections++
	p.byAddr[addr] = one
	return one.own
}

func (p *peers) leave(addr netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all--
	one := p.byAddr[addr]
	if one.connections--; one.connections == 0 {
		delete(p.byAddr, addr)
	}
}

// count is the number of connections.
func (p *peers) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all
}
