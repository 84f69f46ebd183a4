package snapshotchain

import (
	"context"
	"runtime"
	"sort"
	"sync"

	"golang.org/x/sync/errgroup"

	"livemount/blockdev"
	"livemount/internal/gate"
)

const (
	// pieceBytes is what one goroutine decodes of a large read, or ahead of one.
	pieceBytes = 256 << 10
	// aheadBytes is how far chunks are decoded ahead of a sequential reader.
	aheadBytes = 2 << 20
	// aheadAfter is how much must have been read in sequence before.
	aheadAfter = 512 << 10
	// slack is how far requests of a sequential reader may be out of order: the kernel sends several at once.
	slack = 2 << 20
	// maxStreams bounds the sequential readers that are known at a time.
	maxStreams = 16
)

// stream is a reader that seems to go through a disk in order.
type stream struct {
	disk  *Disk
	next  int64 // where it goes on
	read  int64 // in sequence so far
	ahead int64 // decoded, or being decoded, up to here
}

// ahead decodes chunks before they are asked for, into the chunk cache. It never makes a reader wait: when
// all its slots are busy it does less.
type ahead struct {
	ctx   context.Context // ends with the store
	stop  context.CancelFunc
	wg    sync.WaitGroup
	slots chan struct{}

	mu      sync.Mutex // guards what is below
	streams [maxStreams]stream
	oldest  int
	closed  bool
}

func newAhead() *ahead {
	a := &ahead{slots: make(chan struct{}, 2*runtime.GOMAXPROCS(0))}
	a.ctx, a.stop = context.WithCancel(context.Background())
	return a
}

// note learns of a read of [off, end) and begins to decode what comes next.
func (a *ahead) note(d *Disk, off, end int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.find(d, off)
	s.read += end - off
	s.next = max(s.next, end)
	if s.read < aheadAfter {
		return
	}
	s.ahead = max(s.ahead, s.next)
	for limit := min(d.Size(), s.next+aheadBytes); s.ahead < limit; {
		next := min(limit, s.ahead/pieceBytes*pieceBytes+pieceBytes)
		if !a.start(d, s.ahead, next) {
			return
		}
		s.ahead = next
	}
}

// find returns the stream that a read belongs to: a new one, in the place of the oldest, when there is none.
func (a *ahead) find(d *Disk, off int64) *stream {
	for i := range a.streams {
		if s := &a.streams[i]; s.disk == d && off >= s.next-slack && off <= s.next {
			return s
		}
	}
	s := &a.streams[a.oldest]
	a.oldest = (a.oldest + 1) % maxStreams
	*s = stream{disk: d, next: off}
	return s
}

// start decodes [off, end) in the background, unless there is no slot. The caller holds mu.
func (a *ahead) start(d *Disk, off, end int64) bool {
	if a.closed {
		return false
	}
	select {
	case a.slots <- struct{}{}:
	default:
		return false
	}
	leave, ok := d.s.opts.Gate.TryEnter(gate.Ahead)
	if !ok {
		<-a.slots
		return false
	}
	key := diskAt{d.seal.Lineage, d.seal.Seq}
	if d.s.pins.use(key) != nil { // the reader may close the disk before the end of this
		leave()
		<-a.slots
		return false
	}
	a.wg.Go(func() {
		defer func() { <-a.slots }()
		defer leave()
		defer d.s.pins.unuse(key)
		d.warm(a.ctx, off, end)
	})
	return true
}

// close waits for what is being decoded.
func (a *ahead) close() {
	a.mu.Lock()
	a.closed = true
	a.streams = [maxStreams]stream{}
	a.mu.Unlock()
	a.stop()
	a.wg.Wait()
}

// warm brings the chunks of [off, end) into the cache. An error is found again by whoever reads them.
func (d *Disk) warm(ctx context.Context, off, end int64) {
	for off < end {
		n := uint32(off / LeafBytes)
		runs, err := d.leaf(ctx, n)
		if err != nil {
			return
		}
		first, last := off%LeafBytes/blockdev.PageSize, (min(end, int64(n+1)*LeafBytes)-int64(n)*LeafBytes+blockdev.PageSize-1)/blockdev.PageSize
		for _, r := range runs {
			if int64(r.end()) <= first || int64(r.Page) >= last {
				continue
			}
			if _, err := d.s.chunks.Chunk(ctx, r.Ptr); err != nil {
				return
			}
		}
		off = int64(n+1) * LeafBytes
	}
}

// readParallel reads a large range on all cores. Whoever asks for so much at a time has a read-ahead of its
// own.
func (d *Disk) readParallel(ctx context.Context, p []byte, off int64) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for len(p) > 0 {
		n := d.pieceEnd(ctx, off, off+int64(len(p))) - off
		piece, at := p[:n:n], off // decoding may write up to its capacity
		g.Go(func() error { return d.readRange(ctx, piece, at, true) })
		p, off = p[len(piece):], off+int64(len(piece))
	}
	return g.Wait()
}

// pieceEnd is where a piece ends that begins at off, of a read up to end: behind the run that it would divide, so that no
// two pieces need one chunk, and each is decoded where its bytes are wanted.
func (d *Disk) pieceEnd(ctx context.Context, off, end int64) int64 {
	at := min(end, off-off%pieceBytes+pieceBytes)
	if at == end || at%LeafBytes == 0 {
		return at
	}
	runs, err := d.leaf(ctx, uint32(at/LeafBytes))
	if err != nil { // who reads there finds it again
		return at
	}
	page := at % LeafBytes / blockdev.PageSize
	i := sort.Search(len(runs), func(i int) bool { return int64(runs[i].end()) > page })
	if i == len(runs) || int64(runs[i].Page) >= page {
		return at
	}
	return min(end, at-at%LeafBytes+int64(runs[i].end())*blockdev.PageSize)
}
