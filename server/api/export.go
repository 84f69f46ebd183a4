package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"livemount/internal/errs"
)

// ExportQuery says what GET /v1/export and GET /v1/extents are asked for.
type ExportQuery struct {
	Ref    string // VM@TIME
	Disk   string // may be empty when the point has one disk
	Format string // raw or qcow2; empty is raw
}

func (q *ExportQuery) values() url.Values {
	return url.Values{"ref": {q.Ref}, "disk": {q.Disk}, "format": {q.Format}}
}

// Extents is the body of GET /v1/extents?ref=VM@TIME&disk=NAME&format=FORMAT&offset=N: the ranges of the export
// that hold data, from offset on, ascending, adjoining ones joined. What is not named reads as zeroes.
type Extents struct {
	SizeBytes  int64   `json:"size_bytes"`
	ETag       string  `json:"etag"` // of GET /v1/export with the same ref, disk and format
	Extents    []Range `json:"extents"`
	NextOffset *int64  `json:"next_offset"` // where to go on; null at the end
}

// MaxExtents is how many extents one answer holds.
const MaxExtents = 65_536

// Diff is the body of GET /v1/diff?a=VM@TIME&b=VM@TIME[&disk=NAME][&extents=1][&offset=N].
type Diff struct {
	A     DiffPoint  `json:"a"`
	B     DiffPoint  `json:"b"`
	Disks []DiffDisk `json:"disks"` // by name
}

// DiffPoint names one of two points.
type DiffPoint struct {
	VM    string `json:"vm"`
	Point string `json:"point"`
}

// DiffDisk tells how a disk differs. Without a list of extents the numbers are of the whole disk; with one,
// of what lies between offset and NextOffset.
type DiffDisk struct {
	Name            string `json:"name"`
	State           string `json:"state"` // changed, same, added or removed
	SizeBytesBefore int64  `json:"size_bytes_before"`
	SizeBytesAfter  int64  `json:"size_bytes_after"`
	// ChangedBytes are in whole pages of 4 KiB, but for the end of the disk. What a disk that became smaller
	// has lost is counted, and not among the extents.
	ChangedBytes int64        `json:"changed_bytes"`
	ExtentCount  int64        `json:"extent_count"`
	Extents      []DiffExtent `json:"extents,omitzero"`    // not there unless they were asked for
	Truncated    bool         `json:"truncated,omitempty"` // there are more extents than are listed
	NextOffset   *int64       `json:"next_offset,omitempty"`
}

// DiffExtent is a range that differs: data, or zero where it reads as zeroes now.
type DiffExtent struct {
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Kind   string `json:"kind"`
}

// States of a DiffDisk.
const (
	DiffChanged = "changed"
	DiffSame    = "same"
	DiffAdded   = "added"
	DiffRemoved = "removed"
)

// Extents asks where there is data from offset on.
func (c *Client) Extents(ctx context.Context, q *ExportQuery, offset int64) (*Extents, error) {
	v := q.values()
	v.Set("offset", strconv.FormatInt(offset, 10))
	var e Extents
	if err := c.Do(ctx, http.MethodGet, "/v1/extents", v, nil, &e); err != nil {
		return nil, err
	}
	return &e, nil
}

// Export opens the bytes [off, off+n) of what etag names. Fewer bytes than that are an error of the reader,
// Unreachable or Canceled, never an end.
func (c *Client) Export(ctx context.Context, q *ExportQuery, etag string, off, n int64) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/v1/export?"+q.values().Encode(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("If-Match", etag)
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode == http.StatusPartialContent && resp.Header.Get("Content-Range") == contentRange(off, n, resp) && resp.Header.Get("ETag") == etag {
		return &exportBody{ctx: ctx, body: resp.Body, left: n, address: c.address}, nil
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 == 2 {
		return nil, fmt.Errorf("livemountd answered %s with %q, not bytes %d+%d", resp.Status, resp.Header.Get("Content-Range"), off, n)
	}
	return nil, decodeAnswer(resp, nil)
}

// contentRange is what the answer must say; only the size of the whole is taken from it.
func contentRange(off, n int64, resp *http.Response) string {
	var a, b, size int64
	fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%d", &a, &b, &size) // compared as a whole
	return fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, size)
}

// exportBody is a body whose end is only where it must be.
type exportBody struct {
	ctx     context.Context // of the request, to tell who ended it
	body    io.ReadCloser
	left    int64
	address string
}

func (b *exportBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.body.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	switch {
	case err == nil || b.left == 0:
		return n, nil
	case b.ctx.Err() != nil:
		return n, errs.New(errs.Canceled, "interrupted: %w", b.ctx.Err())
	default:
		return n, errs.New(errs.Unreachable, "the connection to livemountd at %s broke: %w", b.address, err)
	}
}

func (b *exportBody) Close() error { return b.body.Close() }
