package nfsd

import (
	"errors"

	"livemount/fs"
	"livemount/internal/errs"
)

// status is an nfsstat3, RFC 1813 section 2.6.
type status uint32

const (
	statusOK          status = 0
	statusPerm        status = 1
	statusNoEnt       status = 2
	statusIO          status = 5
	statusAcces       status = 13
	statusExist       status = 17
	statusXDev        status = 18
	statusNotDir      status = 20
	statusIsDir       status = 21
	statusInval       status = 22
	statusFBig        status = 27
	statusNoSpc       status = 28
	statusROFS        status = 30
	statusNameTooLong status = 63
	statusNotEmpty    status = 66
	statusStale       status = 70
	statusBadHandle   status = 10001
	statusNotSync     status = 10002
	statusNotSupp     status = 10004
	statusTooSmall    status = 10005
	statusServerFault status = 10006
	statusJukebox     status = 10008
)

// statusOf is the one table from our errors to those of NFS. What may pass by waiting is JUKEBOX; bad bytes and our own
// failures are IO.
func statusOf(err error) status {
	if err == nil {
		return statusOK
	}
	var r fs.Refusal
	if errors.As(err, &r) {
		return statusOfRefusal(r)
	}
	return statusOfKind(errs.KindOf(err))
}

func statusOfKind(k errs.Kind) status {
	switch k {
	case errs.NotFound:
		return statusNoEnt
	case errs.Exists:
		return statusExist
	case errs.Invalid:
		return statusInval
	case errs.Denied:
		return statusAcces
	case errs.NoSpace:
		return statusNoSpc
	case errs.Busy, errs.Unreachable, errs.Canceled:
		return statusJukebox
	case errs.Other, errs.Corrupt, errs.Newer, errs.CheckFailed:
		return statusIO
	default:
		return statusServerFault // a new kind without a line here; a test finds it
	}
}

func statusOfRefusal(r fs.Refusal) status {
	switch r {
	case fs.NotFolder:
		return statusNotDir
	case fs.IsFolder:
		return statusIsDir
	case fs.NotEmpty:
		return statusNotEmpty
	case fs.NameTooLong:
		return statusNameTooLong
	case fs.ReadOnly:
		return statusROFS
	case fs.TooLarge:
		return statusFBig
	case fs.Unsupported:
		return statusNotSupp
	case fs.OutOfSync:
		return statusNotSync
	default:
		return statusServerFault
	}
}

// ofNode is statusOf where what is not there is the node that a handle names.
func ofNode(err error) status {
	if errs.Is(err, errs.NotFound) {
		return statusStale
	}
	return statusOf(err)
}
