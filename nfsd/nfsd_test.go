package nfsd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"livemount/blockdev"
	"livemount/fs"
	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/nfsd"
	"livemount/nfsd/oncrpc"
	"livemount/nfsd/xdr"
	"livemount/test/nfsclient"
)

func TestFilesAreMadeWrittenMovedAndRemoved(t *testing.T) {
	w := start(t, options{})
	c, ctx := w.dial(), t.Context()
	root, web := w.root(c)
	h, a, err := c.Create(ctx, web, "web.log", 1, nfsclient.Set{Mode: 0o640, UID: 5, GID: 6, Size: 100})
	must(t, err)
	if a.Type != 1 || a.Mode != 0o640 || a.UID != 5 || a.GID != 6 || a.Size != 100 || a.Links != 1 || a.FSID != exportID {
		t.Errorf("made %+v", a)
	}
	_, _, err = c.Create(ctx, web, "web.log", 1, nfsclient.Nothing())
	wantStatus(t, err, nfsclient.Exist)
	data := bytes.Repeat([]byte("0123456789abcdef"), 70_000)[:1<<20]
	how, verf, err := c.Write(ctx, h, 50, data, nfsclient.FileSync)
	must(t, err)
	verf2, err := c.Commit(ctx, h)
	must(t, err)
	if how != nfsclient.FileSync || verf != verf2 {
		t.Errorf("committed %d, verifiers %x and %x", how, verf, verf2)
	}
	got, eof, err := c.Read(ctx, h, 50, 1<<20)
	must(t, err)
	if !bytes.Equal(got, data) || !eof {
		t.Errorf("read %d bytes, eof %v", len(got), eof)
	}
	if got, eof, err = c.Read(ctx, h, 40, 20); err != nil || eof || !bytes.Equal(got, append(make([]byte, 10), data[:10]...)) {
		t.Errorf("read %q, eof %v, %v", got, eof, err)
	}
	if got, eof, err = c.Read(ctx, h, 1<<40, 20); err != nil || !eof || len(got) != 0 {
		t.Errorf("behind the end: %d bytes, eof %v, %v", len(got), eof, err)
	}
	must(t, c.Link(ctx, h, root, "other"))
	must(t, c.Rename(ctx, web, "web.log", web, "web-1.log"))
	_, _, err = c.Lookup(ctx, web, "web.log")
	wantStatus(t, err, nfsclient.NoEnt)
	h2, a, err := c.Lookup(ctx, web, "web-1.log")
	must(t, err)
	if !bytes.Equal(h, h2) || a.Links != 2 {
		t.Errorf("the handle changed, or links: %+v", a)
	}
	must(t, c.Remove(ctx, web, "web-1.log"))
	must(t, c.Setattr(ctx, h, nfsclient.Set{Mode: -1, UID: -1, GID: -1, Size: 60, Mtime: time.Unix(77, 5)}))
	if a, err = c.Getattr(ctx, h); err != nil || a.Size != 60 || a.Links != 1 || !a.Mtime.Equal(time.Unix(77, 5)) {
		t.Errorf("%+v, %v", a, err)
	}
	must(t, c.Remove(ctx, root, "other"))
	_, err = c.Getattr(ctx, h)
	wantStatus(t, err, nfsclient.Stale)
	_, _, err = c.Write(ctx, h, 0, data[:10], nfsclient.Unstable)
	wantStatus(t, err, nfsclient.Stale)
}

