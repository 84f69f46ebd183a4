package fusefs

import (
	"fmt"
	"log/slog"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"livemount/fs"
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

func TestEveryRefusalHasAnErrno(t *testing.T) {
	r := newRaw(fs.New(fs.Options{}), Options{Log: slog.New(slog.DiscardHandler)})
	seen := map[syscall.Errno]fs.Refusal{}
	for _, refusal := range fs.Refusals() {
		want := errnoOfRefusal(refusal)
		if other, twice := seen[want]; want == 0 || twice {
			t.Errorf("%v: %v, as %v", refusal, want, other)
		}
		seen[want] = refusal
		err := fmt.Errorf("x: %w", errs.New(errs.Exists, "y: %w", refusal))
		if got := r.status("test", 1, err); got != fuse.Status(want) {
			t.Errorf("%v: got %v, want %v", refusal, got, want)
		}
	}
}
