package fusefs

import (
	"context"
	"time"
)

// call is the context of a read: it ends when the kernel says that the caller was
// interrupted, or that the mount is gone. It costs no goroutine, unlike one derived with
// context.WithCancel.
//
// Other requests do not use it. The kernel interrupts them for any signal, also one
// that the caller handles and goes on after, and no program expects EINTR from a write, an fsync or an lseek of
// a regular file. So, as on a disk, they are finished once begun. (Buffered and O_DIRECT reads the kernel
// never interrupts: a killed process leaves the former at once and waits for the latter.)
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
