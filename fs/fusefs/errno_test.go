package fusefs

import (
	"syscall"
	"testing"

	"livemount/internal/errs"
)

func TestEveryKindHasAnErrno(t *testing.T) {
	for _, k := range errs.All() {
		if errnoOf(k) == 0 {
			t.Errorf("kind %v has no errno", k)
		}
	}
	for k, want := range map[errs.Kind]syscall.Errno{
		errs.Corrupt: syscall.EIO, errs.NoSpace: syscall.ENOSPC, errs.Canceled: syscall.EINTR,
	} {
		if got := errnoOf(k); got != want {
			t.Errorf("%v: got %v, want %v", k, got, want)
		}
	}
}
