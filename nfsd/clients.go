package nfsd

import (
	"net/netip"
	"sync"
	"time"
)

// clients keeps when clients were last heard, and how many connections they have.
type clients struct {
	mu     sync.Mutex // guards byAddr and what is in it
	byAddr map[netip.Addr]*ClientState
}

// ClientState is what is known of a client.
type ClientState struct {
	Connections int
	Seen        time.Time // its last call in this run; zero for none
}

// clientsMax bounds the clients that are remembered without a connection.
const clientsMax = 4096

func (c *clients) connected(addr netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byAddr == nil {
		c.byAddr = map[netip.Addr]*ClientState{}
	}
	st := c.byAddr[addr.Addr()]
	if st == nil {
		if len(c.byAddr) >= clientsMax {
			c.prune()
		}
		st = &ClientState{}
		c.byAddr[addr.Addr()] = st
	}
	st.Connections++
}

// prune forgets who has no connection. The caller holds mu.
func (c *clients) prune() {
	for addr, st := range c.byAddr {
		if st.Connections == 0 {
			delete(c.byAddr, addr)
		}
	}
}

func (c *clients) disconnected(addr netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if st := c.byAddr[addr.Addr()]; st != nil {
		st.Connections--
	}
}

func (c *clients) heard(addr netip.Addr, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if st := c.byAddr[addr]; st != nil {
		st.Seen = now
	}
}

// Client returns what is known of a client.
func (s *Server) Client(addr netip.Addr) ClientState {
	s.clients.mu.Lock()
	defer s.clients.mu.Unlock()
	if st := s.clients.byAddr[addr]; st != nil {
		return *st
	}
	return ClientState{}
}
