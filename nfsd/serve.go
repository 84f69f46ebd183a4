package nfsd

import (
	"context"
	"net"
)

// ServeTCP serves NFS and MOUNT on a listener until ctx or the server ends.
func (s *Server) ServeTCP(ctx context.Context, l net.Listener) error { return s.rpc.ServeTCP(ctx, l) }

// ServeUDP serves MOUNT on a socket until ctx or the server ends.
func (s *Server) ServeUDP(ctx context.Context, c *net.UDPConn) error { return s.rpc.ServeUDP(ctx, c) }
