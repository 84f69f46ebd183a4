package fs

import (
	"errors"
	"syscall"

	"livemount/internal/errs"
)

// Errno is the kernel's error for one of a tree, never 0: that of the Refusal that err holds, else that of its kind. What
// a program can act upon gets its own code; bad bytes and our own failures are all EIO, which every file system and
// database knows.
func Errno(err error) syscall.Errno {
	errno := errnoOfKind(errs.KindOf(err))
	if r := Refusal(0); errors.As(err, &r) {
		errno = errnoOfRefusal(r)
	}
	if errno == 0 {
		return syscall.EIO
	}
	return errno
}

func errnoOfKind(kind errs.Kind) syscall.Errno {
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
		return syscall.EINTR
	case errs.Other, errs.Corrupt, errs.Newer, errs.CheckFailed:
		return syscall.EIO
	default:
		return 0 // a new kind without a line here; a test finds it
	}
}

func errnoOfRefusal(refusal Refusal) syscall.Errno {
	switch refusal {
	case NotFolder:
		return syscall.ENOTDIR
	case IsFolder:
		return syscall.EISDIR
	case NotEmpty:
		return syscall.ENOTEMPTY
	case NameTooLong:
		return syscall.ENAMETOOLONG
	case ReadOnly:
		return syscall.EROFS
	case TooLarge:
		return syscall.EFBIG
	case Unsupported:
		return syscall.ENOTSUP
	case OutOfSync:
		return syscall.EAGAIN
	default:
		return 0 // as in errnoOfKind
	}
}
