// Package clock is the only door to time. A Clock is passed to whatever needs one, so that tests can
// stop it; test/tidy fails on time.Now anywhere else.
package clock

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

// Clock tells the time.
type Clock interface {
	// Now is the wall-clock time with a monotonic reading, so that Sub measures what really passed.
	Now() time.Time
	// Ran is how long the machine has run: nobody can set it. Only differences mean something, and only while
	// the machine is up.
	Ran() time.Duration
}

// System is the machine's clock.
type System struct{}

// Now returns time.Now().
func (System) Now() time.Time { return time.Now() }

// Ran returns CLOCK_BOOTTIME, clock_gettime(2).
func (System) Ran() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("CLOCK_BOOTTIME: " + err.Error()) // Linux has it since 2.6.39
	}
	return time.Duration(ts.Nano())
}

// Sleep waits for d, or until ctx ends, whose error it returns then.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Fixed is a clock for tests that stands still until it is moved. It is not safe for use by several
// goroutines while it is being moved.
type Fixed struct{ T time.Time }

// Now returns the time that was set.
func (f *Fixed) Now() time.Time { return f.T }

// Ran returns what makes it advance with the time that is set.
func (f *Fixed) Ran() time.Duration { return f.T.Sub(time.Unix(0, 0)) }

// Advance moves the clock.
func (f *Fixed) Advance(d time.Duration) { f.T = f.T.Add(d) }
