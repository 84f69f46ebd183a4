package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"livemount/blockdev"
	"livemount/blockdev/image"
	"livemount/internal/errs"
	"livemount/server/api"
	"livemount/snapshotchain"
)

const (
	// maxExports bounds the exports that send bytes at a time; one more is Busy.
	maxExports = 16
	// maxLists bounds the lists of extents and the comparisons that are made at a time; more wait.
	maxLists = 4
	// exportPiece is what an export reads and sends at a time, and keeps in memory.
	exportPiece = 1 << 20
	// qcow2Layout goes into the ETag. It is raised when AsQcow2 lays out the same disk in another way, so that
	// an export that was begun before is not continued.
	qcow2Layout = "qcow2-1"
)

// slots bounds what runs at a time. To take all of them is to wait until nothing runs.
type slots chan struct{}

func (s slots) try() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s slots) wait(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s slots) free() { <-s }

// drain waits until nothing runs; nothing can begin any more.
func (s slots) drain() {
	for range cap(s) {
		s <- struct{}{}
	}
}

// export is a disk of a point as the bytes of a file.
type export struct {
	blockdev.Reader
	vm   string
	disk string
	etag string // with its quotes
	pin  *snapshotchain.Pin
}

// end lets go of the disk and of its point.
func (e *export) end() {
	e.Close() // it never fails
	e.pin.Release()
}

// openExport opens what ?ref=VM@TIME&disk=NAME&format=FORMAT names.
func (s *Server) openExport(r *http.Request) (*export, error) {
	q := r.URL.Query()
	vm, p, err := s.store.Resolve(r.Context(), q.Get("ref"), s.clock.Now(), time.Local)
	if err != nil {
		return nil, err
	}
	d, err := diskOf(&p, q.Get("ref"), q.Get("disk"))
	if err != nil {
		return nil, err
	}
	format := q.Get("format")
	if format != "" && format != "raw" && format != "qcow2" {
		return nil, errs.WithTry(errs.New(errs.Invalid, "format %q is neither raw nor qcow2", format), "--format raw, or --format qcow2")
	}
	e := &export{vm: vm.Name, disk: d.Name}
	if e.pin, err = s.store.Pin(&p, "an export runs"); err != nil {
		return nil, err
	}
	disk, err := s.store.OpenDisk(r.Context(), d)
	if err != nil {
		e.pin.Release()
		return nil, err
	}
	e.Reader = disk
	kind := "raw"
	if format == "qcow2" {
		kind = qcow2Layout
		if e.Reader, err = image.AsQcow2(r.Context(), disk); err != nil {
			disk.Close() // it never fails
			e.pin.Release()
			return nil, err
		}
	}
	e.etag = fmt.Sprintf("%q", fmt.Sprintf("%s-%s-%d-%s", p.ID, d.Lineage, d.Seq, kind))
	return e, nil
}

// diskOf finds the disk of a point; without a name the point must have one only.
func diskOf(p *snapshotchain.Point, ref, name string) (*snapshotchain.PointDisk, error) {
	if d := p.Disk(name); d != nil {
		return d, nil
	}
	var names []string
	for i := range p.Disks {
		names = append(names, "--disk "+p.Disks[i].Name)
	}
	switch {
	case name != "":
		return nil, errs.WithTry(errs.New(errs.NotFound, "%s has no disk %q", ref, name), "%s", strings.Join(names, ", or "))
	case len(p.Disks) == 1:
		return &p.Disks[0], nil
	default:
		return nil, errs.WithTry(errs.New(errs.Invalid, "%s has %d disks", ref, len(p.Disks)), "%s", strings.Join(names, ", or "))
	}
}

// getExport sends the bytes of a disk, or the range that is asked for.
func (s *Server) getExport(r *http.Request) (int, any, error) {
	if !s.exporting.try() {
		return 0, nil, errs.WithTry(errs.New(errs.Busy, "%d exports run already", maxExports), "again when one of them has ended")
	}
	sent := false
	defer func() {
		if !sent { // an error, or a panic
			s.exporting.free()
		}
	}()
	d, err := s.prepareDownload(r)
	if err != nil {
		return 0, nil, err
	}
	sent = true
	return http.StatusOK, d, nil
}

// prepareDownload reads the first piece, so that what is bad there is told as an error of its own kind.
func (s *Server) prepareDownload(r *http.Request) (_ *download, err error) {
	e, err := s.openExport(r)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			e.end()
		}
	}()
	if list := r.Header.Values("If-Match"); len(list) > 0 && !matches(strings.Join(list, ","), e.etag) {
		err = &refused{err: errs.New(errs.Invalid, "the export is %s now, not %s", e.etag, strings.Join(list, ",")), status: http.StatusPreconditionFailed}
		return nil, err
	}
	part, err := rangeOf(r, e)
	if err != nil {
		return nil, err
	}
	d := &download{export: e, part: part, log: s.log, done: func() { e.end(); s.exporting.free() }}
	if r.Method != http.MethodHead {
		d.piece = make([]byte, min(part.n, exportPiece))
		err = e.ReadAt(r.Context(), d.piece, part.off)
	}
	return d, err
}

// matches says whether one of the entity tags of If-Match is etag (RFC 9110, section 13.1.1).
func matches(list, etag string) bool {
	for _, one := range strings.Split(list, ",") {
		if one = strings.TrimSpace(one); one == etag || one == "*" {
			return true
		}
	}
	return false
}