func TestNamesAndTypesAreChecked(t *testing.T) {
	w := start(t, options{})
	c, ctx := w.dial(), t.Context()
	root, web := w.root(c)
	for name, want := range map[string]nfsclient.Status{
		"": nfsclient.Acces, ".": nfsclient.Exist, "..": nfsclient.Exist, "a/b": nfsclient.Inval, "a\x00": nfsclient.Inval,
		strings.Repeat("x", 256): nfsclient.NameTooLong, strings.Repeat("x", 1024): nfsclient.NameTooLong,
	} {
		_, _, err := c.Create(ctx, web, name, 0, nfsclient.Nothing())
		wantStatus(t, err, want)
		_, _, err = c.Mkdir(ctx, web, name)
		wantStatus(t, err, want)
		wantStatus(t, c.Rename(ctx, web, "web.vmx", web, name), want)
	}
	odd := "not\xffutf-8 \n"
	h, _, err := c.Mkdir(ctx, web, odd)
	must(t, err)
	list, err := c.List(ctx, web, 4096)
	must(t, err)
	if !slices.ContainsFunc(list, func(e nfsclient.Entry) bool { return e.Name == odd && bytes.Equal(e.Handle, h) }) {
		t.Errorf("listed %+v", list)
	}
	must(t, c.Rename(ctx, web, odd, root, strings.Repeat("y", 255)))
	vmx, _, err := c.Lookup(ctx, web, "web.vmx")
	must(t, err)
	_, _, err = c.Lookup(ctx, vmx, "x")
	wantStatus(t, err, nfsclient.NotDir)
	wantStatus(t, c.Rmdir(ctx, web, "web.vmx"), nfsclient.NotDir)
	wantStatus(t, c.Remove(ctx, root, "web"), nfsclient.IsDir)
	wantStatus(t, c.Rmdir(ctx, root, "web"), nfsclient.NotEmpty)
	_, _, err = c.Read(ctx, web, 0, 10)
	wantStatus(t, err, nfsclient.IsDir)
	_, _, err = c.Create(ctx, web, "big", 0, nfsclient.Set{Mode: -1, UID: -1, GID: -1, Size: 1<<46 + 1})
	wantStatus(t, err, nfsclient.FBig)
	_, _, err = c.Write(ctx, vmx, 1<<63, []byte("x"), nfsclient.Unstable)
	wantStatus(t, err, nfsclient.FBig)
	_, _, err = c.Write(ctx, vmx, 1<<46-1, []byte("x"), nfsclient.Unstable)
	must(t, err)
	_, err = c.Do(ctx, nfsclient.Mknod, func(e *xdr.Encoder) {
		nfsclient.Dirop(web, "pipe")(e)
		e.Uint32(7)
		nfsclient.Nothing().Append(e)
	})
	wantStatus(t, err, nfsclient.NotSupp)
}

func TestExclusiveCreateIsMadeOnce(t *testing.T) {
	w := start(t, options{})
	c, ctx := w.dial(), t.Context()
	_, web := w.root(c)
	for _, verifier := range []uint64{0, 1 << 60} {
		name := fmt.Sprint(verifier)
		h, _, err := c.CreateExclusive(ctx, web, name, verifier)
		must(t, err)
		again, _, err := c.CreateExclusive(ctx, web, name, verifier)
		if err != nil || !bytes.Equal(h, again) {
			t.Errorf("again: %v", err)
		}
		_, _, err = c.CreateExclusive(ctx, web, name, verifier+5)
		wantStatus(t, err, nfsclient.Exist)
	}
}

func TestUncheckedCreateTakesWhatIsThere(t *testing.T) {
	w := start(t, options{})
	c, ctx := w.dial(), t.Context()
	_, web := w.root(c)
	h, _, err := c.Create(ctx, web, "f", 0, nfsclient.Nothing())
	must(t, err)
	_, _, err = c.Write(ctx, h, 0, []byte("content"), nfsclient.FileSync)
	must(t, err)
	again, a, err := c.Create(ctx, web, "f", 0, nfsclient.Nothing())
	if err != nil || !bytes.Equal(h, again) || a.Size != 7 {
		t.Errorf("%+v, %v", a, err)
	}
	if _, a, err = c.Create(ctx, web, "f", 0, nfsclient.Set{Mode: -1, UID: -1, GID: -1}); err != nil || a.Size != 0 {
		t.Errorf("cut: %+v, %v", a, err)
	}
	_, _, err = c.Create(ctx, web, "g/../f", 0, nfsclient.Nothing())
	wantStatus(t, err, nfsclient.Inval)
}

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

