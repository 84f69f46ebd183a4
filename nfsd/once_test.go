package nfsd_test

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"livemount/fs"
	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/nfsd/oncrpc"
	"livemount/nfsd/xdr"
	"livemount/test/nfsclient"
)

// TestAChangeSentAgainGetsItsFirstAnswer sends each call that is not idempotent three times with one number: while the
// first runs or just after, and after a crash.
func TestAChangeSentAgainGetsItsFirstAnswer(t *testing.T) {
	w := start(t, options{})
	c, ctx := w.dial(), t.Context()
	root, web := w.root(c)
	h, _, err := c.Create(ctx, web, "f", 1, nfsclient.Nothing())
	must(t, err)
	_, _, err = c.Mkdir(ctx, web, "d")
	must(t, err)
	type call struct {
		name string
		proc uint32
		args func(*xdr.Encoder)
		ok   bool
	}
	calls := []call{
		{"create", nfsclient.Create, func(e *xdr.Encoder) {
			nfsclient.Dirop(web, "new")(e)
			e.Uint32(1)
			nfsclient.Nothing().Append(e)
		}, true},
		{"mkdir", nfsclient.Mkdir, func(e *xdr.Encoder) { nfsclient.Dirop(web, "dir")(e); nfsclient.Nothing().Append(e) }, true},
		{"symlink", nfsclient.Symlink, func(e *xdr.Encoder) {
			nfsclient.Dirop(web, "sym")(e)
			nfsclient.Nothing().Append(e)
			e.String("to")
		}, true},
		{"link", nfsclient.Link, func(e *xdr.Encoder) { e.Opaque(h); nfsclient.Dirop(root, "l")(e) }, true},
		{"setattr", nfsclient.Setattr, func(e *xdr.Encoder) {
			e.Opaque(h)
			nfsclient.Set{Mode: 0o600, UID: -1, GID: -1, Size: 10}.Append(e)
			e.Bool(false)
		}, true},
		{"rename", nfsclient.Rename, func(e *xdr.Encoder) { nfsclient.Dirop(web, "f")(e); nfsclient.Dirop(web, "g")(e) }, true},
		{"remove", nfsclient.Remove, nfsclient.Dirop(web, "g"), true},
		{"rmdir", nfsclient.Rmdir, nfsclient.Dirop(web, "d"), true},
		{"refused remove", nfsclient.Remove, nfsclient.Dirop(web, "nothing"), false},
		{"refused mkdir", nfsclient.Mkdir, func(e *xdr.Encoder) { nfsclient.Dirop(web, "dir")(e); nfsclient.Nothing().Append(e) }, false},
	}
	answers := make([][]byte, len(calls))
	for i, k := range calls {
		const times = 8
		got := make([][]byte, times)
		var wg sync.WaitGroup
		for n := range times {
			wg.Go(func() {
				var err error
				if got[n], err = c.CallXID(ctx, uint32(1000+i), nfsclient.NFS, 3, k.proc, c.Cred, nfsclient.Encode(k.args)); err != nil {
					t.Errorf("%s: %v", k.name, err)
				}
			})
		}
		wg.Wait()
		answers[i] = got[0]
		if _, err := nfsclient.Results(got[0]); (err == nil) != k.ok {
			t.Errorf("%s: %v", k.name, err)
		}
		for _, b := range got {
			if !bytes.Equal(b, got[0]) {
				t.Errorf("%s: two answers, %x and %x", k.name, got[0], b)
			}
		}
	}
	// Now what was refused would work, and what worked would not.
	_, _, err = c.Create(ctx, web, "nothing", 1, nfsclient.Nothing())
	must(t, err)
	must(t, c.Rmdir(ctx, web, "dir"))
	before, err := c.List(ctx, web, 8192)
	must(t, err)
	for round := range 3 {
		if round > 0 {
			w.crash(options{})
			c = w.dial()
		}
		for i, k := range calls {
			b, err := c.CallXID(ctx, uint32(1000+i), nfsclient.NFS, 3, k.proc, c.Cred, nfsclient.Encode(k.args))
			if err != nil || !bytes.Equal(b, answers[i]) {
				t.Errorf("round %d, %s: %v, %x, not %x", round, k.name, err, b, answers[i])
			}
		}
		after, err := c.List(ctx, web, 8192)
		must(t, err)
		if fmt.Sprint(before) != fmt.Sprint(after) {
			t.Errorf("round %d: %v, not %v", round, after, before)
		}
	}
	// The same number for another call is another call.
	b, err := c.CallXID(ctx, 1000, nfsclient.NFS, 3, nfsclient.Mkdir, c.Cred, nfsclient.Encode(calls[1].args))
	must(t, err)
	_, err = nfsclient.Results(b)
	must(t, err)
}

