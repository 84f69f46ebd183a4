package nbd

import (
	"fmt"

	"livemount/internal/errs"
)

// Codes of errors on the wire, numbered as errno of Linux.
const (
	codePerm     = 1
	codeIO       = 5
	codeNoMem    = 12
	codeInval    = 22
	codeNoSpace  = 28
	codeOverflow = 75
	codeNotSup   = 95
	codeShutdown = 108
)

// codeOf is the table from kinds of errors to codes.
func codeOf(err error) uint32 {
	if err == nil {
		return 0
	}
	switch errs.KindOf(err) {
	case errs.Denied:
		return codePerm
	case errs.Invalid:
		return codeInval
	case errs.NoSpace:
		return codeNoSpace
	case errs.Canceled:
		return codeShutdown
	case errs.Other, errs.NotFound, errs.Exists, errs.Busy, errs.Corrupt, errs.Unreachable, errs.Newer, errs.CheckFailed:
		return codeIO
	}
	return codeIO
}

// kindOf is the reverse, for what a server answers.
func kindOf(code uint32) errs.Kind {
	switch code {
	case codePerm:
		return errs.Denied
	case codeInval, codeOverflow, codeNotSup:
		return errs.Invalid
	case codeNoSpace:
		return errs.NoSpace
	case codeShutdown:
		return errs.Unreachable
	default:
		return errs.Other
	}
}

func nameOf(code uint32) string {
	switch code {
	case codePerm:
		return "not permitted"
	case codeIO:
		return "input/output error"
	case codeNoMem:
		return "out of memory"
	case codeInval:
		return "invalid argument"
	case codeNoSpace:
		return "no space left"
	case codeOverflow:
		return "too large"
	case codeNotSup:
		return "not supported"
	case codeShutdown:
		return "the server is shutting down"
	default:
		return fmt.Sprintf("error %d", code)
	}
}

// answered is the error that a server sent for a command.
func answered(what string, code uint32, more string) error {
	if more != "" {
		more = ": " + more
	}
	return errs.New(kindOf(code), "%s: the NBD server answers: %s%s", what, nameOf(code), more)
}

// lies is the error of a peer that does not keep to the protocol.
func lies(format string, args ...any) error {
	return errs.New(errs.Invalid, "NBD protocol violation: %w", fmt.Errorf(format, args...))
}
