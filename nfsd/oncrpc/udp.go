package oncrpc

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"livemount/internal/errs"
)

const (
	datagramBytesMax = 65507 // data of a UDP packet over IPv4
	controlBytesMax  = 64
)

// datagramPeer is who sent a datagram, and the control message that came with it: it says which address of
// ours was asked, and sent back it makes the reply come from there. A client drops replies from elsewhere.
type datagramPeer struct {
	from    netip.AddrPort // as the socket has it, for the way back
	control [controlBytesMax]byte
	length  int
}

// socket is a UDP socket.
type socket struct {
	server   *Server
	raw      *net.UDPConn
	local    netip.AddrPort
	slots    chan struct{} // a token for each request that is not yet answered
	own      *shares
	handlers sync.WaitGroup
}

// ServeUDP serves datagrams until ctx ends or Close is called, and returns nil then. It closes raw and waits
// for all requests. While MaxInFlight requests are underway, datagrams are left to the kernel, which drops what
// does not fit.
func (s *Server) ServeUDP(ctx context.Context, raw *net.UDPConn) error {
	c := &socket{
		server: s, raw: raw, local: addrPort(raw.LocalAddr()),
		slots: make(chan struct{}, s.options.MaxInFlight), own: s.buffers.newShares(s.buffers.newShare(2)),
	}
	return s.serve(ctx, func() { raw.Close() }, func(ctx context.Context) error {
		defer c.handlers.Wait()
		err := askForLocalAddress(raw)
		if err == nil {
			err = c.read(ctx)
		}
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return nil
		}
		return errs.New(errs.KindOf(err), "receive on UDP %s: %w", c.local, err)
	})
}

// askForLocalAddress has the kernel say with each datagram which address it was sent to, ip(7), ipv6(7).
func askForLocalAddress(raw *net.UDPConn) error {
	sys, err := raw.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = sys.Control(func(fd uintptr) {
		// A socket of IPv6 says it for IPv4 in the same way; one of IPv4 does not know the option.
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		if failed != nil {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
	})
	return errors.Join(err, failed)
}

func (c *socket) read(ctx context.Context) error {
	data := make([]byte, datagramBytesMax+1)
	var peer datagramPeer
	for {
		n, length, _, from, err := c.raw.ReadMsgUDPAddrPort(data, peer.control[:])
		if err != nil {
			return err
		}
		peer.from, peer.length = from, length
		if !c.server.options.Accept(unmap(from)) {
			continue
		}
		if err := acquire(ctx, c.slots, true); err != nil {
			return err
		}
		if err := c.dispatch(ctx, data[:n], &peer); err != nil {
			<-c.slots
			return err
		}
	}
}

// dispatch serves a datagram. What is no call is ignored. The error says that ctx ended.
func (c *socket) dispatch(ctx context.Context, data []byte, peer *datagramPeer) error {
	class, ok := c.server.buffers.class(len(data))
	if !ok || len(data) > c.server.options.RecordBytesMax {
		<-c.slots
		return nil
	}
	request, err := c.server.buffers.take(ctx, class, c.own, true)
	if err != nil {
		return err
	}
	request.b = append(request.b, data...)
	call := c.server.newCall(c, request)
	call.Client, call.Local, call.UDP, call.own, call.peer = unmap(peer.from), c.local, true, c.own, *peer
	call.peer.localize(&call.Local)
	status, inline, ok := c.server.begin(call)
	switch {
	case !ok:
		c.release(call)
	case !inline:
		c.handlers.Add(1)
		go func() {
			defer c.handlers.Done()
			call.serve(ctx)
		}()
	case c.server.finish(ctx, call, status):
		c.answer(call)
	default:
		c.release(call)
	}
	return nil
}

// answer sends a reply. One that fits no datagram becomes a system error. Whether it arrives nobody knows.
func (c *socket) answer(call *Call) {
	if len(call.Out.B)-markBytes > datagramBytesMax {
		call.seal(SystemErr)
	}
	_, _, err := c.raw.WriteMsgUDPAddrPort(call.Out.B[markBytes:], call.peer.control[:call.peer.length], call.peer.from)
	if err != nil {
		c.server.options.Log.Debug("reply not sent", "client", call.Client.String(), "error", err)
	}
	c.release(call)
}

func (c *socket) release(call *Call) {
	c.server.free(call)
	<-c.slots
}

// localize reads which address was asked, and takes the network interface out of the control message, so
// that the reply may leave by another when the routes say so. The structures are in_pktinfo of ip(7) and
// in6_pktinfo of ipv6(7) behind a cmsghdr of 16 bytes, in the byte order of the machine.
func (p *datagramPeer) localize(local *netip.AddrPort) {
	const header = unix.SizeofCmsghdr
	if p.length < header {
		return
	}
	level := int32(binary.NativeEndian.Uint32(p.control[8:]))
	kind := int32(binary.NativeEndian.Uint32(p.control[12:]))
	body := p.control[header:p.length]
	switch {
	case level == unix.IPPROTO_IP && kind == unix.IP_PKTINFO && len(body) >= unix.SizeofInet4Pktinfo:
		clear(body[:4])
		if [4]byte(body[4:8]) == [4]byte{} { // the datagram was there before askForLocalAddress
			copy(body[4:8], body[8:12])
		}
		*local = netip.AddrPortFrom(netip.AddrFrom4([4]byte(body[4:8])), local.Port())
	case level == unix.IPPROTO_IPV6 && kind == unix.IPV6_PKTINFO && len(body) >= unix.SizeofInet6Pktinfo:
		clear(body[16:20])
		*local = netip.AddrPortFrom(netip.AddrFrom16([16]byte(body[:16])).Unmap(), local.Port())
	default:
		p.length = 0
	}
}
