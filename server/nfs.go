package server

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"sync"
	"time"

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
	newKey bool // handles of before are bad

	mapping    sync.Mutex        // one attempt to tell a portmapper at a time; taken before mu
	mu         sync.Mutex        // guards the fields below
	holding    bool              // not all exports are there yet
	wanted     bool              // somebody wanted to listen meanwhile
	port       int               // where NFS listens; 0 while it does not
	mount      int               // and where MOUNT does
	registered []portmap.Mapping // with rpcbind
	trying     bool              // what failed is being tried again
	failure    error             // why nobody listens
	unmapped   error             // why no portmapper tells the ports, though it should
	mapped     bool              // a portmapper tells the ports
}

// openNFS makes the server. Its key is made once: handles are good for as long as the store.
func openNFS(c *Config, clk clock.Clock, log *slog.Logger) (*nfsService, error) {
	n := &nfsService{config: c, log: log, holding: true}
	key, err := n.loadKey()
	if err != nil {
		return nil, err
	}
	n.ctx, n.stop = context.WithCancel(context.Background())
	n.Server, err = nfsd.New(nfsd.Options{
		Key: key, MaxConnections: c.NFSConnections, MaxInFlight: c.NFSInFlight, Clock: clk, Log: log,
	})
	if err != nil {
		n.stop()
		return nil, err
	}
	return n, nil
}

// loadKey reads the key, of which there are two copies, or makes a new one.
func (n *nfsService) loadKey() (key [32]byte, err error) {
	names := []string{filepath.Join(n.config.Data, "nfs.key"), filepath.Join(n.config.Data, "nfs.key2")}
	var found []byte
	for _, name := range names {
		b, err := vfs.ReadChecked(vfs.OS{}, name, 1<<10)
		if err == nil && len(b) == len(key) && found == nil {
			found = b
		} else if err != nil && !errs.Is(err, errs.NotFound) && !errs.Is(err, errs.Corrupt) {
			return key, err // it may well be good
		} else if errs.Is(err, errs.Corrupt) {
			n.log.Warn("a copy of the key of NFS handles is bad", "file", name, "err", err)
		}
	}
	if n.newKey = found == nil; n.newKey {
		found = key[:]
		if _, err := rand.Read(found); err != nil {
			return key, err
		}
	}
	for _, name := range names {
		if b, err := vfs.ReadChecked(vfs.OS{}, name, 1<<10); err != nil || !bytes.Equal(b, found) {
			if err := vfs.WriteChecked(vfs.OS{}, name, found); err != nil {
				return key, err
			}
		}
	}
	copy(key[:], found)
	return key, nil
}

// allThere is called when all mounts of an earlier run are exported. Before, nobody listens: a client whose export is
// not there yet would be told that it is gone.
func (n *nfsService) allThere() {
	n.mu.Lock()
	n.holding = false
	wanted := n.wanted
	n.mu.Unlock()
	if !wanted {
		return
	}
	if err := n.listen(); err != nil {
		n.log.Error("NFS is not served yet", "err", err)
		n.tryAgain()
	}
}

// listen opens the ports, unless they are open, and lets clients find them. That the latter fails is no error: clients
// that know the ports can go on, and it is tried again.
func (n *nfsService) listen() error {
	if listening, err := n.listening(); err != nil || !listening {
		return err
	}
	if !n.config.NFSPortmap {
		return nil
	}
	n.mapping.Lock()
	defer n.mapping.Unlock()
	if n.told() {
		return nil
	}
	err := n.portmap()
	n.mu.Lock()
	n.mapped, n.unmapped = err == nil, err
	n.mu.Unlock()
	if err != nil {
		n.log.Error("clients cannot find the ports of NFS yet", "err", err)
		n.tryAgain()
	}
	return nil
}

// told says that a portmapper tells the ports.
func (n *nfsService) told() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mapped
}

// listening opens the ports, unless they are open or it is too early.
func (n *nfsService) listening() (bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.wanted = true
	if n.holding || n.port != 0 {
		return !n.holding, nil
	}
	ctx, cancel := context.WithCancel(n.ctx)
	if n.failure = n.open(ctx); n.failure != nil {
		cancel() // what was opened is closed, so that it can be tried again
		return false, n.failure
	}
	context.AfterFunc(n.ctx, cancel)
	n.log.Info("serving NFS", "address", n.config.NFSListen, "port", n.port, "mount_port", n.mount)
	return true, nil
}

// retryEvery is how long it takes until what failed is tried again.
const retryEvery = 5 * time.Second

// tryAgain does what failed as soon as it can be done: an address may not be up yet, or a port still be taken.
func (n *nfsService) tryAgain() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.trying || n.ctx.Err() != nil {
		return
	}
	n.trying = true
	n.wg.Go(func() {
		for n.problem() != nil && n.ctx.Err() == nil {
			pause(n.ctx, retryEvery)
			_ = n.listen() // problem tells
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		n.trying = false
	})
}

func pause(ctx context.Context, d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	<-ctx.Done()
}

// problem says why NFS, or its portmapper, is not served though it should be.
func (n *nfsService) problem() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.failure != nil {
		return n.failure
	}
	return n.unmapped
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
	return n.port, n.mount, n.mapped && n.port == 2049
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
