package overlay

import (
	"context"
	"sync"
	"sync/atomic"

	"livemount/internal/errs"
)

// committer lets all who wait for the disk share one fdatasync.
type committer struct {
	rounds atomic.Int64

	mu     sync.Mutex    // guards the fields below
	synced uint64        // sequence number of the last record on disk
	done   chan struct{} // closed when the running round ends; nil when none runs
}

// Sync returns nil only when every record written before the call is on disk. A round that ctx's owner
// leads is finished also when ctx ends.
func (l *Log) Sync(ctx context.Context) error {
	target := l.seq.Load()
	for {
		wait, lead, err := l.commits.join(target, l.Err)
		if err != nil || wait == nil {
			return err
		}
		if lead {
			err := l.commit()
			l.commits.leave()
			if err != nil {
				return err
			}
			continue
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// join returns nil when target is on disk, else the round to wait for, or to lead.
func (c *committer) join(target uint64, failed func() error) (wait chan struct{}, lead bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := failed(); err != nil {
		return nil, false, err
	}
	if c.synced >= target {
		return nil, false, nil
	}
	if c.done == nil {
		c.done, lead = make(chan struct{}), true
	}
	return c.done, lead, nil
}

func (c *committer) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.done)
	c.done = nil
}

func (c *committer) set(seq uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.synced = seq
}

// round is what one commit makes durable.
type round struct {
	segments []*segment
	names    bool
	end      Position
	seq      uint64
	last     essentials
	epoch    uint32
}

// commit makes all that was written so far durable. One runs at a time. An error fails the log: the
// kernel may have dropped the pages, and a second fdatasync would prove nothing.
func (l *Log) commit() error {
	r, err := l.commitRecords()
	if err != nil {
		return err
	}
	if err := l.mark.write(r.epoch, r.end, r.seq, r.last); err != nil {
		// The data is on disk; only the evidence is older. The next commit writes it again.
		l.opts.Log.Warn("overlay mark was not written", "folder", l.opts.Dir, "error", err)
	}
	return nil
}

// commitProof is commit, and makes the evidence durable as well.
func (l *Log) commitProof() error {
	r, err := l.commitRecords()
	if err == nil {
		err = l.mark.write(r.epoch, r.end, r.seq, r.last)
	}
	if err == nil {
		err = l.mark.file.Sync()
	}
	return err
}

func (l *Log) commitRecords() (round, error) {
	r, err := l.takeRound()
	if err != nil {
		return r, err
	}
	err = l.syncRound(r)
	for _, s := range r.segments {
		s.release()
	}
	if err != nil {
		return r, l.fail(err)
	}
	l.commits.rounds.Add(1)
	l.appending.Lock()
	l.synced = r.end
	l.appending.Unlock()
	l.commits.set(r.seq)
	return r, nil
}

func (l *Log) takeRound() (round, error) {
	l.appending.Lock()
	defer l.appending.Unlock()
	if l.closed { // its list of segments is gone, and an empty round would prove nothing
		return round{}, errs.New(errs.Invalid, "overlay log %s is closed", l.opts.Dir)
	}
	l.prewrite()
	r := round{l.unsynced, l.namesNew, l.end, l.seq.Load(), l.last, l.epoch}
	l.unsynced, l.namesNew = nil, false
	return r, nil
}

func (l *Log) syncRound(r round) error {
	for _, s := range r.segments {
		if err := s.file.Sync(); err != nil {
			return err
		}
	}
	if r.names {
		return l.fs.SyncDir(l.opts.Dir)
	}
	return nil
}

// prewrite writes zeroes ahead of the head, because an fdatasync over blocks that are written already
// needs no commit of the file system's journal. Streams without syncs never come here with little
// written since the last sync, and gain nothing. The caller holds appending.
func (l *Log) prewrite() {
	want := l.opts.PrewriteBytes
	if want <= 0 || l.noRoom || l.head == nil || l.end.Segment != l.head.number {
		return
	}
	ahead := l.head.ready - l.headEnd
	grown := l.end.Segment == l.synced.Segment && l.end.Offset-l.synced.Offset > want/4
	n := min(want, l.opts.SegmentBytes-l.head.ready)
	if grown || ahead > min(prewriteLow, want/4) || n <= 0 {
		return
	}
	if err := l.opts.Admit(n); err != nil {
		l.noRoom = true
		return
	}
	buf := l.buffers.Get().(*[]byte)
	defer l.buffers.Put(buf)
	clear(*buf)
	for n > 0 {
		part := (*buf)[:min(n, int64(len(*buf)))]
		if _, err := l.head.file.WriteAt(part, l.head.ready); err != nil {
			l.noRoom = true // records may still fit; they will say so themselves
			return
		}
		l.head.ready += int64(len(part))
		n -= int64(len(part))
	}
}

// prewriteLow is how few bytes ahead of the head call for more.
const prewriteLow = 256 << 10
