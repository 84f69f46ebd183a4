package server

import (
	"context"
	"errors"
	"net"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"livemount/internal/errs"
	"livemount/nfsd"
	"livemount/nfsd/oncrpc"
	"livemount/nfsd/portmap"
)

// mappings says where the programs are.
func mappings(nfs, mount int) []portmap.Mapping {
	return []portmap.Mapping{
		{Prog: nfsd.ProgramNFS, Vers: 3, Proto: portmap.TCP, Port: uint16(nfs)},
		{Prog: nfsd.ProgramMount, Vers: 3, Proto: portmap.TCP, Port: uint16(mount)},
		{Prog: nfsd.ProgramMount, Vers: 3, Proto: portmap.UDP, Port: uint16(mount)},
	}
}

// registerTimeout bounds what rpcbind may take.
const registerTimeout = 3 * time.Second

// portmap lets clients find the ports: it serves a portmapper on port 111, or, when that is taken, registers with the
// rpcbind that has it. The caller holds mapping.
func (n *nfsService) portmap() error {
	host, _, err := splitListen(n.config.NFSListen)
	if err != nil {
		return err
	}
	port, mount, _ := n.where()
	list := mappings(port, mount)
	err = n.servePortmap(n.ctx, host, list)
	if !errors.Is(err, unix.EADDRINUSE) {
		return errs.WithTry(err, "livemountd without --nfs-portmap; clients are then told the ports (mountctl mounts shows them)")
	}
	ctx, cancel := context.WithTimeout(n.ctx, registerTimeout)
	defer cancel()
	if err := portmap.Register(ctx, portmap.Local, list); err != nil {
		return errs.WithTry(errs.New(errs.KindOf(err), "port %d is taken, and who has it did not take our ports: %w", portmap.Port, err),
			"livemountd without --nfs-portmap, or rpcbind on port 111 of this machine")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.registered = list
	return nil
}

func (n *nfsService) servePortmap(ctx context.Context, host string, list []portmap.Mapping) error {
	s, err := oncrpc.NewServer(oncrpc.Options{
		Programs: []oncrpc.Program{portmap.Program(list)}, Accept: n.Knows, Log: n.log, MaxConnections: n.config.NFSConnections,
	})
	if err != nil {
		return err
	}
	address := net.JoinHostPort(host, strconv.Itoa(portmap.Port))
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	c, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp", address)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	n.wg.Go(func() { n.ended(s.ServeTCP(ctx, l)) })
	n.wg.Go(func() { n.ended(s.ServeUDP(ctx, c.(*net.UDPConn))) })
	return nil
}

// unregister takes our ports from rpcbind. The caller holds mu.
func (n *nfsService) unregister() error {
	if n.registered == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), registerTimeout)
	defer cancel()
	return portmap.Unregister(ctx, portmap.Local, n.registered)
}
