package mountctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"livemount/internal/errs"
)

// device writes an export in place, holes as zeroes.
type device struct {
	f      *os.File
	at     int64
	zeroes []byte // made when the device does not zero ranges by itself
}

// toDevice writes to a block device that nobody else uses.
func (x *exporter) toDevice(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_EXCL, 0) // O_EXCL: not mounted, and no part of something else
	if err != nil {
		if errors.Is(err, syscall.EBUSY) {
			err = errs.WithTry(errs.New(errs.Busy, "%s is in use", path), "unmount it first")
		}
		return err
	}
	d := &device{f: f}
	err = x.fillDevice(ctx, d, path)
	return errors.Join(err, f.Close())
}

func (x *exporter) fillDevice(ctx context.Context, d *device, path string) error {
	have, err := d.f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if have < x.size {
		return errs.New(errs.NoSpace, "%s has %d bytes, and the %s image has %d", path, have, x.q.Format, x.size)
	}
	if err := x.run(ctx, 0, d); err != nil {
		return fmt.Errorf("%s is overwritten in part: %w", path, err)
	}
	if err := d.fill(ctx, x.size); err != nil {
		return err
	}
	return d.f.Sync()
}

func (d *device) put(ctx context.Context, p []byte, off int64) error {
	if err := d.fill(ctx, off); err != nil {
		return err
	}
	_, err := d.f.WriteAt(p, off)
	d.at = off + int64(len(p))
	return err
}

// zeroStep is how much is zeroed before an interruption is looked for.
const zeroStep = 1 << 30

// fill makes zeroes up to off.
func (d *device) fill(ctx context.Context, off int64) error {
	for d.at < off {
		if ctx.Err() != nil {
			return errs.New(errs.Canceled, "interrupted: %w", ctx.Err())
		}
		n := min(zeroStep, off-d.at)
		if d.zeroes != nil || !d.zeroOut(d.at, n) {
			if d.zeroes == nil {
				d.zeroes = make([]byte, exportPiece)
			}
			n = min(exportPiece, off-d.at)
			if _, err := d.f.WriteAt(d.zeroes[:n], d.at); err != nil {
				return err
			}
		}
		d.at += n
	}
	return nil
}

// zeroOut lets the device zero a range, which must be made of whole sectors (BLKZEROOUT: block/ioctl.c of Linux).
func (d *device) zeroOut(off, n int64) bool {
	span := [2]uint64{uint64(off), uint64(n)}
	_, _, e := unix.Syscall(unix.SYS_IOCTL, d.f.Fd(), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&span)))
	return e == 0
}
