// Package errs classifies errors once, at the place where the kind is known.
//
// Every error that leaves a package of Livemount has a Kind. Translators (FUSE, NFS, NBD, HTTP, the
// command line) each hold one exhaustive table from Kind to their own code; nothing else looks inside
// an error. Context is added with fmt.Errorf and %w. Corrupt is never retried and never turned into
// zeroes.
package errs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Kind says what sort of failure an error is.
type Kind uint8

// The kinds. Their order is not stored anywhere; their names are (JSON field "kind" of the API).
const (
	Other       Kind = iota // our own bug, or a failure of the machine (EIO)
	NotFound                // the named thing does not exist
	Exists                  // the name is taken
	Busy                    // in use, pinned, or locked by somebody else
	Invalid                 // the request or its input is wrong
	Denied                  // not permitted
	NoSpace                 // a disk or a quota is full
	Corrupt                 // stored bytes fail their checksum or contradict each other
	Unreachable             // a server or device does not answer
	Canceled                // the caller gave up
	Newer                   // the store was written by a newer version
	CheckFailed             // a check that was asked for found something wrong
	kindEnd
)

type kindInfo struct {
	name string
	exit int
}

func info(k Kind) kindInfo {
	switch k {
	case NotFound:
		return kindInfo{"not_found", 10}
	case Exists:
		return kindInfo{"exists", 16}
	case Busy:
		return kindInfo{"busy", 11}
	case Invalid:
		return kindInfo{"invalid", 2}
	case Denied:
		return kindInfo{"denied", 12}
	case NoSpace:
		return kindInfo{"no_space", 15}
	case Corrupt:
		return kindInfo{"corrupt", 13}
	case Unreachable:
		return kindInfo{"unreachable", 14}
	case Canceled:
		return kindInfo{"canceled", 17}
	case Newer:
		return kindInfo{"newer", 18}
	case CheckFailed:
		return kindInfo{"check_failed", 19}
	default:
		return kindInfo{"error", 1}
	}
}

// String is the stable name of the kind, as in the API's JSON.
func (k Kind) String() string { return info(k).name }

// ExitCode is the exit status of a command that failed with this kind (see docs/CLI.md).
func (k Kind) ExitCode() int { return info(k).exit }

// ParseKind is the reverse of String; an unknown name is Other.
func ParseKind(name string) Kind {
	for k := Other; k < kindEnd; k++ {
		if k.String() == name {
			return k
		}
	}
	return Other
}

// All lists every kind, for tests that check a translator's table is exhaustive.
func All() []Kind {
	kinds := make([]Kind, 0, kindEnd)
	for k := Other; k < kindEnd; k++ {
		kinds = append(kinds, k)
	}
	return kinds
}

// Error is a classified error. Try, when set, is what the user can do about it.
type Error struct {
	Kind Kind
	Msg  string
	Try  string
	Err  error // cause, may be nil
}

func (e *Error) Error() string {
	switch {
	case e.Err == nil:
		return e.Msg
	case e.Msg == "":
		return e.Err.Error()
	default:
		return e.Msg + ": " + e.Err.Error()
	}
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// New makes an error of the given kind. %w works as in fmt.Errorf.
func New(kind Kind, format string, args ...any) error {
	return &Error{Kind: kind, Err: fmt.Errorf(format, args...)}
}

// As gives err the kind, keeping its text and chain. A nil err stays nil.
func As(kind Kind, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: kind, Err: err}
}

// WithTry adds what the user can do. The kind is kept. A nil err stays nil.
func WithTry(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: KindOf(err), Err: err, Try: fmt.Sprintf(format, args...)}
}

// TryOf returns the outermost advice in the chain, or "".
func TryOf(err error) string {
	var e *Error
	for errors.As(err, &e) {
		if e.Try != "" {
			return e.Try
		}
		err = e.Err
	}
	return ""
}

// KindOf finds the kind: the outermost classified error of the chain, else what the standard
// library's and the kernel's errors say, else Other.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	for _, c := range systemKinds() {
		if errors.Is(err, c.err) {
			return c.kind
		}
	}
	return Other
}

type systemKind struct {
	err  error
	kind Kind
}

func systemKinds() []systemKind {
	return []systemKind{
		{context.Canceled, Canceled},
		{context.DeadlineExceeded, Unreachable},
		{syscall.ENOSPC, NoSpace},
		{syscall.EDQUOT, NoSpace},
		{syscall.EBUSY, Busy},
		{fs.ErrNotExist, NotFound},
		{fs.ErrExist, Exists},
		{fs.ErrPermission, Denied},
	}
}

// Is reports whether err is of the kind.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }
