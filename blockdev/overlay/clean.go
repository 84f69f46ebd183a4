package overlay

import (
	"context"
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

	busy   chan struct{} // holds one token while a clean-up or a fork runs: segments keep their names
	wake   chan struct{}
	cancel context.CancelFunc // nil without a goroutine
	wait   sync.WaitGroup

	number uint64 // of the newest checkpoint; guarded by busy

	failure atomic.Pointer[error] // what the last clean-up in the background ended with
	running atomic.Bool           // the background is cleaning up
	paceMu  sync.Mutex            // guards stepped
	stepped chan struct{}
}

// retryAfter is how long the background rests after a clean-up that failed.
const retryAfter = time.Second

// replaySegments is how many segments may be written before a checkpoint shortens the next Open.
const replaySegments = 16

func (c *cleaner) init() {
	c.busy, c.wake, c.stepped = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{})
}

// CleanErr is why the last clean-up in the background failed, or nil: space does not come back then. That the disk was
// full is none: it goes on by itself.
func (l *Log) CleanErr() error {
	if err := l.cleaner.failure.Load(); err != nil && *err != nil && !errs.Is(*err, errs.NoSpace) {
		return errs.New(errs.KindOf(*err), "space of what was overwritten does not come back: %w", *err)
	}
	return nil
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
		err := l.cleanInBackground(ctx)
		if ctx.Err() == nil {
			l.cleanedUp(err)
		}
		if err != nil {
			rest(ctx, retryAfter)
		}
		l.cleaner.consider(l, nil) // also when nobody writes any more
	}
}

// cleanedUp keeps what a clean-up ended with, and logs a failure of another kind than the one before.
func (l *Log) cleanedUp(err error) {
	before := l.cleaner.failure.Swap(&err)
	if err != nil && (before == nil || *before == nil || errs.KindOf(*before) != errs.KindOf(err)) {
		l.opts.Log.Warn("overlay clean-up failed", "folder", l.opts.Dir, "error", err)
	}
}

func rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// cleanInBackground lets writers wait for it, but not while it waits for its turn itself.
func (l *Log) cleanInBackground(ctx context.Context) error {
	if err := l.cleaner.begin(ctx); err != nil {
		return err
	}
	defer l.cleaner.end()
	l.cleaner.running.Store(true)
	err := l.clean(ctx)
	l.cleaner.running.Store(false)
	l.cleaner.step()
	return err
}

// begin waits until no clean-up and no fork runs.
func (c *cleaner) begin(ctx context.Context) error {
	select {
	case c.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *cleaner) end() { <-c.busy }

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
	if err := l.cleaner.begin(ctx); err != nil {
		return err
	}
	defer l.cleaner.end()
	return l.clean(ctx)
}

func (l *Log) clean(ctx context.Context) error {
	dead := l.deadBytes() // what dies from here on is for the next one
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
		l.cleaner.deadAfter.Store(min(dead, l.deadBytes())) // little to gain: wait for more
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
	if used := l.headEnd - l.form.first(); used == 0 || live > used/2 {
		return nil
	}
	return l.roll()
}
