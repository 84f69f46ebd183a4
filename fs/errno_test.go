package fs

import (
	"fmt"
	"syscall"
	"testing"

	"livemount/internal/errs"
)

func TestEveryKindAndRefusalHasAnErrno(t *testing.T) {
	for _, k := range errs.All() {
		if errnoOfKind(k) == 0 {
			t.Errorf("kind %v has no errno", k)
		}
	}
	seen := map[syscall.Errno]Refusal{}
	for _, r := range Refusals() {
		want := errnoOfRefusal(r)
		if other, twice := seen[want]; want == 0 || twice {
			t.Errorf("%v: %v, as %v", r, want, other)
		}
		seen[want] = r
		if got := Errno(fmt.Errorf("x: %w", errs.New(errs.Exists, "y: %w", r))); got != want {
			t.Errorf("%v: got %v, want %v", r, got, want)
		}
	}
	for k, want := range map[errs.Kind]syscall.Errno{
		errs.Corrupt: syscall.EIO, errs.NoSpace: syscall.ENOSPC, errs.Canceled: syscall.EINTR,
	} {
		if got := Errno(errs.New(k, "z")); got != want {
			t.Errorf("%v: got %v, want %v", k, got, want)
		}
	}
}
