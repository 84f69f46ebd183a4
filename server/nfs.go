package server

import (
	"cmp"
	"context"
	"crypto/rand"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"sync"

	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/nfsd"
	"livemount/nfsd/portmap"
)

// nfsService is the NFS server of the daemon. It begins to listen with the first export.
type nfsService struct {
	*nfsd.Server
	config *Config
	log    *slog.Logger
	ctx    context.Context
	stop   context.CancelFunc
	wg     sync.WaitGroup

	mu         sync.Mutex        // guards the fields below
	holding    bool              // not all exports are there yet
	wanted     bool              // somebody wanted to listen meanwhile
	port       int               // where NFS listens; 0 while it does not
	mount      int               // and where MOUNT does
	registered []portmap.Mapping // with rpcbind
	standard   bool              // a portmapper tells the ports
}

// openNFS makes the server. Its key is made once: handles are good for as long as the store.
func openNFS(c *Config, clk clock.Clock, log *slog.Logger) (*nfsService, error) {
	key, err := loadKey(filepath.Join(c.Data, "nfs.key"))
	if err != nil {
		return nil, err
	}
	n := &nfsService{config: c, log: log, holding: true}
	n.ctx, n.stop = context.WithCancel(context.Background())
	n.Server, err = nfsd.New(nfsd.Options{
		Key: key, MaxConnections: c.NFSConnections, MaxInFlight: c.NFSInFlight, Clock: clk, Log: log,
	})
	return n, err
}

func loadKey(path string) (key [32]byte, err error) {
	b, err := vfs.ReadChecked(vfs.OS{}, path, 1<<10)
	if errs.Is(err, errs.NotFound) {
		if _, err := rand.Read(key[:]); err != nil {
			return key, err
		}
		return key, vfs.WriteChecked(vfs.OS{}, path, key[:])
	}
	if err == nil && len(b) != len(key) {
		err = errs.New(errs.Corrupt, "%s: %d bytes", path, len(b))
	}
	if err != nil {
		return key, errs.WithTry(err, "remove %s: NFS clients must mount again then", path)
	}
	copy(key[:], b)
	return key, nil
}

// allThere is called when all mounts of an earlier run are exported. Before, nobody listens: a client whose export is
// not there yet would be told that it is gone.
func (n *nfsService) allThere() error {
	n.mu.Lock()
	n.holding = false
	wanted := n.wanted
	n.mu.Unlock()
	if wanted {
		return n.listen()
	}
	return nil
}

// listen opens the ports, unless they are open.
func (n *nfsService) listen() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.wanted = true
	if n.port != 0 || n.holding {
		return nil
	}
	ctx, cancel := context.WithCancel(n.ctx)
	err := n.open(ctx)
	if err != nil {
		cancel() // what was opened is closed, so that it can be tried again
		return err
	}
	n.log.Info("serving NFS", "address", n.config.NFSListen, "port", n.port, "mount_port", n.mount, "portmap", n.config.NFSPortmap)
	context.AfterFunc(n.ctx, cancel)
	return nil
}

// open opens the ports until ctx ends. The caller holds mu.
func (n *nfsService) open(ctx context.Context) error {
	host, port, err := splitListen(n.config.NFSListen)
	if err != nil {
		return err
	}
	nfs, err := n.serveTCP(ctx, host, port)
	if err != nil {
		return errs.WithTry(err, "livemountd --nfs-listen ADDRESS:PORT; a kernel NFS server has port 2049: systemctl stop nfs-server")
	}
	mount := cmp.Or(n.config.NFSMountPort, nfs)
	if mount != nfs {
		_, err = n.serveTCP(ctx, host, mount)
	}
	if err == nil {
		err = n.serveUDP(ctx, host, mount)
	}
	if err != nil {
		return errs.WithTry(err, "livemountd --nfs-mount-port PORT")
	}
	if n.config.NFSPortmap {
		if err := n.portmap(ctx, host, nfs, mount); err != nil {
			return err
		}
		n.standard = nfs == 2049
	}
	n.port, n.mount = nfs, mount
	return nil
}

func splitListen(address string) (host string, port int, err error) {
	h, p, err := net.SplitHostPort(address)
	if err == nil {
		port, err = strconv.Atoi(p)
	}
	if err != nil || port < 0 || port > 65535 {
		return "", 0, errs.WithTry(errs.New(errs.Invalid, "NFS address %q is not ADDRESS:PORT", address), "--nfs-listen 127.0.0.1:2049")
	}
	return h, port, nil
}

func (n *nfsService) serveTCP(ctx context.Context, host string, port int) (int, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return 0, errs.New(errs.Busy, "listen for NFS: %w", err)
	}
	n.wg.Go(func() { n.ended(n.ServeTCP(ctx, l)) })
	return l.Addr().(*net.TCPAddr).Port, nil
}

func (n *nfsService) serveUDP(ctx context.Context, host string, port int) error {
	c, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return errs.New(errs.Busy, "listen for MOUNT: %w", err)
	}
	n.wg.Go(func() { n.ended(n.ServeUDP(ctx, c.(*net.UDPConn))) })
	return nil
}

func (n *nfsService) ended(err error) {
	if err != nil && n.ctx.Err() == nil {
		n.log.Error("NFS ended", "err", err)
	}
}

// where tells the ports, 0 while nobody listens, and whether a portmapper tells them to clients.
func (n *nfsService) where() (port, mount int, standard bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.port, n.mount, n.standard
}

// close ends all connections. Clients wait for the next start.
func (n *nfsService) close() error {
	n.Server.Close()
	n.stop()
	n.wg.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.unregister()
}

// host is what clients on other machines call this one.
func (n *nfsService) host() string {
	host, _, err := splitListen(n.config.NFSListen)
	if err != nil || host != "" && !unspecified(host) {
		return host
	}
	return hostName()
}

func unspecified(host string) bool {
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsUnspecified()
}

// defaultRules are those of mounts that do not say.
func (c *Config) defaultRules() ([]nfsd.Rule, error) {
	list := c.NFSAllow
	if len(list) == 0 {
		list = []string{"127.0.0.0/8", "::1/128"}
	}
	return parseRules(list)
}
