package nfsd

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"log/slog"
	"sync"
	"sync/atomic"

	"livemount/fs"
	"livemount/nfsd/oncrpc"
	"livemount/nfsd/xdr"
)

// inProgress holds the changes that are being made, so that one that is sent again meanwhile is not made twice. (Those
// that were made before are remembered by the tree, in its log.)
type inProgress struct {
	mu   sync.Mutex // guards list
	list map[fs.CallKey]*running
}

type running struct {
	done   chan struct{}
	answer []byte // nil when there is none to give again
}

// begin says whether the caller is to make the change, or to wait for the one that makes it.
func (p *inProgress) begin(key fs.CallKey) (*running, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.list[key]; c != nil {
		return c, false
	}
	if p.list == nil {
		p.list = map[fs.CallKey]*running{}
	}
	c := &running{done: make(chan struct{})}
	p.list[key] = c
	return c, true
}

func (p *inProgress) end(key fs.CallKey, c *running) {
	p.mu.Lock()
	delete(p.list, key)
	p.mu.Unlock()
	close(c.done)
}

// callKey names a call: the same client sends the same call with the same number again, and gives another call another.
// The credentials are in it as far as they matter. (A client that comes back may have another port.)
func (r *request) callKey(args []byte) (key fs.CallKey) {
	h := sha256.New()
	var b [20]byte
	binary.BigEndian.PutUint32(b[0:], r.XID)
	binary.BigEndian.PutUint32(b[4:], r.Proc)
	binary.BigEndian.PutUint32(b[8:], r.Cred.Flavor)
	binary.BigEndian.PutUint32(b[12:], r.Cred.UID)
	binary.BigEndian.PutUint32(b[16:], r.Cred.GID)
	h.Write(b[:])
	addr := r.Client.Addr().As16()
	h.Write(addr[:])
	h.Write(args)
	copy(key[:], h.Sum(nil))
	return key
}

// changes says which procedures must not be carried out twice.
func changes(proc uint32) bool {
	switch proc {
	case procSetattr, procCreate, procMkdir, procSymlink, procRemove, procRmdir, procRename, procLink:
		return true
	}
	return false
}

// answeredBefore answers a change that was made before, whatever has come in between: whoever asks again asks for that
// answer, and not for what would be said now. It leaves the request as it is otherwise.
func (r *request) answeredBefore() bool {
	args := r.allArgs()
	d := xdr.NewDecoder(args)
	h, ok := r.s.decodeHandle(d.Opaque(handleMax))
	if !ok {
		return false
	}
	ex := r.s.export(h.export)
	if ex == nil || ex.Tree == nil || ex.ruleFor(r.Client) == nil || !ex.enter(r.Client.Addr(), r.s.clock.Now()) {
		return false
	}
	defer ex.calls.Done()
	b, ok := ex.Tree.Reply(r.callKey(args))
	// It may have been logged and not be on disk: the call is still being made, its sync failed, or the daemon was killed.
	if !ok || ex.Tree.Sync(ex.ctx) != nil {
		return false // once tries, and tells
	}
	r.Out.B = append(r.Out.B, b...)
	return true
}

// changer makes a change, with the call that its answer is logged under, and encodes its answer.
type changer struct {
	do     func(*fs.Call) (fs.Outcome, error)
	encode func(e answer, o *fs.Outcome, st status)
}

// once answers a call that must not be carried out twice. args are all its arguments.
func (r *request) once(ctx context.Context, args []byte, c changer) oncrpc.Status {
	key := r.callKey(args)
	for {
		own, first := r.s.running.begin(key)
		if first {
			return r.first(ctx, key, own, c)
		}
		select {
		case <-own.done:
		case <-ctx.Done():
			return oncrpc.Drop
		}
		if own.answer != nil {
			r.Out.B = append(r.Out.B, own.answer...)
			return oncrpc.Success
		}
	}
}

// first makes the change for all who ask for it at this time.
func (r *request) first(ctx context.Context, key fs.CallKey, own *running, c changer) oncrpc.Status {
	defer r.s.running.end(key, own) // also when the tree panics: the next one makes it
	b, ok := r.ex.Tree.Reply(key)   // it may have been made since answeredBefore, or its sync have failed
	if !ok {
		b = r.make(ctx, key, c)
	} else if err := r.ex.Tree.Sync(ctx); err != nil {
		b = r.encode(c, &fs.Outcome{}, err)
	}
	own.answer = b
	r.Out.B = append(r.Out.B, b...)
	return oncrpc.Success
}

// encode returns the answer to a change.
func (r *request) encode(c changer, o *fs.Outcome, err error) []byte {
	var b xdr.Encoder
	c.encode(answer{&b, r.ex.ID}, o, statusOf(err))
	return b.B
}

// make makes the change, durably, and returns its answer.
func (r *request) make(ctx context.Context, key fs.CallKey, c changer) []byte {
	var logged []byte
	var refused error
	o, err := c.do(&fs.Call{Key: key, Reply: func(o *fs.Outcome, err error) []byte {
		logged, refused = r.encode(c, o, err), err
		return logged
	}})
	if logged == nil || (err == nil) != (refused == nil) { // it did not get into the log
		return r.encode(c, &o, err)
	}
	if err := r.ex.Tree.Sync(ctx); err != nil {
		r.s.failures.log(r.s.log, "sync", r.ex.Path, uint64(o.Node.ID), err)
		return r.encode(c, &fs.Outcome{}, err)
	}
	return logged
}

// failures logs the 1st, 2nd, 4th, 8th … failure: a guest that scans a bad disk must not fill the log.
type failures struct{ n atomic.Int64 }

func (f *failures) log(to *slog.Logger, op, path string, node uint64, err error) {
	if n := f.n.Add(1); n&(n-1) == 0 {
		to.Error("request failed", "op", op, "export", path, "node", node, "failures", n, "err", err)
	}
}
