// Package nfsd serves datastores through NFS version 3 (RFC 1813): the NFS program over TCP, MOUNT version 3 over TCP and
// UDP, and, when asked for, a portmapper.
//
// What it promises: DATA_SYNC and FILE_SYNC writes, COMMIT, and every change of names or attributes are on disk before
// the answer (many share one sync); UNSTABLE writes may wait for COMMIT, and the write verifier tells of a restart. A
// change that is sent again, also after a restart, gets the answer of the first time. Handles outlive the process: they
// name a mount and a node, under a secret. Nobody gets in who is not on the list of an export, at no call.
//
// What it must not do: answer STALE for anything but a node or a mount that is gone for good (what cannot be had now is
// JUKEBOX), wait for a disk in a call that needs none, or trust a byte that it was sent.
//
// NLM is not served: clients mount with nolock. NFS over UDP is not served either.
package nfsd

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/nfsd/oncrpc"
	"livemount/nfsd/xdr"
)

// Numbers of the programs.
const (
	ProgramNFS   = 100003
	ProgramMount = 100005
	version3     = 3
)

// Options of a server. Key is needed; zero values become the defaults in parentheses.
type Options struct {
	// Key is the secret that handles are made with. It must stay the same for as long as they shall be valid.
	Key [32]byte

	MaxConnections int // (512)
	MaxInFlight    int // calls of one connection that are not answered yet (128)

	Clock clock.Clock
	Log   *slog.Logger
}

// Server serves exports.
type Server struct {
	options  Options
	rpc      *oncrpc.Server
	clock    clock.Clock
	log      *slog.Logger
	running  inProgress
	failures failures
	clients  clients

	mu      sync.Mutex                         // one change of exports at a time
	exports atomic.Pointer[map[uint64]*Export] // by id; replaced as a whole
	retired atomic.Pointer[[]Rule]             // of exports that are gone, the newest first
}

// New returns a server without exports.
func New(o Options) (*Server, error) {
	if o.Key == ([32]byte{}) {
		return nil, errs.New(errs.Invalid, "nfsd: no key for handles")
	}
	if o.Clock == nil {
		o.Clock = clock.System{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{options: o, clock: o.Clock, log: o.Log}
	s.exports.Store(&map[uint64]*Export{})
	s.retired.Store(&[]Rule{})
	var err error
	s.rpc, err = oncrpc.NewServer(oncrpc.Options{
		Programs: []oncrpc.Program{
			{Number: ProgramNFS, Low: version3, High: version3, Serve: s.serveNFS, Inline: answeredAtOnce},
			{Number: ProgramMount, Low: version3, High: version3, Serve: s.serveMount},
		},
		Accept: s.hears, MaxConnections: o.MaxConnections, MaxInFlight: o.MaxInFlight, Clock: o.Clock, Log: o.Log,
		OnConnect: s.clients.connected, OnClose: s.clients.disconnected,
	})
	return s, err
}

// Put adds an export, or replaces the one of its id, whose calls have ended when it returns. Two of one path are Exists.
func (s *Server) Put(e *Export) error {
	old, err := s.put(e)
	if err == nil && old != nil && old != e {
		old.drain()
	}
	return err
}

// put returns what was replaced.
func (s *Server) put(e *Export) (*Export, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.copyExports()
	for id, o := range next {
		if o.Path == e.Path && id != e.ID {
			return nil, errs.New(errs.Exists, "NFS export %s belongs to another mount", e.Path)
		}
	}
	if err := e.begin(s.clock.Now()); err != nil {
		return nil, err
	}
	old := next[e.ID]
	next[e.ID] = e
	s.exports.Store(&next)
	return old, nil
}

// SetRules changes who may use an export, from the next call on. The caller is the only one to look at e.Rules.
func (s *Server) SetRules(e *Export, rules []Rule) {
	e.Rules = rules
	e.allow(rules)
}

// Withdraw ends an export: handles of it are stale from now on. Calls that run are finished when it returns.
func (s *Server) Withdraw(id uint64) {
	s.mu.Lock()
	old := (*s.exports.Load())[id]
	next := s.copyExports()
	delete(next, id)
	s.exports.Store(&next)
	if old != nil {
		s.retire(*old.rules.Load())
	}
	s.mu.Unlock()
	if old != nil {
		old.drain()
	}
}

func (s *Server) copyExports() map[uint64]*Export {
	next := map[uint64]*Export{}
	for id, e := range *s.exports.Load() {
		next[id] = e
	}
	return next
}

func (s *Server) export(id uint64) *Export { return (*s.exports.Load())[id] }

// contextOf is the context of a call: it ends when the export of its first handle does, or else with ctx. The handle is
// checked later.
func (s *Server) contextOf(ctx context.Context, args *xdr.Decoder) context.Context {
	d := *args
	b := d.Opaque(handleMax)
	if len(b) != handleBytes {
		return ctx
	}
	if ex := s.export(exportIn(b)); ex != nil {
		return ex.ctx
	}
	return ctx
}

// Knows says whether an address may use any export.
func (s *Server) Knows(client netip.AddrPort) bool {
	for _, e := range *s.exports.Load() {
		if e.rule(client.Addr()) != nil {
			return true
		}
	}
	return false
}

// hears says whether somebody may use any export. Others are not even listened to.
func (s *Server) hears(client netip.AddrPort) bool {
	for _, e := range *s.exports.Load() {
		if e.ruleFor(client) != nil {
			return true
		}
	}
	return ruleIn(*s.retired.Load(), client) != nil
}

// retiredMax bounds the rules of exports that are gone.
const retiredMax = 1000

// retire keeps the rules of an export that is gone: its clients must be told so, and not that nobody is there. The
// caller holds mu.
func (s *Server) retire(rules []Rule) {
	next := append(slices.Clone(rules), *s.retired.Load()...)
	next = next[:min(len(next), retiredMax)]
	s.retired.Store(&next)
}

// Close ends all connections, and returns when no call runs any more.
func (s *Server) Close() {
	for _, e := range *s.exports.Load() {
		e.cancel()
	}
	s.rpc.Close()
}

// answeredAtOnce says which procedures never wait for a disk.
func answeredAtOnce(proc uint32) bool {
	switch proc {
	case procNull, procGetattr, procLookup, procAccess, procReadlink, procFsinfo, procPathconf:
		return true
	}
	return false
}

// serveNFS answers a call of NFS version 3.
func (s *Server) serveNFS(ctx context.Context, c *oncrpc.Call) oncrpc.Status {
	if c.UDP {
		return oncrpc.ProgUnavail
	}
	if c.Proc == procNull {
		return oncrpc.Success
	}
	p, ok := procedure(c.Proc)
	if !ok {
		return oncrpc.ProcUnavail
	}
	r := request{s: s, Call: c}
	if changes(c.Proc) && r.answeredBefore() {
		return oncrpc.Success
	}
	defer r.done() // also when it panics
	status := p(&r, s.contextOf(ctx, &c.Args))
	if !c.Args.OK() {
		return oncrpc.GarbageArgs
	}
	return status
}
