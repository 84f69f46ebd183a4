package overlay

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"livemount/internal/errs"
)

// cleaner gives the space of dead payload back.
type cleaner struct {
	checkpointSeq   atomic.Uint64
	checkpointBytes atomic.Int64
	checkpointAt    atomic.Int64 // logBytes when the newest checkpoint was made
	deadAfter       atomic.Int64 // dead bytes that the last clean-up left behind
	notBefore       atomic.Int64 // Unix nanoseconds; after a failure the next try waits

	busy   chan struct{} // holds one token while a clean-up runs
	wake   chan struct{}
	cancel context.CancelFunc // nil without a goroutine
	wait   sync.WaitGroup

	number uint64 // of the newest checkpoint; guarded by busy

	running atomic.Bool // the background is cleaning up
	paceMu  sync.Mutex  // guards stepped
	stepped chan struct{}
}

// retryAfter is how long the background rests after a clean-up that failed.
const retryAfter = time.Second

// replaySegments is how many segments may be written before a checkpoint shortens the next Open.
const replaySegments = 16

func (c *cleaner) init() {
	c.busy, c.wake, c.stepped = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{})
}

// background starts the goroutine that cleans up; Close stops it.
func (l *Log) background() {
	if l.opts.NoBackground {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.cleaner.cancel = cancel
	l.cleaner.wait.Go(func() { l.cleanLoop(ctx) })
	l.cleaner.consider(l, nil)
}

func (c *cleaner) stop() {
	if c.cancel != nil {
		c.cancel()
		c.wait.Wait()
	}
}

func (l *Log) cleanLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.cleaner.wake:
		}
		l.cleaner.running.Store(true)
		err := l.Clean(ctx)
		l.cleaner.running.Store(false)
		l.cleaner.step()
		if err != nil && ctx.Err() == nil {
			l.cleaner.notBefore.Store(l.opts.Clock.Now().Add(retryAfter).UnixNano())
			l.opts.Log.Warn("overlay clean-up failed", "folder", l.opts.Dir, "error", err)
		}
		l.cleaner.consider(l, nil)
	}
}

// step lets the writers go on that wait for the clean-up to get somewhere.
func (c *cleaner) step() {
	c.paceMu.Lock()
	defer c.paceMu.Unlock()
	close(c.stepped)
	c.stepped = make(chan struct{})
}

