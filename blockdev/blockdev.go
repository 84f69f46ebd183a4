// Package blockdev is the waist of Livemount: every byte of every disk passes through these four
// interfaces. What serves bytes (FUSE, NFS, NBD, HTTP, the guest file system parsers) takes a Reader or
// a Device; what makes bytes (the chain, the overlay, images, an NBD client) returns one.
//
// A Reader is immutable: the same range gives the same bytes for as long as it is open. A Device can be
// written. All methods may be called from several goroutines. Offsets and lengths are bytes.
//
// Extents is mandatory, so that no decorator loses what is known about holes.
package blockdev

import (
	"context"
	"io"
	"iter"

	"livemount/internal/errs"
)

// PageSize is the unit of the block map and of change detection, in bytes.
const PageSize = 4096

// ReaderAt reads ranges.
type ReaderAt interface {
	// ReadAt fills all of p with the bytes at off, or returns an error: Invalid when the range is not
	// inside the device, Corrupt when stored bytes are bad. p is undefined after an error.
	ReadAt(ctx context.Context, p []byte, off int64) error
}

// WriterAt writes ranges.
type WriterAt interface {
	// WriteAt writes all of p at off, or returns an error; then the range holds its old bytes, its new
	// ones, or some of each until it is written again. p is not kept.
	WriteAt(ctx context.Context, p []byte, off int64) error
	// Sync returns nil only when every write and zero that returned before the call is on disk.
	Sync(ctx context.Context) error
}

// Reader is an immutable disk.
type Reader interface {
	ReaderAt
	// Size in bytes. It does not change.
	Size() int64
	// Extents yields what is known of [off, off+n), in order, adjoining, without gaps and covering the
	// range exactly. Adjoining extents of one kind may be split anywhere. An error ends the sequence.
	Extents(ctx context.Context, off, n int64) iter.Seq2[Extent, error]
	// Close releases what the Reader holds. It is called once.
	Close() error
}

// Device is a disk that can be written.
type Device interface {
	Reader
	WriterAt
	// Zero makes [off, off+n) read as zeroes and gives its space back.
	Zero(ctx context.Context, off, n int64) error
}

// Kind says what an extent holds.
type Kind uint8

// Data must be read to know what it holds. Zero reads as zeroes and was put there by somebody. Hole reads
// as zeroes because nothing was ever written there.
const (
	Data Kind = iota
	Zero
	Hole
)

func (k Kind) String() string {
	switch k {
	case Data:
		return "data"
	case Zero:
		return "zero"
	default:
		return "hole"
	}
}

// Extent is a range of one kind.
type Extent struct {
	Off, Len int64
	Kind     Kind
}

// End is the first offset behind the extent.
func (e Extent) End() int64 { return e.Off + e.Len }

// CheckRange returns an Invalid error unless [off, off+n) lies inside a device of the given size.
func CheckRange(size, off, n int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return errs.New(errs.Invalid, "range %d+%d is outside the device of %d bytes", off, n, size)
	}
	return nil
}

// One yields the range as a single extent.
func One(off, n int64, kind Kind) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		if n > 0 {
			yield(Extent{off, n, kind}, nil)
		}
	}
}

// Fail yields only the error.
func Fail(err error) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) { yield(Extent{}, err) }
}

// Section adapts a range of r to io.ReaderAt, for libraries that want one. ctx ends all its reads.
func Section(ctx context.Context, r Reader, off, n int64) *io.SectionReader {
	return io.NewSectionReader(stdReader{ctx, r}, off, n)
}

type stdReader struct {
	ctx context.Context
	r   Reader
}

func (s stdReader) ReadAt(p []byte, off int64) (int, error) {
	n := min(int64(len(p)), max(0, s.r.Size()-off))
	if n < int64(len(p)) && n <= 0 {
		return 0, io.EOF
	}
	if err := s.r.ReadAt(s.ctx, p[:n], off); err != nil {
		return 0, err
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}