// TestTheFirstAnswerWhateverCameBetween: a call that is sent again gets its answer, also when it would be refused now.
func TestTheFirstAnswerWhateverCameBetween(t *testing.T) {
	w := start(t, options{})
	c, ctx := w.dial(), t.Context()
	_, web := w.root(c)
	dir, _, err := c.Mkdir(ctx, web, "d")
	must(t, err)
	must(t, c.Setattr(ctx, dir, nfsclient.Set{Mode: 0o777, UID: -1, GID: -1, Size: -1}))
	user := w.dial()
	user.Cred = oncrpc.Sys("test", 1000, 1000)
	create := nfsclient.Encode(func(e *xdr.Encoder) {
		nfsclient.Dirop(dir, "f")(e)
		e.Uint32(1)
		nfsclient.Nothing().Append(e)
	})
	first, err := user.CallXID(ctx, 7, nfsclient.NFS, 3, nfsclient.Create, user.Cred, create)
	must(t, err)
	_, err = nfsclient.Results(first)
	must(t, err)
	again := func(what string) {
		t.Helper()
		b, err := user.CallXID(ctx, 7, nfsclient.NFS, 3, nfsclient.Create, user.Cred, create)
		if err != nil || !bytes.Equal(b, first) {
			t.Errorf("%s: %x, %v, not %x", what, b, err, first)
		}
	}
	must(t, c.Setattr(ctx, dir, nfsclient.Set{Mode: 0o555, UID: -1, GID: -1, Size: -1}))
	again("no right to the folder")
	must(t, c.Remove(ctx, dir, "f"))
	must(t, c.Rmdir(ctx, web, "d"))
	again("the folder is gone")
	user.Cred = oncrpc.Sys("test", 1001, 1000)
	b, err := user.CallXID(ctx, 7, nfsclient.NFS, 3, nfsclient.Create, user.Cred, create)
	must(t, err)
	_, err = nfsclient.Results(b)
	wantStatus(t, err, nfsclient.Stale) // another user's call is another call
}

// TestAFailedSyncIsNeverAnsweredAsDone: a change that could not be made durable is an error, however often it is sent.
func TestAFailedSyncIsNeverAnsweredAsDone(t *testing.T) {
	var broken atomic.Bool
	w := start(t, options{fail: func(op vfs.Op, _ string) error {
		if op == vfs.OpSync && broken.Load() {
			return errs.New(errs.Other, "the disk is gone")
		}
		return nil
	}})
	c, ctx := w.dial(), t.Context()
	_, web := w.root(c)
	h, _, err := c.Create(ctx, web, "f", 1, nfsclient.Nothing())
	must(t, err)
	broken.Store(true)
	for range 3 {
		b, err := c.CallXID(ctx, 99, nfsclient.NFS, 3, nfsclient.Mkdir, c.Cred, nfsclient.Encode(func(e *xdr.Encoder) {
			nfsclient.Dirop(web, "d")(e)
			nfsclient.Nothing().Append(e)
		}))
		must(t, err)
		_, err = nfsclient.Results(b)
		wantStatus(t, err, nfsclient.IO)
	}
	_, _, err = c.Write(ctx, h, 0, []byte("x"), nfsclient.FileSync)
	wantStatus(t, err, nfsclient.IO)
	_, err = c.Commit(ctx, h)
	wantStatus(t, err, nfsclient.IO)
	_, _, err = c.Read(ctx, h, 0, 10)
	must(t, err)
}

// panicky panics at the first change.
type panicky struct {
	fs.Mutable
	done atomic.Bool
}

func (p *panicky) Make(ctx context.Context, dir fs.NodeID, name string, m fs.Make, c *fs.Call) (fs.Outcome, error) {
	if !p.done.Swap(true) {
		panic("a bug")
	}
	return p.Mutable.Make(ctx, dir, name, m, c)
}

func TestAPanicIsOneCallsFailure(t *testing.T) {
	w := start(t, options{tree: func(m fs.Mutable) fs.Mutable { return &panicky{Mutable: m} }})
	c, ctx := w.dial(), t.Context()
	_, web := w.root(c)
	args := nfsclient.Encode(func(e *xdr.Encoder) { nfsclient.Dirop(web, "d")(e); nfsclient.Nothing().Append(e) })
	_, err := c.CallXID(ctx, 5, nfsclient.NFS, 3, nfsclient.Mkdir, c.Cred, args)
	if !oncrpc.Failed(err, oncrpc.SystemErr) {
		t.Errorf("a panic is answered %v", err)
	}
	b, err := c.CallXID(ctx, 5, nfsclient.NFS, 3, nfsclient.Mkdir, c.Cred, args)
	must(t, err)
	_, err = nfsclient.Results(b)
	must(t, err)
	w.server.Withdraw(exportID) // waits for no call that panicked
}