// pace makes a writer wait for one step of a running clean-up when that does not keep up, so that the
// space of the log is bounded. It never waits for a clean-up that does not run.
func (c *cleaner) pace(ctx context.Context, l *Log) error {
	if !c.running.Load() || !l.behind() {
		return nil
	}
	c.paceMu.Lock()
	stepped := c.stepped
	c.paceMu.Unlock()
	if !c.running.Load() {
		return nil
	}
	select {
	case <-stepped:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// behind says that clean-up does not keep up: more is dead than one and a quarter of what is live.
func (l *Log) behind() bool {
	l.index.RLock()
	live := l.live.bytes
	l.index.RUnlock()
	return l.logBytes.Load()-live > live+live/4+4*l.opts.SegmentBytes
}

// consider wakes the background when there is enough to gain, or when a writer found the disk full.
func (c *cleaner) consider(l *Log, err error) {
	if c.cancel == nil {
		return
	}
	full := errs.Is(err, errs.NoSpace) && l.deadBytes() > c.deadAfter.Load()
	if !full && !l.worthCleaning() {
		return
	}
	if t := c.notBefore.Load(); t != 0 && l.opts.Clock.Now().UnixNano() < t {
		return
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// worthCleaning keeps the log below twice its live bytes and a segment or two.
func (l *Log) worthCleaning() bool {
	slack, total := l.opts.SegmentBytes, l.logBytes.Load()
	if total-l.cleaner.checkpointAt.Load() > replaySegments*slack {
		return true
	}
	if total <= 2*slack {
		return false
	}
	l.index.RLock()
	live := l.live.bytes
	l.index.RUnlock()
	dead := total - live
	return dead > live+slack && dead > l.cleaner.deadAfter.Load()+slack
}

// Clean gives back space: it copies the live data of some segments that are mostly dead to the head,
// writes a checkpoint and removes the segments without live data. One runs at a time; it is a bounded
// amount of work, and several may be needed to get all. It must not be called during or after Close.
func (l *Log) Clean(ctx context.Context) error {
	select {
	case l.cleaner.busy <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-l.cleaner.busy }()
	// A full disk ends the copying, but segments that are empty already can still go.
	if err := l.copyForward(ctx); err != nil && !errs.Is(err, errs.NoSpace) {
		return err
	}
	if err := l.leaveDeadHead(); err != nil && !errs.Is(err, errs.NoSpace) {
		return err
	}
	before := l.logBytes.Load()
	if err := l.checkpoint(ctx); err != nil {
		return err
	}
	l.cleaner.deadAfter.Store(0)
	if before-l.logBytes.Load() < l.opts.SegmentBytes {
		l.cleaner.deadAfter.Store(l.deadBytes()) // little to gain: wait for more
	}
	return nil
}

func (l *Log) deadBytes() int64 {
	l.index.RLock()
	defer l.index.RUnlock()
	return l.logBytes.Load() - l.live.bytes
}

// leaveDeadHead starts a new segment when the present one is mostly dead, so that it can be emptied.
func (l *Log) leaveDeadHead() error {
	l.appending.Lock()
	defer l.appending.Unlock()
	if err := l.writable(); err != nil || l.head == nil {
		return err
	}
	l.index.RLock()
	live := l.head.live
	l.index.RUnlock()
	if used := l.headEnd - segmentHeaderBytes; used == 0 || live > used/2 {
		return nil
	}
	return l.roll()
}

// checkpoint makes everything up to now durable in one file, and removes what it replaces. The order
// is: sync the records, sync and name the checkpoint, remove older checkpoints and dead segments.
func (l *Log) checkpoint(ctx context.Context) error {
	c := &l.cleaner
	s, err := l.snapshot(c.number + 1)
	if err != nil {
		return err
	}
	if err := l.syncAll(ctx); err != nil {
		return err
	}
	if err := l.writeCheckpoint(ctx, s); err != nil {
		return err
	}
	c.number++
	c.checkpointSeq.Store(s.head.nextSeq)
	c.checkpointBytes.Store(2 * s.head.imageBytes())
	if err := l.removeCheckpoints(c.number); err != nil {
		return err
	}
	err = l.removeSegments(s.dead)
	c.checkpointAt.Store(l.logBytes.Load())
	return err
}

// syncAll is Sync, and also makes the name of a head without records durable: a checkpoint points at it.
func (l *Log) syncAll(ctx context.Context) error {
	for {
		wait, lead, err := l.commits.join(^uint64(0), l.Err)
		if err != nil {
			return err
		}
		if lead {
			defer l.commits.leave()
			return l.commit()
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *Log) removeCheckpoints(newest uint64) error {
	names, err := l.fs.List(l.opts.Dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if n, ok := parseName(name, checkpointPrefix, ""); ok && n < newest {
			if err := l.fs.Remove(checkpointName(l.opts.Dir, n)); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeSegments removes files that no checkpoint and no replay needs any more. Readers that hold one
// keep reading.
func (l *Log) removeSegments(dead []*segment) error {
	for _, s := range dead {
		if err := l.fs.Remove(s.name); err != nil && !errs.Is(err, errs.NotFound) {
			return err
		}
		l.index.Lock()
		_, here := l.live.segments[uint32(s.number)]
		delete(l.live.segments, uint32(s.number))
		l.index.Unlock()
		if here {
			l.logBytes.Add(-s.used.Load())
			s.release()
		}
	}
	return nil
}

// victims are the segments to be emptied, those with the fewest live bytes first, until as little is
// dead as half of what is live. One clean-up copies no more than an eighth of what is live, because the
// copies need room before the originals go.
func (l *Log) victims() []*segment {
	l.appending.Lock()
	head := l.head
	l.appending.Unlock()
	l.index.RLock()
	defer l.index.RUnlock()
	var list []*segment
	dead := l.logBytes.Load() - l.live.bytes
	for _, s := range l.live.segments {
		switch {
		case s == head || s.pinned:
		case s.live == 0:
			dead -= s.used.Load()
		case s.live < s.used.Load()*3/4:
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b *segment) int {
		return cmp.Or(cmp.Compare(a.live*b.used.Load(), b.live*a.used.Load()), cmp.Compare(a.number, b.number))
	})
	budget := max(l.live.bytes/8, 2*l.opts.SegmentBytes)
	for i, s := range list {
		if budget -= s.live; dead <= l.live.bytes/2 || budget < 0 {
			return list[:i]
		}
		dead -= s.used.Load() - s.live
	}
	return list
}
