// Package clock is the only door to time. A Clock is passed to whatever needs one, so that tests can
// stop it; test/tidy fails on time.Now anywhere else.
package clock

import "time"

// Clock tells the time.
type Clock interface {
	// Now is the wall-clock time with a monotonic reading, so that Sub measures what really passed.
	Now() time.Time
}

// System is the machine's clock.
type System struct{}

// Now returns time.Now().
func (System) Now() time.Time { return time.Now() }

// Fixed is a clock for tests that stands still until it is moved. It is not safe for use by several
// goroutines while it is being moved.
type Fixed struct{ T time.Time }

// Now returns the time that was set.
func (f *Fixed) Now() time.Time { return f.T }

// Advance moves the clock.
func (f *Fixed) Advance(d time.Duration) { f.T = f.T.Add(d) }
