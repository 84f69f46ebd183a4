package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"

	"livemount/fs"
	"livemount/internal/errs"
)

// status answers a request that ended with err. The kernel keeps nothing of the text, so what is not the
// caller's doing is logged here.
func (r *raw) status(op string, node uint64, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	switch errs.KindOf(err) {
	case errs.Canceled, errs.Invalid, errs.NotFound, errs.Denied, errs.Exists:
	default:
		r.logFailure(op, node, err)
	}
	return fuse.Status(fs.Errno(err))
}

// logFailure logs the 1st, 2nd, 4th, 8th … failure of the mount: a guest that scans a bad disk must not
// fill the log.
func (r *raw) logFailure(op string, node uint64, err error) {
	if n := r.failures.Add(1); n&(n-1) == 0 {
		r.log.Error("request failed", "op", op, "node", node, "failures", n, "error", err)
	}
}
