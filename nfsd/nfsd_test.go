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
	"testing"
	"time"

	"livemount/blockdev"
	"livemount/internal/errs"
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
