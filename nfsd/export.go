package nfsd

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"livemount/fs"
)

// Export is a datastore that clients may mount.
type Export struct {
	// ID is in every handle; it belongs to this datastore for ever. It is the fsid, too.
	ID uint64
	// Path is what clients mount, with a slash in front. Folders below it can be mounted as well.
	Path string
	// Tree is nil when the datastore exists but cannot be served now: calls are answered JUKEBOX.
	Tree fs.Mutable
	// Rules say who may; the first that fits counts. SetRules changes them later.
	Rules []Rule
	// Traffic counts.
	Traffic *Traffic
	// Mounted is told when a client mounts a path (true), or says that it unmounted it; "" is all paths. It returns when
	// that is written down.
	Mounted func(client netip.Addr, path string, mounted bool) error
	// Clients tells who has it mounted.
	Clients func() []netip.Addr

	verf   [8]byte         // write verifier: another each time that the tree is opened
	ctx    context.Context // of its calls
	cancel context.CancelFunc
	calls  sync.WaitGroup
	rules  atomic.Pointer[[]Rule]

	mu   sync.Mutex // guards what is below, and orders calls.Add before drain waits
	over bool
	seen map[netip.Addr]time.Time // last calls of clients
}

// begin makes the export ready for calls.
func (e *Export) begin(now time.Time) error {
	e.allow(e.Rules)
	if _, err := rand.Read(e.verf[:]); err != nil {
		return err
	}
	binary.BigEndian.PutUint32(e.verf[:], uint32(now.Unix())) // so that two differ also where randomness is poor
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.seen = map[netip.Addr]time.Time{}
	return nil
}

// Rule lets clients in.
type Rule struct {
	Network  netip.Prefix
	ReadOnly bool
	// Insecure lets in who calls from a port above 1023: any user of the client's machine, as whomever he says he is.
	Insecure bool
	// RootSquash makes root AnonUID and AnonGID; AllSquash everybody.
	RootSquash, AllSquash bool
	AnonUID, AnonGID      uint32
}

// Traffic counts the bytes of an export since it was served.
type Traffic struct{ Read, Written, Calls atomic.Int64 }

// ruleFor is rule of a call, whose port must be one that only root can have.
func (e *Export) ruleFor(client netip.AddrPort) *Rule { return ruleIn(*e.rules.Load(), client) }

// ruleIn is ruleFor in a list.
func ruleIn(rules []Rule, client netip.AddrPort) *Rule {
	const reserved = 1024 // IPPORT_RESERVED
	if r := ruleOf(rules, client.Addr()); r != nil && (r.Insecure || client.Port() < reserved) {
		return r
	}
	return nil
}

// rule returns the rule for a client, or nil.
func (e *Export) rule(client netip.Addr) *Rule { return ruleOf(*e.rules.Load(), client) }

func ruleOf(rules []Rule, client netip.Addr) *Rule {
	for i := range rules {
		if rules[i].Network.Contains(client) {
			return &rules[i]
		}
	}
	return nil
}

// allow sets the rules.
func (e *Export) allow(rules []Rule) { e.rules.Store(&rules) }

// enter counts a call of a client at a time, unless the export is over.
func (e *Export) enter(client netip.Addr, now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.over {
		return false
	}
	if _, ok := e.seen[client]; !ok && len(e.seen) >= clientsMax {
		clear(e.seen) // they come again
	}
	e.seen[client] = now
	e.calls.Add(1)
	return true
}

// Callers returns who has called since a time.
func (e *Export) Callers(since time.Time) []netip.Addr {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []netip.Addr
	for a, at := range e.seen {
		if at.After(since) {
			list = append(list, a)
		}
	}
	return list
}

// drain lets no call begin and waits for those that run; what these wait for is given up.
func (e *Export) drain() {
	e.mu.Lock()
	e.over = true
	e.mu.Unlock()
	e.cancel()
	e.calls.Wait()
}

// credentials are whom a call acts for.
type credentials struct {
	uid, gid uint32
	groups   []uint32
}

func (c *credentials) root() bool { return c.uid == 0 }

func (c *credentials) in(gid uint32) bool {
	if c.gid == gid {
		return true
	}
	for _, g := range c.groups {
		if g == gid {
			return true
		}
	}
	return false
}

// Rights to a node, as in the three bits of a mode.
const (
	mayExec  = 1
	mayWrite = 2
	mayRead  = 4
)

// rights returns what the mode of a node lets somebody do. The owner of a file may always read and write it: a client
// has checked when it was opened, and must be able to go on after the mode was changed.
func (c *credentials) rights(a *fs.Attr) uint32 {
	bits := fs.PermBits(a.Mode)
	switch {
	case c.root():
		if a.Mode.IsDir() || bits&0o111 != 0 {
			return mayRead | mayWrite | mayExec
		}
		return mayRead | mayWrite
	case c.uid == a.UID && a.Mode.IsRegular():
		return bits>>6&7 | mayRead | mayWrite
	case c.uid == a.UID:
		return bits >> 6 & 7
	case c.in(a.GID):
		return bits >> 3 & 7
	}
	return bits & 7
}
