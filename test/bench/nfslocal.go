package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
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
	return dstest.Open(ctx, dstest.Options{FS: vfs.OS{}, Dir: dir + "/log", Disk: disk})
}

// diskOnDatastore is where dstest puts the disk.
func diskOnDatastore() []string { return []string{"web", "sda-flat.vmdk"} }

// serveNFSD serves a datastore in this process, from a free port, until stop is called.
func serveNFSD(ctx context.Context, tree fs.Mutable) (*nfsServer, func() error, error) {
	server, err := nfsd.New(nfsd.Options{Key: [32]byte{7}})
	if err == nil {
		err = server.Put(&nfsd.Export{
			ID: 1, Path: "/bench", Tree: tree, Traffic: &nfsd.Traffic{}, Clients: func() []netip.Addr { return nil },
			Rules:   []nfsd.Rule{{Network: netip.MustParsePrefix("127.0.0.0/8"), Insecure: true}},
			Mounted: func(netip.Addr, bool) error { return nil },
		})
	}
	if err != nil {
		return nil, nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	served := make(chan error, 1)
	go func() { served <- server.ServeTCP(ctx, l) }()
	stop := func() error {
		server.Close()
		return <-served
	}
	port := l.Addr().(*net.TCPAddr).Port
	s := &nfsServer{name: "livemount", pid: os.Getpid(), dial: dialLocal, port: port}
	if err := s.open(ctx, port, "/bench", diskOnDatastore()...); err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	return s, stop, nil
}

// goNFSCommand makes this program a server, so that what it needs can be told from what the client needs.
const goNFSCommand = "serve-go-nfs"

// goNFS is github.com/willscott/go-nfs in a process of its own.
type goNFS struct {
	nfsServer
	*background
}

// goNFS starts the server on the copy of the store.
func (n *nfsBench) goNFS(ctx context.Context) (*goNFS, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close() // the server has it by then
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := command(ctx, self, goNFSCommand, n.copied)
	p.cmd.ExtraFiles = []*os.File{f}
	r, err := p.start()
	if err != nil {
		return nil, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	g := &goNFS{nfsServer{name: "go-nfs", pid: r.pid(), dial: dialLocal, port: port, once: true}, r}
	if err := g.open(ctx, port, "/", diskOnDatastore()...); err != nil {
		r.stop()
		return nil, fmt.Errorf("go-nfs: %w", err)
	}
	return g, nil
}

// serveGoNFS serves the disk of a store on the listener that is file 3, until ctx ends. Only few handles are in use.
func serveGoNFS(ctx context.Context, data string) error {
	store, disk, err := openPoint(ctx, data, vfs.OS{}, 0)
	if err != nil {
		return err
	}
	ds, err := openDatastore(ctx, data+"/go-nfs", disk)
	if err != nil {
		return errors.Join(err, store.Close(ctx))
	}
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err == nil {
		gonfs.Log.SetLevel(gonfs.PanicLevel)
		h := helpers.NewCachingHandler(helpers.NewNullAuthHandler(billyfs.New(ds, billyfs.Options{})), 1024)
		stop := context.AfterFunc(ctx, func() { l.Close() })
		err = (&gonfs.Server{Handler: h, Context: ctx}).Serve(l)
		stop()
	}
	if ctx.Err() != nil { // it was told to end
		err = nil
	}
	ctx = context.WithoutCancel(ctx)
	return errors.Join(err, ds.Close(ctx), store.Close(ctx))
}
