package fusefs

import (
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"livemount/fs"
	"livemount/internal/errs"
)

// errnoOf is the one table from our kinds to the kernel's errors. What a program can act upon gets its own
// code; bad bytes and our own failures are all EIO, which every file system and database knows.
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
		return syscall.EINTR
	case errs.Other, errs.Corrupt, errs.Newer, errs.CheckFailed:
		return syscall.EIO
	default:
		return 0 // a new kind without a line here: status makes it EIO, a test finds it
	}
}

// errnoOfRefusal is the one table from what a Mutable tree refuses to the kernel's errors.
func errnoOfRefusal(refusal fs.Refusal) syscall.Errno {
	switch refusal {
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
		return 0 // as in errnoOf
	}
}

// status answers a request that ended with err. The kernel keeps nothing of the text, so what is not the
// caller's doing is logged here.
func (r *raw) status(op string, node uint64, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	kind := errs.KindOf(err)
	errno := errnoOf(kind)
	var refusal fs.Refusal
	if errors.As(err, &refusal) {
		errno = errnoOfRefusal(refusal)
	}
	switch kind {
	case errs.Canceled, errs.Invalid, errs.NotFound, errs.Denied, errs.Exists:
	default:
		r.logFailure(op, node, err)
	}
	if errno != 0 {
		return fuse.Status(errno)
	}
	return fuse.EIO
}

// logFailure logs the 1st, 2nd, 4th, 8th … failure of the mount: a guest that scans a bad disk must not
// fill the log.
func (r *raw) logFailure(op string, node uint64, err error) {
	if n := r.failures.Add(1); n&(n-1) == 0 {
		r.log.Error("request failed", "op", op, "node", node, "failures", n, "error", err)
	}
}
