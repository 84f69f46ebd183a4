package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"livemount/blockdev/nbd"
	"livemount/internal/errs"
)

// nbdService is the NBD server of the daemon. It begins to listen with the first mount that is exported, or at once when the
// configuration says where. All exports are on all of its addresses.
type nbdService struct {
	*nbd.Server
	s    *Server
	log  *slog.Logger
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	holding bool       // not all mounts are there yet: clients wait for the port
	wanted  []string   // addresses that somebody asked for meanwhile
	open    map[string]net.Addr
	exports map[string]func() *nbd.Export // of mounts
}

// defaultNBD is where NBD is served when nobody says where.
const defaultNBD = "127.0.0.1:" + nbd.DefaultPort

func openNBD(s *Server) (*nbdService, error) {
	secure, err := s.config.nbdTLS()
	if err != nil {
		return nil, err
	}
	n := &nbdService{s: s, log: s.log, holding: true, open: map[string]net.Addr{}, exports: map[string]func() *nbd.Export{}}
	n.ctx, n.stop = context.WithCancel(context.Background())
	n.Server = nbd.NewServer(nbdExports{s}, nbd.ServerOptions{Clock: s.clock, Log: s.log, Note: s.gate.Guest, TLS: secure, TLSRequired: secure != nil})
	if s.config.NBDListen != "" {
		n.wanted = append(n.wanted, s.config.NBDListen)
	}
	return n, nil
}

// nbdTLS reads the certificates; nil when none are configured.
func (c *Config) nbdTLS() (*tls.Config, error) {
	if c.NBDTLS == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(c.NBDTLS, "server-cert.pem"), filepath.Join(c.NBDTLS, "server-key.pem"))
	if err != nil {
		return nil, errs.WithTry(errs.New(errs.Invalid, "certificate of NBD: %w", err), "--nbd-tls FOLDER with server-cert.pem and server-key.pem")
	}
	out := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	ca, err := os.ReadFile(filepath.Join(c.NBDTLS, "ca-cert.pem"))
	if errs.Is(err, errs.NotFound) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	out.ClientAuth, out.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
	if !out.ClientCAs.AppendCertsFromPEM(ca) {
		return nil, errs.New(errs.Invalid, "no certificate in %s", filepath.Join(c.NBDTLS, "ca-cert.pem"))
	}
	return out, nil
}

// address is where a mount that asks for at is served.
func (n *nbdService) address(at string) string {
	switch {
	case at != "":
		return at
	case n.s.config.NBDListen != "":
		return n.s.config.NBDListen
	}
	return defaultNBD
}

// parseNBD reads HOST:PORT or unix:PATH.
func parseNBD(address string) (network, where string, err error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok && strings.HasPrefix(path, "/") {
		return "unix", path, nil
	}
	if _, _, err := splitListen(address); err != nil {
		return "", "", errs.WithTry(errs.New(errs.Invalid, "NBD address %q is neither HOST:PORT nor unix:/PATH", address), "127.0.0.1:10809, or unix:/run/NAME.sock")
	}
	return "tcp", address, nil
}

// allThere is called when the mounts of an earlier run are there. Before, nobody listens: a client whose export is not there
// yet would be told that it is gone.
func (n *nbdService) allThere() {
	n.mu.Lock()
	n.holding = false
	list := n.wanted
	n.wanted = nil
	n.mu.Unlock()
	for _, a := range list {
		if err := n.listen(a); err != nil {
			n.log.Error("NBD is not served yet", "address", a, "err", err)
			n.tryAgain(a)
		}
	}
}

// tryAgain listens as soon as it can be done.
func (n *nbdService) tryAgain(address string) {
	n.wg.Go(func() {
		for n.ctx.Err() == nil {
			pause(n.ctx, retryEvery)
			if n.listen(address) == nil {
				return
			}
		}
	})
}

// listen serves at an address, unless it is served, or it is too early.
func (n *nbdService) listen(address string) error {
	network, where, err := parseNBD(address)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.holding {
		n.wanted = append(n.wanted, address)
		return nil
	}
	if n.open[address] != nil || n.ctx.Err() != nil {
		return nil
	}
	if network == "unix" {
		if err := staleSocket(where); err != nil {
			return err
		}
	}
	l, err := (&net.ListenConfig{}).Listen(n.ctx, network, where)
	if err != nil {
		return errs.WithTry(errs.New(errs.Busy, "listen for NBD: %w", err), "--nbd-address HOST:PORT, or unix:/PATH")
	}
	if network == "unix" {
		if err := os.Chmod(where, 0o600); err != nil {
			l.Close()
			return err
		}
	}
	n.open[address] = l.Addr()
	n.log.Info("serving NBD", "address", l.Addr().String())
	n.wg.Go(func() {
		if err := n.Serve(n.ctx, l); err != nil && n.ctx.Err() == nil {
			n.log.Error("NBD ended", "address", address, "err", err)
		}
	})
	return nil
}

// staleSocket removes the socket of a daemon that was killed; one that somebody listens on is Busy.
func staleSocket(path string) error {
	info, err := os.Lstat(path)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err == nil && info.Mode()&os.ModeSocket == 0 {
		return errs.New(errs.Exists, "%s is no socket", path)
	}
	if err != nil {
		return err
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return errs.New(errs.Busy, "somebody listens on %s", path)
	}
	return os.Remove(path)
}

// put makes a disk of a mount an export.
func (n *nbdService) put(name string, e func() *nbd.Export) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.exports[name] = e
}

// find returns an export of a mount.
func (n *nbdService) find(name string) (func() *nbd.Export, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e, ok := n.exports[name]
	return e, ok
}

// drop takes the exports of a mount away and ends the connections to them.
func (n *nbdService) drop(is func(*nbd.Export) bool) {
	n.mu.Lock()
	for name, e := range n.exports {
		if is(e()) {
			delete(n.exports, name)
		}
	}
	n.mu.Unlock()
	n.Disconnect(is)
}

// uri tells where an export is; "" while nobody listens there.
func (n *nbdService) uri(address, export string) string {
	n.mu.Lock()
	a := n.open[address]
	n.mu.Unlock()
	switch a := a.(type) {
	case *net.UnixAddr:
		return nbd.URI{Network: "unix", Address: a.Name, Export: export}.String()
	case *net.TCPAddr:
		where := a.String()
		if a.IP.IsUnspecified() {
			_, port, err := net.SplitHostPort(where)
			if err != nil {
				return ""
			}
			where = net.JoinHostPort(hostName(), port)
		}
		return nbd.URI{Network: "tcp", Address: where, Export: export, TLS: n.s.config.NBDTLS != ""}.String()
	default:
		return ""
	}
}

// close ends all connections. Clients wait for the next start.
func (n *nbdService) close() {
	n.stop()
	n.wg.Wait()
}
