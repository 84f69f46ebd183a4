package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	gonfs "github.com/willscott/go-nfs"
	"github.com/willscott/go-nfs/helpers"

	"livemount/blockdev"
	"livemount/fs"
	"livemount/fs/billyfs"
	"livemount/fs/datastore/dstest"
	"livemount/internal/clock"
	"livemount/internal/vfs"
	"livemount/nfsd"
	"livemount/snapshotchain"
)

// openPoint opens the store of a daemon that has ended, and the only disk of the newest point. cache is for decoded
// chunks, in bytes.
func openPoint(ctx context.Context, data string, files vfs.FS, cache int64) (*snapshotchain.Store, blockdev.Reader, error) {
	s, err := snapshotchain.Open(ctx, snapshotchain.Options{Dir: data, FS: files, Clock: clock.System{}, ChunkCache: cache})
	if err != nil {
		return nil, nil, err
	}
	_, p, err := s.Resolve(ctx, "vm@latest", time.Now(), time.UTC)
	if err != nil {
		return nil, nil, errors.Join(err, s.Close(ctx))
	}
	d, err := s.OpenDisk(ctx, &p.Disks[0])
	if err != nil {
		return nil, nil, errors.Join(err, s.Close(ctx))
	}
	return s, d, nil
}

// openDatastore puts a new overlay over a disk, and a datastore over that, as a mount does.
func openDatastore(ctx context.Context, dir string, disk blockdev.Reader) (*dstest.Opened, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return dstest.Open(ctx, dstest.Options{FS: vfs.OS{}, Dir: filepath.Join(dir, "log"), Disk: disk})
}

// A child is this program as a server, so that what a server needs can be told from what the client needs. Its arguments
// are one of these and the folder of a store that nobody else has open; its listener is file 3.
const (
	childGoNFS = "serve-go-nfs" // github.com/willscott/go-nfs
	childSlow  = "serve-slow"   // nfsd, on a store that is far away
)

type child struct {
	nfsServer
	*background
}

// child starts one and waits until it serves the file below an export.
func (n *nfsBench) child(ctx context.Context, kind, data, export string) (*child, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close() // the child has it by then
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := command(ctx, self, kind, data)
	p.cmd.ExtraFiles = []*os.File{f}
	r, err := p.start()
	if err != nil {
		return nil, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	c := &child{nfsServer{name: kind, pid: r.pid(), dial: dialLocal, port: port}, r}
	if err := c.open(ctx, port, export, "web", "sda-flat.vmdk"); err != nil { // where dstest puts the disk
		r.stop()
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	return c, nil
}

// isChild says whether these are the arguments of a child.
func isChild(args []string) bool {
	return len(args) == 3 && (args[1] == childGoNFS || args[1] == childSlow)
}

// serveChild serves until ctx ends.
func serveChild(ctx context.Context, kind, data string) error {
	files, cache, serve := vfs.FS(vfs.OS{}), int64(0), serveGoNFS
	if kind == childSlow {
		d := &delay{}
		files, cache, serve = slowFS{vfs.OS{}, d}, slowCache, d.serve
	}
	store, disk, err := openPoint(ctx, data, files, cache)
	if err != nil {
		return err
	}
	ds, err := openDatastore(ctx, filepath.Join(data, kind), disk)
	if err != nil {
		return errors.Join(err, store.Close(ctx))
	}
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err == nil {
		err = serve(ctx, l, ds, disk)
	}
	if ctx.Err() != nil { // it was told to end
		err = nil
	}
	ctx = context.WithoutCancel(ctx)
	return errors.Join(err, ds.Close(ctx), store.Close(ctx))
}

// serveGoNFS serves a datastore with go-nfs. Only few handles are in use.
func serveGoNFS(ctx context.Context, l net.Listener, tree fs.Mutable, _ blockdev.Reader) error {
	gonfs.Log.SetLevel(gonfs.PanicLevel)
	h := helpers.NewCachingHandler(helpers.NewNullAuthHandler(billyfs.New(tree, billyfs.Options{})), 1024)
	defer context.AfterFunc(ctx, func() { l.Close() })()
	return (&gonfs.Server{Handler: h, Context: ctx}).Serve(l)
}

const slowExport = "/bench"

// serveNFSD serves a datastore with nfsd.
func serveNFSD(ctx context.Context, l net.Listener, tree fs.Mutable) error {
	s, err := nfsd.New(nfsd.Options{Key: [32]byte{7}})
	if err != nil {
		return err
	}
	defer s.Close()
	err = s.Put(&nfsd.Export{
		ID: 1, Path: slowExport, Tree: tree, Traffic: &nfsd.Traffic{}, Clients: func() []netip.Addr { return nil },
		Rules:   []nfsd.Rule{{Network: netip.MustParsePrefix("127.0.0.0/8"), Insecure: true}},
		Mounted: func(netip.Addr, string, bool) error { return nil },
	})
	if err != nil {
		return err
	}
	return s.ServeTCP(ctx, l)
}
