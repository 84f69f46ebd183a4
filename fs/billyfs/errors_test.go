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

func TestErrorsAreThoseOfPackageOS(t *testing.T) {
	if err := pathError("op", "path", errs.New(errs.Invalid, "x: %w", fs.NotEmpty)); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Errorf("not empty: %v", err)
	}
	err := pathError("read", "path", errs.New(errs.Corrupt, "chunk 91c0: checksum mismatch"))
	if !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "91c0") || !errs.Is(err, errs.Corrupt) {
		t.Errorf("corrupt: %v", err)
	}
	if !os.IsPermission(pathError("op", "path", errs.New(errs.Denied, "no"))) {
		t.Error("denied is no permission")
	}
}