// span is what of an export is sent.
type span struct {
	off, n int64
	part   bool // it was asked for as a range
}

// rangeOf reads the header Range (RFC 9110, section 14). One range is honoured; several, and what is malformed
// or begins behind the end, are refused. Units that are not bytes are ignored.
func rangeOf(r *http.Request, e *export) (span, error) {
	size, whole := e.Size(), span{n: e.Size()}
	unit, spec, _ := strings.Cut(strings.Join(r.Header.Values("Range"), ","), "=")
	if !strings.EqualFold(unit, "bytes") {
		return whole, nil
	}
	if cond := r.Header.Get("If-Range"); cond != "" && cond != e.etag {
		return whole, nil
	}
	first, last, ok := strings.Cut(spec, "-")
	from, to := number(first), number(last)
	switch {
	case ok && first == "" && to > 0 && size > 0: // the last bytes
		n := min(to, size)
		return span{size - n, n, true}, nil
	case ok && from >= 0 && from < size && last == "":
		return span{from, size - from, true}, nil
	case ok && from >= 0 && from < size && to >= from:
		return span{from, min(to, size-1) - from + 1, true}, nil
	}
	return span{}, &refused{
		err: errs.New(errs.Invalid, "range %.100q is not one range inside the %d bytes", spec, size), status: http.StatusRequestedRangeNotSatisfiable,
		header: http.Header{"Content-Range": {fmt.Sprintf("bytes */%d", size)}},
	}
}

// number reads digits, -1 when there is anything else or nothing. What is too large is as large as can be.
func number(s string) int64 {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return -1
	}
	v, _ := strconv.ParseInt(s, 10, 64) // of digits only a range error is left, and then it is the largest
	return v
}

// download sends an export. It holds one of the slots.
type download struct {
	*export
	part  span
	piece []byte // the first one
	log   *slog.Logger
	done  func()
}

// ServeHTTP implements http.Handler. When a read fails after the first piece the connection is cut, so that
// nobody takes a part for the whole.
func (d *download) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer d.done()
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Length", strconv.FormatInt(d.part.n, 10))
	h.Set("Accept-Ranges", "bytes")
	h.Set("ETag", d.etag)
	status := http.StatusOK
	if d.part.part {
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", d.part.off, d.part.off+d.part.n-1, d.Size()))
		status = http.StatusPartialContent
	}
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return
	}
	if err := d.send(r.Context(), w); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// send writes piece by piece, and reads the next one meanwhile.
func (d *download) send(ctx context.Context, w http.ResponseWriter) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	next := make(chan error, 1)
	cur, other := d.piece, make([]byte, len(d.piece))
	for off, end := d.part.off, d.part.off+d.part.n; off < end; cur, other = other, cur {
		off += int64(len(cur))
		other = other[:min(int64(cap(other)), end-off)]
		go func(p []byte, off int64) { next <- d.ReadAt(ctx, p, off) }(other, off)
		_, sent := w.Write(cur)
		if sent != nil {
			stop()
		}
		read := <-next
		if sent != nil || ctx.Err() != nil {
			return errors.Join(sent, ctx.Err()) // the client is gone
		}
		if read != nil {
			d.log.Error("export broke off", "vm", d.vm, "disk", d.disk, "offset", off, "err", read)
			return read
		}
	}
	return nil
}

// getExtents tells where an export has data.
func (s *Server) getExtents(r *http.Request) (int, any, error) {
	if err := s.listing.wait(r.Context()); err != nil {
		return 0, nil, err
	}
	defer s.listing.free()
	e, err := s.openExport(r)
	if err != nil {
		return 0, nil, err
	}
	defer e.end()
	off, err := offsetOf(r)
	if err == nil {
		err = blockdev.CheckRange(e.Size(), off, 0)
	}
	if err != nil {
		return 0, nil, err
	}
	out := &api.Extents{SizeBytes: e.Size(), ETag: e.etag, Extents: []api.Range{}}
	for x, err := range e.Extents(r.Context(), off, e.Size()-off) {
		if err != nil {
			return 0, nil, err
		}
		if x.Kind == blockdev.Data && !addExtent(out, x) {
			break
		}
	}
	return http.StatusOK, out, nil
}

// addExtent joins an extent to the list, or, when that is full, says where to go on.
func addExtent(out *api.Extents, x blockdev.Extent) bool {
	last := len(out.Extents) - 1
	if last >= 0 && out.Extents[last].Offset+out.Extents[last].Length == x.Off {
		out.Extents[last].Length += x.Len
		return true
	}
	if len(out.Extents) == api.MaxExtents {
		out.NextOffset = &x.Off
		return false
	}
	out.Extents = append(out.Extents, api.Range{Offset: x.Off, Length: x.Len})
	return true
}

// offsetOf reads ?offset=N; without it, 0.
func offsetOf(r *http.Request) (int64, error) {
	text := r.URL.Query().Get("offset")
	if text == "" {
		return 0, nil
	}
	off, err := strconv.ParseInt(text, 10, 64)
	if err != nil || off < 0 {
		return 0, errs.New(errs.Invalid, "offset %.100q is not a number of bytes", text)
	}
	return off, nil
}
