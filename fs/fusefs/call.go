package fusefs

import (
	"context"
	"time"
)

// call is the context of one request: it ends when the kernel says that nobody waits for the answer any
// more. It costs no goroutine, unlike one derived with context.WithCancel.
type call struct{ cancel <-chan struct{} }

// Deadline implements context.Context: a kernel waits for ever.
func (call) Deadline() (time.Time, bool) { return time.Time{}, false }

// Done implements context.Context.
func (c call) Done() <-chan struct{} { return c.cancel }

// Err implements context.Context.
func (c call) Err() error {
	select {
	case <-c.cancel:
		return context.Canceled
	default:
		return nil
	}
}

// Value implements context.Context.
func (call) Value(any) any { return nil }