func TestAcknowledgedMeansOnDisk(t *testing.T) {
	w := start(t, options{})
	c, ctx := w.dial(), t.Context()
	_, web := w.root(c)
	_, v1, err := func() (uint32, string, error) {
		h, _, err := c.Create(ctx, web, "a", 1, nfsclient.Nothing())
		must(t, err)
		return c.Write(ctx, h, 0, []byte("file sync"), nfsclient.FileSync)
	}()
	must(t, err)
	h, _, err := c.Create(ctx, web, "b", 1, nfsclient.Nothing())
	must(t, err)
	how, _, err := c.Write(ctx, h, 0, []byte("data sync"), nfsclient.DataSync)
	if err != nil || how == nfsclient.Unstable {
		t.Errorf("%d, %v", how, err)
	}
	h, _, err = c.Create(ctx, web, "c", 1, nfsclient.Nothing())
	must(t, err)
	how, _, err = c.Write(ctx, h, 0, []byte("committed"), nfsclient.Unstable)
	if err != nil || how != nfsclient.Unstable {
		t.Errorf("%d, %v", how, err)
	}
	_, err = c.Commit(ctx, h)
	must(t, err)
	w.crash(options{})
	c = w.dial()
	for name, want := range map[string]string{"a": "file sync", "b": "data sync", "c": "committed"} {
		h, _, err := c.Lookup(ctx, web, name)
		must(t, err)
		if got, _, err := c.Read(ctx, h, 0, 100); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if v2, err := c.Commit(ctx, h); err != nil || v2 == v1 {
			t.Errorf("the verifier is the same after a restart: %x, %v", v2, err)
		}
	}
}

