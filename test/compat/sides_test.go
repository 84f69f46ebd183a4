// Package compat holds nfsd against another server of NFS version 3 that somebody else wrote:
// github.com/willscott/go-nfs, over the same kind of datastore through fs/billyfs. Both get the same calls, and answer
// the same where RFC 1813 says what the answer is. Each difference that is accepted stands in a list, with the section
// of the RFC that is on our side; one that is not there fails, and so does one that is gone.
//
// What the peer cannot do, and why it does not serve mounts, is shown here as well.
package compat_test

import (
	"context"
	"net"
	"net/netip"
	"testing"

	nfs "github.com/willscott/go-nfs"
	"github.com/willscott/go-nfs/helpers"

	"livemount/blockdev"
	"livemount/fs"
	"livemount/fs/billyfs"
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

const exportPath = "/store"

// side is one of the two servers, with a client.
type side struct {
	t    testing.TB
	name string
	addr string
	c    *nfsclient.Client
	h    map[string][]byte // handles that steps got, by the names that they gave them
}

func store(t testing.TB, disk blockdev.Reader) fs.Mutable {
	t.Helper()
	if disk == nil {
		disk = blockdev.NewMem(1 << 20)
	}
	ds, err := dstest.Open(context.Background(), dstest.Options{FS: vfs.NewMem(), Disk: disk})
	must(t, err)
	t.Cleanup(func() { ds.Close(context.Background()) })
	return ds
}

// ours serves a datastore through nfsd.
func ours(t testing.TB, tree fs.Mutable) *side {
	t.Helper()
	s, err := nfsd.New(nfsd.Options{Key: [32]byte{7}})
	must(t, err)
	must(t, s.Put(&nfsd.Export{
		ID: 1, Path: exportPath, Tree: tree, Traffic: &nfsd.Traffic{},
		Rules:   []nfsd.Rule{{Network: netip.MustParsePrefix("127.0.0.0/8"), Insecure: true}},
		Mounted: func(netip.Addr, string, bool) error { return nil }, Clients: func() []netip.Addr { return nil },
	}))
	l := listen(t)
	served := make(chan error, 1)
	go func() { served <- s.ServeTCP(context.Background(), l) }()
	t.Cleanup(func() {
		s.Close()
		must(t, <-served)
	})
	return client(t, "nfsd", l)
}

// theirs serves one through go-nfs.
func theirs(t testing.TB, tree fs.Mutable) *side {
	t.Helper()
	nfs.Log.SetLevel(nfs.PanicLevel) // it logs each refusal
	const handles = 1024
	h := helpers.NewCachingHandler(helpers.NewNullAuthHandler(billyfs.New(tree, billyfs.Options{})), handles)
	l := listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- (&nfs.Server{Handler: h, Context: ctx}).Serve(l) }()
	t.Cleanup(func() {
		cancel()
		l.Close()
		<-served
	})
	return client(t, "go-nfs", l)
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	return l
}

// client connects and mounts.
func client(t testing.TB, name string, l net.Listener) *side {
	t.Helper()
	s := &side{t: t, name: name, addr: l.Addr().String(), h: map[string][]byte{}}
	s.c = s.dial()
	root, err := s.c.MountPath(context.Background(), exportPath)
	must(t, err)
	s.h["root"] = root
	return s
}

func (s *side) dial() *nfsclient.Client {
	s.t.Helper()
	c, err := nfsclient.Dial(context.Background(), s.addr)
	must(s.t, err)
	s.t.Cleanup(func() { c.Close() })
	return c
}

// find looks a path up and keeps the handle under the last name.
func (s *side) find(names ...string) []byte {
	s.t.Helper()
	h := s.h["root"]
	for _, name := range names {
		next, _, err := s.c.Lookup(context.Background(), h, name)
		must(s.t, err)
		s.h[name], h = next, next
	}
	return h
}
