// Package server is livemountd: it wires the store, the mounts and the jobs together and serves the HTTP
// API (server/api). One process owns a store.
//
// Mounts are found again by their records on disk, never by anything in memory; a daemon that was killed
// goes on where it was.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/gate"
	"livemount/internal/space"
	"livemount/internal/vfs"
	"livemount/server/api"
	"livemount/snapshotchain"
)

// Server is a running daemon.
type Server struct {
	config   Config
	clock    clock.Clock
	log      *slog.Logger
	started  time.Time
	guard    *space.Guard
	gate     *gate.Gate
	store    *snapshotchain.Store
	jobs     *jobs
	packer   *packer
	keeper   *keeper
	nfs      *nfsService
	nbd      *nbdService
	machines sync.Map    // QMP sockets of running backups
	ending   atomic.Bool // set before mounts are taken away to come back at the next start

	decoding  chan struct{} // bounds the large requests that are decoded at a time
	exporting slots         // exports that send bytes
	listing   slots         // lists of extents and comparisons

	watchers sync.WaitGroup // of mounts that may be unmounted from outside

	// unknown are folders of mounts whose records cannot be read: what they stand on is not known. Set once.
	unknown []string

	mu     sync.Mutex // guards what is below
	mounts map[mountID]*mount
	damage []string
}

// Run serves until ctx ends. ready is called once when requests are answered.
func Run(ctx context.Context, c Config, log *slog.Logger, ready func()) error {
	if err := c.setDefaults(); err != nil {
		return err
	}
	network, where, err := api.ParseAddress(c.Listen)
	if err == nil {
		err = checkListen(network, where)
	}
	if err != nil {
		return err
	}
	s := &Server{config: c, clock: clock.System{}, log: log, mounts: map[mountID]*mount{}, decoding: make(chan struct{}, 1),
		exporting: make(slots, maxExports), listing: make(slots, maxLists)}
	s.started = s.clock.Now()
	if err := s.open(ctx); err != nil {
		return err
	}
	err = s.serve(ctx, network, where, ready)
	return errors.Join(err, s.close(context.WithoutCancel(ctx)))
}

func (s *Server) open(ctx context.Context) error {
	if err := os.MkdirAll(s.config.Data, 0o700); err != nil {
		return err
	}
	s.gate = gate.New(gate.Options{Clock: s.clock})
	var err error
	s.guard, err = space.New(space.Options{FS: vfs.OS{}, Dir: s.config.Data, ReserveBytes: s.config.ReserveMiB << 20, Log: s.log})
	if err != nil {
		return err
	}
	secret, err := s.config.secret()
	if err != nil {
		return err
	}
	s.store, err = snapshotchain.Open(ctx, snapshotchain.Options{
		Dir: s.config.Data, FS: vfs.OS{}, Clock: s.clock, Log: s.log, ChunkCache: s.config.ChunkCacheMiB << 20,
		Admit: s.guard.Admit, AdmitFreeing: s.guard.AdmitFreeing, AdmitCommit: s.guard.Commit, AdmitFreeingCommit: s.guard.CommitFreeing,
		CatchUp: s.config.ClockCatchUp, Gate: s.gate, Secret: secret,
	})
	if err != nil {
		return err
	}
	s.packer = &packer{pack: s.store.Pack, log: s.log}
	s.packer.pause() // until all else is there
	s.jobs, err = openJobs(filepath.Join(s.config.Data, "jobs"), s.config.Backups, s.clock, s.log)
	if err == nil {
		s.jobs.packer = s.packer
		s.nfs, err = openNFS(&s.config, s.clock, s.log)
	}
	if err == nil {
		s.nbd, err = openNBD(s)
	}
	if err == nil {
		err = s.restoreMounts(ctx)
	}
	if err == nil {
		s.packer.resume()
		s.keeper = startKeeper(s)
	}
	if err != nil {
		return errors.Join(err, s.close(context.WithoutCancel(ctx)))
	}
	return nil
}

// close ends jobs, mounts and the store, in this order.
func (s *Server) close(ctx context.Context) error {
	if s.jobs != nil {
		s.jobs.close()
	}
	if s.keeper != nil {
		s.keeper.close()
	}
	if s.packer != nil {
		s.packer.close()
	}
	s.exporting.drain() // their connections are cut by now
	s.listing.drain()
	s.ending.Store(true)
	var err error
	if s.nfs != nil {
		err = s.nfs.close() // before the mounts go: clients wait for the next start, and are not told that all is gone
	}
	if s.nbd != nil {
		s.nbd.close() // likewise
	}
	err = errors.Join(err, s.stopMounts(ctx))
	return errors.Join(err, s.store.Close(ctx))
}

// stopping says whether the daemon ends.
func (s *Server) stopping() bool { return s.ending.Load() }

const (
	drainTimeout = 5 * time.Second
	maxHeader    = 64 << 10
)

func (s *Server) serve(ctx context.Context, network, where string, ready func()) error {
	l, err := listen(ctx, network, where)
	if err != nil {
		return err
	}
	h := &http.Server{
		Handler: s.handler(), MaxHeaderBytes: maxHeader, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- h.Serve(l) }()
	s.log.Info("serving", "listen", s.config.Listen, "data", s.config.Data, "store", s.store.ID().String())
	ready()
	select {
	case err = <-done:
		return err
	case <-ctx.Done():
	}
	s.log.Info("stopping")
	s.jobs.stop() // so that requests that wait for a job end
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := h.Shutdown(drain); err != nil {
		h.Close() // what is left has had its time
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// listen opens the socket. A socket file that a killed daemon left is replaced: the lock on the store
// says that no other daemon is there.
func listen(ctx context.Context, network, where string) (net.Listener, error) {
	if network != "unix" {
		l, err := (&net.ListenConfig{}).Listen(ctx, network, where)
		if err != nil {
			return nil, errs.New(errs.Busy, "listen on %s: %w", where, err)
		}
		return l, nil
	}
	if len(where) > 107 { // sun_path, unix(7)
		return nil, errs.WithTry(errs.New(errs.Invalid, "socket path %s has %d bytes; the kernel takes 107", where, len(where)),
			"--listen unix:/run/livemountd.sock")
	}
	if info, err := os.Lstat(where); err == nil && info.Mode().Type() == os.ModeSocket {
		if err := os.Remove(where); err != nil {
			return nil, err
		}
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, network, where)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", where, err)
	}
	if err := os.Chmod(where, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
