package overlay

import (
	"context"

	"livemount/internal/errs"
)

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
	select {
	case c.wake <- struct{}{}:
	default:
	}
}
