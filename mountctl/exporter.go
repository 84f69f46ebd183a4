package mountctl

import (
	"context"
	"fmt"
	"io"

	"livemount/internal/errs"
	"livemount/server/api"
)

const (
	// exportPiece is what is written at a time.
	exportPiece = 1 << 20
	// maxGap is how many zeroes are rather taken over the connection than left out by another request.
	maxGap = 256 << 10
)

// exporter takes an export from livemountd.
type exporter struct {
	c     *api.Client
	q     api.ExportQuery
	etag  string
	size  int64
	first *api.Extents // from 0 on
	meter *meter
	notes io.Writer // for people
	done  exported
	buf   []byte
}

// sink takes the data of an export, ascending. All between two pieces, and behind the last one, is zeroes.
type sink interface {
	put(ctx context.Context, p []byte, off int64) error
}

func (x *exporter) result() *exported {
	x.done.SizeBytes, x.done.ElapsedSeconds = x.size, x.meter.elapsed().Seconds()
	return &x.done
}

// run gives all data from offset on to the sink.
func (x *exporter) run(ctx context.Context, from int64, to sink) error {
	x.buf = make([]byte, exportPiece)
	list := x.first
	for next := from; ; {
		if list == nil || next > 0 {
			var err error
			if list, err = x.extents(ctx, next); err != nil {
				return err
			}
		}
		for rest := list.Extents; len(rest) > 0; {
			n := near(rest)
			if err := x.ranges(ctx, rest[:n], to); err != nil {
				return err
			}
			rest = rest[n:]
		}
		if list.NextOffset == nil {
			return nil
		}
		next = *list.NextOffset
	}
}

func (x *exporter) extents(ctx context.Context, off int64) (*api.Extents, error) {
	list, err := x.c.Extents(ctx, &x.q, off)
	if err == nil && (list.ETag != x.etag || list.SizeBytes != x.size) {
		err = errs.New(errs.Invalid, "the disk is not what it was when the export began")
	}
	if err == nil && list.NextOffset != nil && *list.NextOffset <= off {
		err = fmt.Errorf("livemountd's list of extents does not go on at %d", off)
	}
	return list, err
}

// near is how many of the extents lie so near to each other that one request is for all of them.
func near(list []api.Range) int {
	n := 1
	for n < len(list) && list[n].Offset-(list[n-1].Offset+list[n-1].Length) <= maxGap {
		n++
	}
	return n
}

// ranges takes what lies near to each other. A connection that broke is tried again as long as something
// comes: the next answer says what was wrong.
func (x *exporter) ranges(ctx context.Context, list []api.Range, to sink) error {
	pos := list[0].Offset
	for {
		before := pos
		err := x.request(ctx, list, &pos, to)
		if err == nil || pos == before || !errs.Is(err, errs.Unreachable) {
			return err
		}
	}
}

// request takes the ranges from pos on, and moves that.
func (x *exporter) request(ctx context.Context, list []api.Range, pos *int64, to sink) error {
	last := list[len(list)-1]
	body, err := x.c.Export(ctx, &x.q, x.etag, *pos, last.Offset+last.Length-*pos)
	if err != nil {
		return err
	}
	defer body.Close()
	for _, r := range list {
		end := r.Offset + r.Length
		if end <= *pos {
			continue
		}
		if gap := r.Offset - *pos; gap > 0 {
			n, err := io.CopyN(io.Discard, body, gap)
			*pos += n
			if err != nil {
				return err
			}
		}
		if err := x.data(ctx, body, pos, end, to); err != nil {
			return err
		}
	}
	return nil
}

// data takes [pos, end).
func (x *exporter) data(ctx context.Context, body io.Reader, pos *int64, end int64, to sink) error {
	for *pos < end {
		p := x.buf[:min(exportPiece, end-*pos)]
		n, err := io.ReadFull(body, p)
		if n > 0 {
			if err := to.put(ctx, p[:n], *pos); err != nil {
				return err
			}
		}
		*pos += int64(n)
		x.done.WrittenBytes += int64(n)
		x.meter.show(x, *pos)
		if err != nil {
			return err
		}
	}
	return nil
}
