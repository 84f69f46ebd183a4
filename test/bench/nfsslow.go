package main

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"livemount/blockdev"
	"livemount/internal/vfs"
)

const (
	slowDelay = 5 * time.Millisecond
	slowTime  = 2 * time.Second
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
	store, disk, err := openPoint(ctx, n.data, slowFS{vfs.OS{}, delay}, slowCache)
	if err != nil {
		return err
	}
	err = n.slowServed(ctx, disk, delay)
	return errors.Join(err, store.Close(ctx))
}

// slowServed serves the disk in this process. The best of the rounds counts.
func (n *nfsBench) slowServed(ctx context.Context, disk blockdev.Reader, delay *atomic.Int64) error {
	ds, err := openDatastore(ctx, n.path("slow"), disk)
	if err != nil {
		return err
	}
	s, stop, err := serveNFSD(ctx, ds)
	if err != nil {
		return errors.Join(err, ds.Close(ctx))
	}
	err = n.warmMap(ctx, disk)
	delay.Store(int64(slowDelay))
	for i := 0; i < nfsRounds && err == nil; i++ {
		err = n.measureSlow(ctx, s)
	}
	delay.Store(0)
	return errors.Join(err, stop(), ds.Close(ctx))
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
	var probers, readers sync.WaitGroup
	var failed [4]error
	var rate float64
	var asked atomic.Bool
	end := time.Now().Add(slowTime)
	readers.Go(func() {
		rate, failed[0] = n.readAtRandom(s, pipes[0], func(int) bool { return asked.Load() || ctx.Err() != nil })
	})
	readers.Go(func() { failed[1] = other.listen() })
	probers.Go(func() { failed[2] = same.ask(end) })
	probers.Go(func() { failed[3] = other.ask(end) })
	probers.Wait()
	asked.Store(true)
	closeAll(pipes[1:])
	readers.Wait()
	if rate > n.report.NFSSlow.PerSecond {
		n.report.NFSSlow = nfsSlowRow{ms(slowDelay), rate, other.probes(), same.probes()}
	}
	return errors.Join(errors.Join(failed[:]...), ctx.Err())
}

// readAtRandom reads until it is over, and returns how often in a second.
func (n *nfsBench) readAtRandom(s *nfsServer, p *pipe, over func(int) bool) (float64, error) {
	c := nfsCell{bytes: 4 << 10, random: true, region: n.large}
	began := time.Now()
	calls, err := p.run(readCall(s.handle, c.bytes), 32, c.offsets(c.region, 5), over)
	return float64(calls) / time.Since(began).Seconds(), err
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

// listen takes answers until the connection is closed by this side.
func (b *prober) listen() error {
	for {
		if _, err := b.p.answer(b.call); errors.Is(err, net.ErrClosed) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func (b *prober) probes() nfsProbes {
	return nfsProbes{len(b.times), ms(quantile(b.times, 0.5)), ms(quantile(b.times, 0.99)), ms(quantile(b.times, 1))}
}
