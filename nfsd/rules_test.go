package nfsd_test

import (
	"bytes"
	"net/netip"
	"testing"

	"livemount/nfsd"
	"livemount/nfsd/oncrpc"
	"livemount/test/nfsclient"
)

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
