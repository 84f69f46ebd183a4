package overlay

import (
	"context"

	"livemount/internal/errs"
)

// checkpoint makes everything up to now durable in one file, and removes what it replaces. The order
// is: sync the records, sync and name the checkpoint, remove older checkpoints and dead segments.
func (l *Log) checkpoint(ctx context.Context) error {
	c := &l.cleaner
	s, err := l.snapshot(c.number + 1)
	if err != nil {
		return err
	}
	if err := l.syncAll(ctx, l.commit); err != nil {
		return err
	}
	if err := l.writeCheckpoint(ctx, l.opts.Dir, s); err != nil {
		return err
	}
	c.number++
	c.checkpointSeq.Store(s.head.nextSeq)
	c.checkpointBytes.Store(2 * s.head.imageBytes(l.form))
	if err := l.removeCheckpoints(c.number); err != nil {
		return err
	}
	err = l.removeSegments(s.dead)
	c.checkpointAt.Store(l.logBytes.Load())
	return err
}

// syncAll is Sync, and also makes the name of a head without records durable: a checkpoint points at it.
func (l *Log) syncAll(ctx context.Context, commit func() error) error {
	for {
		wait, lead, err := l.commits.join(^uint64(0), l.Err)
		if err != nil {
			return err
		}
		if lead {
			defer l.commits.leave()
			return commit()
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
