package fusefs

import (
	"log/slog"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"livemount/fs"
	"livemount/internal/errs"
)

func TestStatusIsTheErrno(t *testing.T) {
	r := newRaw(fs.New(fs.Options{}), Options{Log: slog.New(slog.DiscardHandler)})
	for _, err := range []error{nil, errs.New(errs.NoSpace, "x"), errs.New(errs.Exists, "y: %w", fs.NotEmpty)} {
		want := fuse.OK
		if err != nil {
			want = fuse.Status(fs.Errno(err))
		}
		if got := r.status("test", 1, err); got != want {
			t.Errorf("%v: got %v, want %v", err, got, want)
		}
	}
}
