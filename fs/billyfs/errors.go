package billyfs

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/go-git/go-billy/v5"

	"livemount/fs"
	"livemount/internal/errs"
)

// errnoOf is the one table from our kinds to errors of package syscall, which package os knows.
func errnoOf(kind errs.Kind) syscall.Errno {
	switch kind {
	case errs.NotFound:
		return syscall.ENOENT
	case errs.Exists:
		return syscall.EEXIST
	case errs.Busy:
		return syscall.EBUSY
	case errs.Invalid:
		return syscall.EINVAL
	case errs.Denied:
		return syscall.EACCES
	case errs.NoSpace:
		return syscall.ENOSPC
	case errs.Unreachable:
		return syscall.EREMOTEIO
	case errs.Canceled:
		return syscall.ECANCELED
	case errs.Other, errs.Corrupt, errs.Newer, errs.CheckFailed:
		return syscall.EIO
	default:
		return 0 // a new kind without a line here; a test finds it
	}
}

// errnoOfRefusal is the same for what a tree refuses.
func errnoOfRefusal(r fs.Refusal) syscall.Errno {
	switch r {
	case fs.NotFolder:
		return syscall.ENOTDIR
	case fs.IsFolder:
		return syscall.EISDIR
	case fs.NotEmpty:
		return syscall.ENOTEMPTY
	case fs.NameTooLong:
		return syscall.ENAMETOOLONG
	case fs.ReadOnly:
		return syscall.EROFS
	case fs.TooLarge:
		return syscall.EFBIG
	case fs.Unsupported:
		return syscall.ENOTSUP
	case fs.OutOfSync:
		return syscall.EAGAIN
	default:
		return 0
	}
}

// cause turns an error of the tree into one that package os knows. An errno that says it all stands alone, because
// os.IsNotExist looks no deeper; a failure keeps its text.
func cause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return err
	}
	var r fs.Refusal
	if errors.As(err, &r) {
		errno = errnoOfRefusal(r)
	} else {
		errno = errnoOf(errs.KindOf(err))
	}
	if errno == syscall.EIO || errno == 0 {
		return fmt.Errorf("%w: %w", syscall.EIO, err)
	}
	return errno
}

// pathError adds what was tried with which path. A nil err stays nil.
func pathError(op, path string, err error) error {
	if err == nil || errors.Is(err, billy.ErrCrossedBoundary) {
		return err
	}
	return &os.PathError{Op: op, Path: path, Err: cause(err)}
}

// linkError is pathError of what has two paths.
func linkError(op, from, to string, err error) error {
	if err == nil || errors.Is(err, billy.ErrCrossedBoundary) {
		return err
	}
	return &os.LinkError{Op: op, Old: from, New: to, Err: cause(err)}
}
