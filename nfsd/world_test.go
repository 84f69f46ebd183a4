package nfsd_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"livemount/blockdev"
	"livemount/fs"
	"livemount/fs/datastore/dstest"
	"livemount/internal/vfs"
	"livemount/nfsd"
	"livemount/test/nfsclient"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantStatus(t testing.TB, err error, want nfsclient.Status) {
	t.Helper()
	var st nfsclient.Status
	if !errors.As(err, &st) || st != want {
		t.Errorf("got %v, want %v", err, want)
	}
}

const exportID = 0x1234_5678_9abc_def0

// world is a server over a datastore in a file system in memory.
type world struct {
	t      testing.TB
	mem    *vfs.Mem
	disk   blockdev.Reader
	ds     *dstest.Opened
	server *nfsd.Server
	export *nfsd.Export
	addr   string
	stop   func()

	mu      sync.Mutex // guards mounted
	mounted []netip.Addr
}

type options struct {
	rules []nfsd.Rule
	admit func(int64) error
	disk  blockdev.Reader
	fail  func(op vfs.Op, name string) error
	tree  func(fs.Mutable) fs.Mutable
}

func start(t testing.TB, o options) *world {
	t.Helper()
	w := &world{t: t, mem: vfs.NewMem(), disk: o.disk}
	if w.disk == nil {
		m := blockdev.NewMem(1 << 20)
		for i := range 256 {
			must(t, m.WriteAt(context.Background(), []byte{1, byte(i), 3}, int64(i)*4096))
		}
		w.disk = m
	}
	w.run(o)
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *world) run(o options) {
	w.t.Helper()
	ctx := context.Background()
	var err error
	var fsys vfs.FS = w.mem
	if o.fail != nil {
		fsys = &vfs.Faulty{FS: w.mem, Fail: o.fail}
	}
	w.ds, err = dstest.Open(ctx, dstest.Options{FS: fsys, Disk: w.disk, Admit: o.admit})
	must(w.t, err)
	w.server, err = nfsd.New(nfsd.Options{Key: [32]byte{7}})
	must(w.t, err)
	if o.rules == nil {
		o.rules = []nfsd.Rule{{Network: netip.MustParsePrefix("127.0.0.0/8"), Insecure: true}}
	}
	w.export = &nfsd.Export{ID: exportID, Path: "/web-1234", Tree: w.ds, Rules: o.rules, Traffic: &nfsd.Traffic{}, Mounted: w.note, Clients: w.clients}
	if o.tree != nil {
		w.export.Tree = o.tree(w.ds)
	}
	must(w.t, w.server.Put(w.export))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(w.t, err)
	w.addr = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- w.server.ServeTCP(ctx, l) }()
	w.stop = func() {
		w.server.Close()
		must(w.t, <-served)
		if err := w.ds.Close(ctx); o.fail == nil {
			must(w.t, err)
		}
	}
}

// crash ends the server as a kill would, and begins again: at another port, with the same handles.
func (w *world) crash(o options) {
	w.t.Helper()
	w.server.Close()
	w.mem = w.mem.CrashClone(rand.New(rand.NewPCG(1, 2)))
	w.run(o)
}

func (w *world) note(c netip.Addr, _ string, mounted bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mounted = slices.DeleteFunc(w.mounted, func(a netip.Addr) bool { return a == c })
	if mounted {
		w.mounted = append(w.mounted, c)
	}
	return nil
}

func (w *world) clients() []netip.Addr {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.mounted)
}

func (w *world) dial() *nfsclient.Client {
	w.t.Helper()
	c, err := nfsclient.Dial(w.t.Context(), w.addr)
	must(w.t, err)
	w.t.Cleanup(func() { c.Close() })
	return c
}

// root mounts, and returns the handles of the root and of the folder web.
func (w *world) root(c *nfsclient.Client) (root, web []byte) {
	w.t.Helper()
	root, err := c.MountPath(w.t.Context(), "/web-1234")
	must(w.t, err)
	web, err = c.MountPath(w.t.Context(), "/web-1234/web")
	must(w.t, err)
	return root, web
}
