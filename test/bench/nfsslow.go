package main

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"livemount/blockdev"
	"livemount/fs/datastore/dstest"
	"livemount/internal/clock"
	"livemount/internal/vfs"
	"livemount/nfsd"
	"livemount/snapshotchain"
)

const (
	slowDelay = 5 * time.Millisecond
	slowTime  = 4 * time.Second
	slowCache = 1 << 20 // of decoded chunks: next to none
	probeGap  = time.Millisecond
)

// slowFS makes each read of a container take longer, as a store far away does.
type slowFS struct {
	vfs.FS
	delay *atomic.Int64 // nanoseconds
}

// Open implements vfs.FS.
func (f slowFS) Open(name string) (vfs.File, error) {
	file, err := f.FS.Open(name)
	if err != nil || !strings.HasSuffix(name, ".lmc") {
		return file, err
	}
	return slowFile{file, f.delay}, nil
}

type slowFile struct {
	vfs.File
	delay *atomic.Int64
}

// ReadAt implements vfs.File.
func (f slowFile) ReadAt(p []byte, off int64) (int, error) {
	if d := f.delay.Load(); d > 0 {
		time.Sleep(time.Duration(d))
	}
	return f.File.ReadAt(p, off)
}

// slow serves the point from a store that is far away: random reads keep the connection busy, and calls that need no
// disk must not wait behind them.
func (n *nfsBench) slow(ctx context.Context) error {
	progress("nfs: a slow store")
	delay := &atomic.Int64{}
	store, disk, err := openPoint(ctx, n.data, slowFS{vfs.OS{}, delay})
	if err != nil {
		return err
	}
	err = n.slowServed(ctx, disk, delay)
	return errors.Join(err, store.Close(ctx))
}

// openPoint opens the store of a daemon that has ended, and the only disk of the newest point.
func openPoint(ctx context.Context, data string, fs vfs.FS) (*snapshotchain.Store, blockdev.Reader, error) {
	s, err := snapshotchain.Open(ctx, snapshotchain.Options{Dir: data, FS: fs, Clock: clock.System{}, ChunkCache: slowCache})
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

// slowServed serves the disk in this process.
func (n *nfsBench) slowServed(ctx context.Context, disk blockdev.Reader, delay *atomic.Int64) error {
	s, stop, err := serveDisk(ctx, n.path("slow"), disk)
	if err != nil {
		return err
	}
	err = n.warmMap(ctx, disk)
	delay.Store(int64(slowDelay))
	if err == nil {
		err = n.measureSlow(ctx, s)
	}
	delay.Store(0)
	return errors.Join(err, stop())
}

// serveDisk serves a disk under an overlay, as a mount does, from a free port until stop is called.
func serveDisk(ctx context.Context, dir string, disk blockdev.Reader) (*nfsServer, func() error, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, nil, err
	}
	ds, err := dstest.Open(ctx, dstest.Options{FS: vfs.OS{}, Dir: dir + "/log", Disk: disk})
	if err != nil {
		return nil, nil, err
	}
	server, err := nfsd.New(nfsd.Options{Key: [32]byte{7}})
	if err == nil {
		err = server.Put(&nfsd.Export{
			ID: 1, Path: "/bench", Tree: ds, Traffic: &nfsd.Traffic{}, Clients: func() []netip.Addr { return nil },
			Rules:   []nfsd.Rule{{Network: netip.MustParsePrefix("127.0.0.0/8")}},
			Mounted: func(netip.Addr, bool) error { return nil },
		})
	}
	var l net.Listener
	if err == nil {
		l, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		return nil, nil, errors.Join(err, ds.Close(ctx))
	}
	served := make(chan error, 1)
	go func() { served <- server.ServeTCP(ctx, l) }()
	stop := func() error {
		server.Close()
		return errors.Join(<-served, ds.Close(ctx))
	}
	port := l.Addr().(*net.TCPAddr).Port
	s := &nfsServer{name: "livemount", pid: os.Getpid(), dial: dialLocal, port: port}
	if err := s.open(ctx, port, "/bench", "web", "sda-flat.vmdk"); err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	return s, stop, nil
}

// warmMap brings the leaves, and the slot tables of all containers, into their caches. No cache holds the chunks.
func (n *nfsBench) warmMap(ctx context.Context, disk blockdev.Reader) error {
	for _, err := range disk.Extents(ctx, 0, disk.Size()) {
		if err != nil {
			return err
		}
	}
	page := make([]byte, blockdev.PageSize)
	for off := n.large.from; off < n.large.from+n.large.size; off += 256 << 10 {
		if err := disk.ReadAt(ctx, page, off); err != nil {
			return err
		}
	}
	return nil
}

// measureSlow reads at random on one connection, and asks for attributes on it and on another all the while.
func (n *nfsBench) measureSlow(ctx context.Context, s *nfsServer) error {
	pipes, err := s.pipes(2, false)
	defer closeAll(pipes)
	if err != nil {
		return err
	}
	same, other := newProber(pipes[0], s.handle), newProber(pipes[1], s.handle)
	c := nfsCell{bytes: 4 << 10, random: true, depth: 32, region: n.large}
	var probers, reader sync.WaitGroup
	var failed [4]error
	probing := atomic.Bool{}
	probing.Store(true)
	began := time.Now()
	var calls int
	var wall time.Duration
	reader.Go(func() {
		calls, failed[0] = pipes[0].run(readCall(s.handle, c.bytes), c.depth, c.offsets(c.region, 5), func(int) bool { return !probing.Load() || ctx.Err() != nil })
		wall = time.Since(began)
	})
	reader.Go(func() { failed[1] = other.listen() })
	probers.Go(func() { failed[2] = same.ask(began.Add(slowTime)) })
	probers.Go(func() { failed[3] = other.ask(began.Add(slowTime)) })
	probers.Wait()
	probing.Store(false)
	pipes[1].conn.Close()
	reader.Wait()
	if !errors.Is(failed[1], net.ErrClosed) {
		return failed[1]
	}
	n.report.NFSSlow = nfsSlowRow{ms(slowDelay), float64(calls) / wall.Seconds(), other.probes(), same.probes()}
	return errors.Join(failed[0], failed[2], failed[3], ctx.Err())
}

// prober makes calls of GETATTR on a connection, one after the other, and notes how long each took.
type prober struct {
	p     *pipe
	call  *nfsCall
	came  chan struct{}
	times []time.Duration
}

func newProber(p *pipe, handle []byte) *prober {
	b := &prober{p: p, call: getattrCall(handle), came: make(chan struct{}, 1)}
	p.other = func(uint32) { b.came <- struct{}{} }
	return b
}

// ask calls until the time is over. Somebody else takes the answers.
func (b *prober) ask(end time.Time) error {
	for i := uint32(0); time.Now().Before(end); i++ {
		binary.BigEndian.PutUint32(b.call.b[markBytes:], 1<<31|i)
		began := time.Now()
		if _, err := b.p.conn.Write(b.call.b); err != nil {
			return err
		}
		select {
		case <-b.came:
		case <-time.After(nfsWait):
			return errors.New("GETATTR was not answered")
		}
		b.times = append(b.times, time.Since(began))
		time.Sleep(probeGap)
	}
	return nil
}

// listen takes answers until the connection is closed.
func (b *prober) listen() error {
	for {
		if _, err := b.p.answer(b.call); err != nil {
			return err
		}
	}
}

func (b *prober) probes() nfsProbes {
	return nfsProbes{len(b.times), ms(quantile(b.times, 0.5)), ms(quantile(b.times, 0.99)), ms(quantile(b.times, 1))}
}
