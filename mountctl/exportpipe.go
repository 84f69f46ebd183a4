package mountctl

import (
	"context"
	"errors"
	"io"
	"os/signal"
	"syscall"

	"livemount/internal/errs"
)

// pipe writes an export in order, holes as zeroes.
type pipe struct {
	w      io.Writer
	at     int64
	zeroes []byte
}

// toPipe writes all to standard output.
func (x *exporter) toPipe(ctx context.Context, w io.Writer) error {
	// Without this the kernel would end us silently when nobody reads any more.
	signal.Ignore(syscall.SIGPIPE)
	p := &pipe{w: w}
	if err := x.run(ctx, 0, p); err != nil {
		return err
	}
	return p.fill(ctx, x.size)
}

func (p *pipe) put(ctx context.Context, b []byte, off int64) error {
	if err := p.fill(ctx, off); err != nil {
		return err
	}
	return p.write(b)
}

// fill writes zeroes up to off.
func (p *pipe) fill(ctx context.Context, off int64) error {
	if p.zeroes == nil {
		p.zeroes = make([]byte, exportPiece)
	}
	for p.at < off {
		if ctx.Err() != nil {
			return errs.New(errs.Canceled, "interrupted: %w", ctx.Err())
		}
		if err := p.write(p.zeroes[:min(exportPiece, off-p.at)]); err != nil {
			return err
		}
	}
	return nil
}

func (p *pipe) write(b []byte) error {
	n, err := p.w.Write(b)
	p.at += int64(n)
	if errors.Is(err, syscall.EPIPE) {
		return errs.New(errs.Canceled, "nobody reads standard output any more, after %s", size(p.at))
	}
	return err
}
