package snapshotchain

import (
	"encoding/json"
	"path/filepath"
	"sync"
	"time"

	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// storeClock is a time of the store's own, by which locks count. It advances with the running time of the machine,
// never goes back, and where it is behind the machine's clock, as after the store was closed for a while, it comes
// nearer by at most rate for each unit of running time. Setting the machine's clock opens no lock.
type storeClock struct {
	clock clock.Clock
	rate  float64

	mu  sync.Mutex // guards what is below
	at  time.Time
	ran time.Duration // of the machine, when it was at
}

func newStoreClock(c clock.Clock, rate float64, at time.Time) *storeClock {
	if at.IsZero() {
		at = c.Now().Round(0)
	}
	return &storeClock{clock: c, rate: rate, at: at.UTC(), ran: c.Ran()}
}

// now returns the store's time, and by how much the machine's clock is ahead of it.
func (c *storeClock) now() (at time.Time, ahead time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ran := c.clock.Ran()
	if passed := ran - c.ran; passed > 0 {
		c.at = c.at.Add(passed)
		if behind := c.clock.Now().Round(0).Sub(c.at); behind > 0 {
			c.at = c.at.Add(min(behind, time.Duration(float64(passed)*c.rate)))
		}
	}
	c.ran = ran
	return c.at, c.clock.Now().Round(0).Sub(c.at)
}

// clockFile is DIR/clock.
type clockFile struct {
	Time time.Time `json:"time"`
}

// openClock goes on with the later of the times that the file and the metadata have.
func (s *Store) openClock() {
	var f clockFile
	b, err := vfs.ReadChecked(vfs.OS{}, s.clockPath(), 1<<10)
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil && !errs.Is(err, errs.NotFound) {
		s.opts.Log.Warn("the store's clock was bad and goes on with the last change", "err", err)
		f.Time = time.Time{}
	}
	if s.cat.root.Clock.After(f.Time) {
		f.Time = s.cat.root.Clock
	}
	s.clock = newStoreClock(s.opts.Clock, s.opts.CatchUp, f.Time)
}

func (s *Store) clockPath() string { return filepath.Join(s.opts.Dir, "clock") }

// Time returns the store's own time, by which locks count, and how far the machine's clock is ahead of it.
func (s *Store) Time() (at time.Time, ahead time.Duration) { return s.clock.now() }

// keepTimeIfRoom is KeepTime unless the disk is too full for that.
func (s *Store) keepTimeIfRoom() error {
	if err := s.KeepTime(); err != nil && !errs.Is(err, errs.NoSpace) {
		return err
	}
	return nil
}

// KeepTime makes the store's time durable. What is not kept is lost when the process ends, and caught up with.
func (s *Store) KeepTime() error {
	if err := s.opts.AdmitCommit(); err != nil {
		return err
	}
	at, _ := s.clock.now()
	return vfs.WriteChecked(vfs.OS{}, s.clockPath(), mustJSON(&clockFile{at}))
}
