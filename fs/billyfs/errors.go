package billyfs

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/go-git/go-billy/v5"

	"livemount/fs"
)

// cause turns an error of the tree into one that package os knows. An errno that says it all stands alone, because
// os.IsNotExist looks no deeper; a failure keeps its text.
func cause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return err
	}
	if errno = fs.Errno(err); errno == syscall.EIO {
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
