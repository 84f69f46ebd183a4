package billyfs

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"livemount/fs"
	"livemount/internal/errs"
)

func TestEveryErrorHasAnErrno(t *testing.T) {
	for _, k := range errs.All() {
		if errnoOf(k) == 0 {
			t.Errorf("kind %v has no errno", k)
		}
	}
	seen := map[syscall.Errno]bool{}
	for _, r := range fs.Refusals() {
		e := errnoOfRefusal(r)
		if e == 0 || seen[e] {
			t.Errorf("%v: %v", r, e)
		}
		seen[e] = true
		if err := pathError("op", "path", errs.New(errs.Invalid, "x: %w", r)); !errors.Is(err, e) {
			t.Errorf("%v became %v", r, err)
		}
	}
	err := pathError("read", "path", errs.New(errs.Corrupt, "chunk 91c0: checksum mismatch"))
	if !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "91c0") || !errs.Is(err, errs.Corrupt) {
		t.Errorf("corrupt: %v", err)
	}
	if !os.IsPermission(pathError("op", "path", errs.New(errs.Denied, "no"))) {
		t.Error("denied is no permission")
	}
}