func TestListingsAreWhole(t *testing.T) {
	w := start(t, options{})
	c, ctx := w.dial(), t.Context()
	_, web := w.root(c)
	dir, _, err := c.Mkdir(ctx, web, "many")
	must(t, err)
	const n = 3000
	var wg sync.WaitGroup
	for part := range 8 {
		wg.Go(func() {
			for i := part; i < n; i += 8 {
				if _, _, err := c.Create(ctx, dir, fmt.Sprintf("file-%05d", i), 1, nfsclient.Nothing()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	for _, size := range []uint32{1000, 8192, 1 << 20} {
		list, err := c.List(ctx, dir, size)
		must(t, err)
		seen := map[string]bool{}
		for _, e := range list {
			if seen[e.Name] {
				t.Errorf("%s is listed twice", e.Name)
			}
			seen[e.Name] = true
		}
		if len(seen) != n+2 {
			t.Errorf("answers of %d bytes: %d names", size, len(seen))
		}
	}
	_, err = c.List(ctx, dir, 100)
	wantStatus(t, err, nfsclient.TooSmall)
}

func TestHandlesOfOthersAreRefused(t *testing.T) {
	w := start(t, options{})
	c, ctx := w.dial(), t.Context()
	root, _ := w.root(c)
	for i := range root {
		forged := bytes.Clone(root)
		forged[i] ^= 1
		_, err := c.Getattr(ctx, forged)
		wantStatus(t, err, nfsclient.BadHandle)
	}
	for _, h := range [][]byte{nil, root[:37], append(bytes.Clone(root), 0)} {
		_, err := c.Getattr(ctx, h)
		wantStatus(t, err, nfsclient.BadHandle)
	}
	second := w.export
	other := &nfsd.Export{ID: 5, Path: "/other", Tree: second.Tree, Rules: second.Rules, Traffic: &nfsd.Traffic{}, Mounted: second.Mounted, Clients: second.Clients}
	must(t, w.server.Put(other))
	h, err := c.MountPath(ctx, "/other")
	must(t, err)
	wantStatus(t, c.Rename(ctx, root, "web", h, "web"), nfsclient.XDev)
	_, err = c.MountPath(ctx, "/")
	wantStatus(t, err, nfsclient.NoEnt)
	w.server.Withdraw(5)
	_, err = c.Getattr(ctx, h)
	wantStatus(t, err, nfsclient.Stale)
	_, err = c.MountPath(ctx, "/")
	must(t, err)
	must(t, w.server.Put(&nfsd.Export{ID: 5, Path: "/other", Rules: second.Rules, Traffic: &nfsd.Traffic{}}))
	_, err = c.Getattr(ctx, h)
	wantStatus(t, err, nfsclient.Jukebox)
	if err := w.server.Put(&nfsd.Export{ID: 6, Path: "/other"}); !errs.Is(err, errs.Exists) {
		t.Errorf("two exports of one path: %v", err)
	}
}

func TestRulesOfAnExport(t *testing.T) {
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	t.Run("strangers are not heard", func(t *testing.T) {
		w := start(t, options{rules: []nfsd.Rule{{Network: netip.MustParsePrefix("10.0.0.0/8")}}})
		c := w.dial()
		if _, err := c.MountPath(t.Context(), "/web-1234"); err == nil {
			t.Error("a stranger mounted")
		}
	})
	t.Run("ports of any user are refused", func(t *testing.T) {
		secure, insecure := []nfsd.Rule{{Network: loopback}}, []nfsd.Rule{{Network: loopback, Insecure: true}}
		w := start(t, options{rules: secure})
		c := w.dial()
		if _, err := c.MountPath(t.Context(), "/web-1234"); err == nil {
			t.Error("mounted from a port that any user can have")
		}
		w.server.SetRules(w.export, insecure)
		c = w.dial()
		root, _ := w.root(c)
		w.server.SetRules(w.export, secure)
		_, err := c.Getattr(t.Context(), root)
		wantStatus(t, err, nfsclient.Acces)
		_, err = c.MountPath(t.Context(), "/web-1234")
		wantStatus(t, err, nfsclient.Acces)
		_, err = c.Call(t.Context(), nfsclient.Mount, 3, 4, c.Cred, nil) // UMNTALL
		must(t, err)
		if len(w.clients()) != 1 {
			t.Error("a client was forgotten, as any user of its machine wished")
		}
	})
	t.Run("groups are squashed as well", func(t *testing.T) {
		w := start(t, options{rules: []nfsd.Rule{{Network: loopback, Insecure: true}}})
		c, ctx := w.dial(), t.Context()
		_, web := w.root(c)
		h, _, err := c.Create(ctx, web, "f", 1, nfsclient.Set{Mode: 0o640, UID: -1, GID: -1, Size: -1})
		must(t, err)
		for _, cred := range []oncrpc.Cred{oncrpc.Sys("test", 5, 0), oncrpc.Sys("test", 5, 5, 7, 0)} {
			c.Cred = cred
			_, _, err = c.Read(ctx, h, 0, 10)
			must(t, err)
			w.server.SetRules(w.export, []nfsd.Rule{{Network: loopback, Insecure: true, RootSquash: true, AnonUID: 65534, AnonGID: 65534}})
			_, _, err = c.Read(ctx, h, 0, 10)
			wantStatus(t, err, nfsclient.Acces)
			w.server.SetRules(w.export, []nfsd.Rule{{Network: loopback, Insecure: true}})
		}
	})
	t.Run("read-only", func(t *testing.T) {
		w := start(t, options{rules: []nfsd.Rule{{Network: loopback, Insecure: true, ReadOnly: true}}})
		c, ctx := w.dial(), t.Context()
		_, web := w.root(c)
		h, a, err := c.Lookup(ctx, web, "sda-flat.vmdk")
		must(t, err)
		if got, _, err := c.Read(ctx, h, 4096, 3); err != nil || !bytes.Equal(got, []byte{1, 1, 3}) || a.Size != 1<<20 {
			t.Errorf("%x, %+v, %v", got, a, err)
		}
		_, _, err = c.Write(ctx, h, 0, []byte("x"), nfsclient.Unstable)
		wantStatus(t, err, nfsclient.ROFS)
		_, _, err = c.Mkdir(ctx, web, "d")
		wantStatus(t, err, nfsclient.ROFS)
		wantStatus(t, c.Remove(ctx, web, "web.vmx"), nfsclient.ROFS)
		wantStatus(t, c.Setattr(ctx, h, nfsclient.Set{Mode: 0o777, UID: -1, GID: -1, Size: -1}), nfsclient.ROFS)
	})
	t.Run("root is squashed", func(t *testing.T) {
		w := start(t, options{rules: []nfsd.Rule{{Network: loopback, Insecure: true, RootSquash: true, AnonUID: 65534, AnonGID: 65534}}})
		c, ctx := w.dial(), t.Context()
		_, web := w.root(c)
		_, _, err := c.Mkdir(ctx, web, "d")
		wantStatus(t, err, nfsclient.Acces)
		h, _, err := c.Lookup(ctx, web, "sda-flat.vmdk")
		must(t, err)
		_, _, err = c.Read(ctx, h, 0, 10)
		wantStatus(t, err, nfsclient.Acces)
	})
	t.Run("modes count for others than root", func(t *testing.T) {
		w := start(t, options{})
		c, ctx := w.dial(), t.Context()
		root, web := w.root(c)
		_, _, err := c.Mkdir(ctx, root, "home")
		must(t, err)
		home, _, err := c.Lookup(ctx, root, "home")
		must(t, err)
		must(t, c.Setattr(ctx, home, nfsclient.Set{Mode: 0o1777, UID: -1, GID: -1, Size: -1}))
		user := w.dial()
		user.Cred = oncrpc.Sys("test", 1000, 1000, 50)
		_, _, err = user.Mkdir(ctx, web, "d")
		wantStatus(t, err, nfsclient.Acces)
		h, a, err := user.Create(ctx, home, "mine", 1, nfsclient.Set{Mode: 0o400, UID: 0, GID: 50, Size: -1})
		must(t, err)
		if a.UID != 1000 || a.GID != 50 {
			t.Errorf("made for %d:%d", a.UID, a.GID)
		}
		_, _, err = user.Write(ctx, h, 0, []byte("the owner may"), nfsclient.Unstable)
		must(t, err)
		wantStatus(t, user.Setattr(ctx, h, nfsclient.Set{Mode: -1, UID: 1001, GID: -1, Size: -1}), 1)
		other := w.dial()
		other.Cred = oncrpc.Sys("test", 1001, 1001)
		_, _, err = other.Read(ctx, h, 0, 10)
		wantStatus(t, err, nfsclient.Acces)
		wantStatus(t, other.Remove(ctx, home, "mine"), nfsclient.Acces)
		must(t, user.Remove(ctx, home, "mine"))
	})
}

func TestAFullDiskIsSaidAndReadsGoOn(t *testing.T) {
	full := false
	w := start(t, options{admit: func(int64) error {
		if full {
			return errs.New(errs.NoSpace, "full")
		}
		return nil
	}})
	c, ctx := w.dial(), t.Context()
	_, web := w.root(c)
	h, _, err := c.Create(ctx, web, "f", 1, nfsclient.Nothing())
	must(t, err)
	_, _, err = c.Write(ctx, h, 0, []byte("before"), nfsclient.FileSync)
	must(t, err)
	full = true
	_, _, err = c.Write(ctx, h, 0, []byte("after"), nfsclient.FileSync)
	wantStatus(t, err, nfsclient.NoSpc)
	_, _, err = c.Create(ctx, web, "g", 1, nfsclient.Nothing())
	wantStatus(t, err, nfsclient.NoSpc)
	if got, _, err := c.Read(ctx, h, 0, 100); err != nil || string(got) != "before" {
		t.Errorf("%q, %v", got, err)
	}
	full = false
	_, _, err = c.Write(ctx, h, 0, []byte("after"), nfsclient.FileSync)
	must(t, err)
}

func TestMountListsWhoMounted(t *testing.T) {
	w := start(t, options{})
	c, ctx := w.dial(), t.Context()
	w.root(c)
	if got := w.clients(); len(got) != 1 || got[0] != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("clients %v", got)
	}
	b, err := c.Call(ctx, nfsclient.Mount, 3, 2, c.Cred, nil)
	if err != nil || !bytes.Contains(b, []byte("127.0.0.1")) || !bytes.Contains(b, []byte("/web-1234")) {
		t.Errorf("DUMP: %q, %v", b, err)
	}
	b, err = c.Call(ctx, nfsclient.Mount, 3, 5, c.Cred, nil)
	if err != nil || !bytes.Contains(b, []byte("127.0.0.0/8")) {
		t.Errorf("EXPORT: %q, %v", b, err)
	}
	_, err = c.MountPath(ctx, "/web-1234/web/web.vmx")
	wantStatus(t, err, nfsclient.NotDir)
	_, err = c.MountPath(ctx, "/web-1234/../web-1234")
	wantStatus(t, err, nfsclient.Inval)
	_, err = c.MountPath(ctx, "/web-12345")
	wantStatus(t, err, nfsclient.NoEnt)
	_, err = c.Call(ctx, nfsclient.Mount, 3, 3, c.Cred, nfsclient.Encode(func(e *xdr.Encoder) { e.String("/web-1234") }))
	if err != nil || len(w.clients()) != 0 {
		t.Errorf("after UMNT: %v, %v", w.clients(), err)
	}
	w.root(c)
	if _, err = c.Call(ctx, nfsclient.Mount, 3, 4, c.Cred, nil); err != nil || len(w.clients()) != 0 {
		t.Errorf("after UMNTALL: %v, %v", w.clients(), err)
	}
}

func TestOldVersionsAndUnknownProceduresAreNamed(t *testing.T) {
	w := start(t, options{})
	c := w.dial()
	for _, v := range []struct {
		prog, vers, proc uint32
		want             oncrpc.Status
	}{
		{nfsclient.NFS, 4, 0, oncrpc.ProgMismatch}, {nfsclient.NFS, 2, 0, oncrpc.ProgMismatch}, {nfsclient.NFS, 3, 22, oncrpc.ProcUnavail},
		{nfsclient.Mount, 1, 0, oncrpc.ProgMismatch}, {nfsclient.Mount, 3, 6, oncrpc.ProcUnavail}, {100021, 4, 0, oncrpc.ProgUnavail},
		{nfsclient.NFS, 3, nfsclient.Read, oncrpc.GarbageArgs}, {nfsclient.NFS, 3, nfsclient.Create, oncrpc.GarbageArgs},
		{nfsclient.Mount, 3, 1, oncrpc.GarbageArgs},
	} {
		_, err := c.Call(t.Context(), v.prog, v.vers, v.proc, c.Cred, nil)
		if !oncrpc.Failed(err, v.want) {
			t.Errorf("program %d version %d procedure %d: %v", v.prog, v.vers, v.proc, err)
		}
	}
	if _, err := c.Call(context.Background(), nfsclient.NFS, 3, 0, c.Cred, nil); err != nil {
		t.Error(err)
	}
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

func TestBitsThatLetAFileRunAsAnother(t *testing.T) {
	w := start(t, options{})
	c, ctx := w.dial(), t.Context()
	_, web := w.root(c)
	mode := func(h []byte) uint32 {
		t.Helper()
		a, err := c.Getattr(ctx, h)
		must(t, err)
		return a.Mode
	}
	dir, _, err := c.Mkdir(ctx, web, "d")
	must(t, err)
	must(t, c.Setattr(ctx, dir, nfsclient.Set{Mode: 0o2777, UID: -1, GID: 50, Size: -1}))
	user := w.dial()
	user.Cred = oncrpc.Sys("test", 1000, 1000)
	for _, change := range []func(h []byte) error{
		func(h []byte) error { _, _, err := user.Write(ctx, h, 0, []byte("x"), nfsclient.Unstable); return err },
		func(h []byte) error { return user.Setattr(ctx, h, nfsclient.Set{Mode: -1, UID: -1, GID: -1, Size: 0}) },
		func(h []byte) error { return c.Setattr(ctx, h, nfsclient.Set{Mode: -1, UID: 7, GID: -1, Size: -1}) },
	} {
		h, _, err := c.Create(ctx, dir, "f", 0, nfsclient.Set{Mode: 0o6777, UID: 0, GID: -1, Size: -1})
		must(t, err)
		must(t, c.Setattr(ctx, h, nfsclient.Set{Mode: 0o6777, UID: 0, GID: -1, Size: -1}))
		must(t, change(h))
		if m := mode(h); m != 0o777 {
			t.Errorf("mode %o is left", m)
		}
	}
	h, a, err := user.Create(ctx, dir, "mine", 1, nfsclient.Set{Mode: 0o2755, UID: -1, GID: -1, Size: -1})
	must(t, err)
	if a.Mode != 0o755 || a.GID != 50 {
		t.Errorf("made with mode %o of group %d", a.Mode, a.GID)
	}
	must(t, user.Setattr(ctx, h, nfsclient.Set{Mode: 0o2777, UID: -1, GID: -1, Size: -1}))
	if m := mode(h); m != 0o777 {
		t.Errorf("set to mode %o", m)
	}
	if _, a, err = user.Mkdir(ctx, dir, "sub"); err != nil || a.Mode != 0o2755 || a.GID != 50 {
		t.Errorf("a folder in a folder with the setgid bit: %+v, %v", a, err)
	}
}

// TestWithdrawnUnderSlowReaders: an export ends at once, though clients take no answers and hold all buffers.
func TestWithdrawnUnderSlowReaders(t *testing.T) {
	w := start(t, options{disk: blockdev.NewMem(8 << 20)})
	c, ctx := w.dial(), t.Context()
	_, web := w.root(c)
	h, _, err := c.Lookup(ctx, web, "sda-flat.vmdk")
	must(t, err)
	for range 6 {
		raw, err := net.Dial("tcp", w.addr)
		must(t, err)
		t.Cleanup(func() { raw.Close() })
		for range 120 {
			_, err := raw.Write(readCall(h))
			must(t, err)
		}
	}
	_, err = c.Getattr(ctx, h)
	must(t, err)
	began := time.Now()
	w.server.Withdraw(exportID)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	_, err = c.Getattr(ctx, h)
	wantStatus(t, err, nfsclient.Stale)
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

// TestExportsThatComeAndGo: the verifier tells that a tree was opened anew; clients of what is gone are told so on new
// connections; a replaced export is never stale.
func TestExportsThatComeAndGo(t *testing.T) {
	w := start(t, options{})
	c, ctx := w.dial(), t.Context()
	_, web := w.root(c)
	h, _, err := c.Create(ctx, web, "f", 1, nfsclient.Nothing())
	must(t, err)
	v1, err := c.Commit(ctx, h)
	must(t, err)
	again := &nfsd.Export{ID: exportID, Path: w.export.Path, Tree: w.ds, Rules: w.export.Rules, Traffic: &nfsd.Traffic{}, Mounted: w.note, Clients: w.clients}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				_, err := c.Getattr(ctx, h)
				var st nfsclient.Status
				if errors.As(err, &st) && st != nfsclient.Jukebox || err != nil && !errors.As(err, &st) {
					t.Errorf("while the export is replaced: %v", err)
					return
				}
			}
		})
	}
	for range 50 {
		must(t, w.server.Put(&nfsd.Export{ID: exportID, Path: w.export.Path, Rules: w.export.Rules, Traffic: &nfsd.Traffic{}}))
		again = &nfsd.Export{ID: exportID, Path: w.export.Path, Tree: w.ds, Rules: w.export.Rules, Traffic: &nfsd.Traffic{}, Mounted: w.note, Clients: w.clients}
		must(t, w.server.Put(again))
	}
	close(stop)
	wg.Wait()
	if v2, err := c.Commit(ctx, h); err != nil || v1 == v2 {
		t.Errorf("the verifier is %x still, %v", v2, err)
	}
	w.server.Withdraw(exportID)
	late := w.dial()
	_, err = late.Getattr(ctx, h)
	wantStatus(t, err, nfsclient.Stale)
}
