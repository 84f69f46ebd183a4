package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livemount/blockdev/image"
	"livemount/ingest"
	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/server/api"
	"livemount/snapshotchain"
)

// exporter is a server with a store, without mounts and jobs.
type exporter struct {
	t     *testing.T
	dir   string
	s     *Server
	http  *httptest.Server
	image []byte
}

func newExporter(t *testing.T) *exporter {
	t.Helper()
	x := &exporter{t: t, dir: t.TempDir(), image: make([]byte, 5<<20+700)}
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(x.image[:200_000])
	rng.Read(x.image[3<<20 : 3<<20+9000])
	rng.Read(x.image[4<<20 : 4<<20+400_000])
	rng.Read(x.image[len(x.image)-5:])
	x.s = &Server{clock: clock.System{}, log: slog.New(slog.DiscardHandler), exporting: make(slots, maxExports), listing: make(slots, maxLists)}
	var err error
	x.s.store, err = snapshotchain.Open(t.Context(), snapshotchain.Options{
		Dir: x.dir, FS: vfs.OS{}, Clock: &clock.Fixed{T: time.Unix(1_800_000_000, 0)},
	})
	if err != nil {
		t.Fatal(err)
	}
	x.http = httptest.NewServer(x.s.handler())
	t.Cleanup(func() {
		x.http.Close()
		x.s.exporting.drain()
		x.s.store.Close(context.Background())
	})
	x.backup("web", "sda")
	return x
}

func (x *exporter) backup(vm string, disks ...string) {
	x.t.Helper()
	path := filepath.Join(x.dir, "disk.raw")
	if err := os.WriteFile(path, x.image, 0o600); err != nil {
		x.t.Fatal(err)
	}
	req := ingest.Request{VM: vm}
	for _, name := range disks {
		src, err := image.OpenRaw(path)
		if err != nil {
			x.t.Fatal(err)
		}
		defer src.Close()
		req.Disks = append(req.Disks, ingest.Disk{Name: name, Source: src})
	}
	var c ingest.Counters
	if _, err := ingest.Run(x.t.Context(), x.s.store, req, &c, func(string) {}); err != nil {
		x.t.Fatal(err)
	}
}

// get asks for a path with headers, given as name and value in turn.
func (x *exporter) get(method, path string, header ...string) (*http.Response, []byte) {
	x.t.Helper()
	req, err := http.NewRequestWithContext(x.t.Context(), method, x.http.URL+path, nil)
	if err != nil {
		x.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		x.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		x.t.Fatal(err)
	}
	return resp, b
}

const exportPath = "/v1/export?ref=web@latest"

func TestExportSendsTheDisk(t *testing.T) {
	x := newExporter(t)
	resp, b := x.get("GET", exportPath)
	if resp.StatusCode != 200 || !bytes.Equal(b, x.image) || resp.ContentLength != int64(len(x.image)) {
		t.Fatalf("%s, %d bytes", resp.Status, len(b))
	}
	if head, b := x.get("HEAD", exportPath); head.ContentLength != int64(len(x.image)) || len(b) != 0 || head.Header.Get("ETag") != resp.Header.Get("ETag") {
		t.Fatalf("HEAD: %+v", head.Header)
	}
	q, _ := x.get("GET", exportPath+"&disk=sda&format=qcow2")
	if q.StatusCode != 200 || q.Header.Get("ETag") == resp.Header.Get("ETag") || q.ContentLength >= int64(len(x.image)) {
		t.Fatalf("qcow2: %s %+v", q.Status, q.Header)
	}
}

func TestExportHonoursOneRange(t *testing.T) {
	x := newExporter(t)
	size := len(x.image)
	for _, c := range []struct {
		spec     string
		from, to int // -1: refused
	}{
		{"bytes=0-0", 0, 1},
		{"bytes=5-9", 5, 10},
		{"BYTES=5-9", 5, 10},
		{"bytes=100-", 100, size},
		{"bytes=-700", size - 700, size},
		{"bytes=-99999999", 0, size},
		{"bytes=-99999999999999999999999", 0, size},
		{fmt.Sprintf("bytes=%d-%d", size-1, size+5), size - 1, size},
		{fmt.Sprintf("bytes=%d-99999999999999999999999", size-2), size - 2, size},
		{"bytes=1048570-1048590", 1048570, 1048591},
		{"bytes=0-9223372036854775807", 0, size},
		{"pages=0-1", 0, size}, // another unit is ignored
		{fmt.Sprintf("bytes=%d-", size), -1, 0},
		{"bytes=99999999999999999999999-", -1, 0},
		{"bytes=9223372036854775807-9223372036854775807", -1, 0},
		{"bytes=9-5", -1, 0},
		{"bytes=-0", -1, 0},
		{"bytes=-", -1, 0},
		{"bytes=", -1, 0},
		{"bytes=--5", -1, 0},
		{"bytes=0-1,5-6", -1, 0},
		{"bytes=0-1,bytes=5-6", -1, 0},
		{"bytes=" + strings.Repeat("0-1,", 10_000) + "0-1", -1, 0},
		{"bytes=+1-5", -1, 0},
		{"bytes= 1-5", -1, 0},
		{"bytes=0x1-5", -1, 0},
		{"bytes=1-5e3", -1, 0},
		{"bytes=٣-5", -1, 0},
		{"bytes=1", -1, 0},
	} {
		resp, b := x.get("GET", exportPath, "Range", c.spec)
		name := fmt.Sprintf("%.60s", c.spec)
		if c.from < 0 {
			if resp.StatusCode != 416 || resp.Header.Get("Content-Range") != fmt.Sprintf("bytes */%d", size) {
				t.Errorf("%s: %s, %q", name, resp.Status, resp.Header.Get("Content-Range"))
			}
			continue
		}
		want := fmt.Sprintf("bytes %d-%d/%d", c.from, c.to-1, size)
		if strings.HasPrefix(c.spec, "pages") {
			want = ""
		}
		if !bytes.Equal(b, x.image[c.from:c.to]) || resp.Header.Get("Content-Range") != want || (resp.StatusCode == 206) != (want != "") {
			t.Errorf("%s: %s, %q, %d bytes", name, resp.Status, resp.Header.Get("Content-Range"), len(b))
		}
	}
	if resp, _ := x.get("GET", exportPath, "Range", "bytes=0-1", "Range", "bytes=5-6"); resp.StatusCode != 416 {
		t.Errorf("two headers: %s", resp.Status)
	}
}

func TestExportKeepsToItsETag(t *testing.T) {
	x := newExporter(t)
	resp, _ := x.get("HEAD", exportPath)
	etag := resp.Header.Get("ETag")
	for _, c := range []struct {
		header, value string
		status        int
	}{
		{"If-Match", etag, 200}, {"If-Match", "*", 200}, {"If-Match", `"x", ` + etag, 200},
		{"If-Match", `"x"`, 412}, {"If-Match", "W/" + etag, 412}, {"If-Match", "", 412}, {"If-Match", strings.Trim(etag, `"`), 412},
	} {
		if resp, _ := x.get("GET", exportPath, c.header, c.value); resp.StatusCode != c.status {
			t.Errorf("%s %s: %s", c.header, c.value, resp.Status)
		}
	}
	if resp, _ := x.get("GET", exportPath, "If-Range", etag, "Range", "bytes=0-4"); resp.StatusCode != 206 {
		t.Errorf("If-Range: %s", resp.Status)
	}
	if resp, _ := x.get("GET", exportPath, "If-Range", `"x"`, "Range", "bytes=0-4"); resp.StatusCode != 200 {
		t.Errorf("If-Range of something else: %s", resp.Status)
	}
	x.backup("web", "sda")
	if resp, _ := x.get("GET", exportPath, "If-Match", etag); resp.StatusCode != 412 {
		t.Errorf("another point with the same content: %s", resp.Status)
	}
}

func TestExportRefusesWhatIsNotThere(t *testing.T) {
	x := newExporter(t)
	x.backup("two", "sda", "sdb")
	for path, status := range map[string]int{
		"/v1/export?ref=web@latest&disk=sdb":                        404,
		"/v1/export?ref=nobody@latest":                              404,
		"/v1/export?ref=web":                                        400,
		"/v1/export":                                                400,
		"/v1/export?ref=two@latest":                                 400,
		"/v1/export?ref=web@latest&format=vhd":                      400,
		"/v1/extents?ref=web@latest&offset=-1":                      400,
		"/v1/extents?ref=web@latest&offset=x":                       400,
		"/v1/extents?ref=web@latest&offset=99999999999999999999999": 400,
		"/v1/extents?ref=web@latest&offset=5243581":                 400,
		"/v1/diff?a=web@latest":                                     400,
		"/v1/diff?a=web@latest&b=web@latest&disk=sdb":               404,
		"/v1/diff?a=web@latest&b=web@latest&offset=-5":              400,
	} {
		resp, b := x.get("GET", path)
		var e api.ErrorBody
		if err := json.Unmarshal(b, &e); err != nil || resp.StatusCode != status || e.Error.Message == "" {
			t.Errorf("%s: %s %s", path, resp.Status, b)
		}
	}
	req, err := http.NewRequest("GET", x.http.URL+exportPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "evil.example"
	if resp, err := http.DefaultClient.Do(req); err != nil || resp.StatusCode != 403 {
		t.Errorf("a foreign host: %v %v", resp, err)
	}
}

func TestExtentsPage(t *testing.T) {
	x := newExporter(t)
	c := x.client()
	q := &api.ExportQuery{Ref: "web@latest", Disk: "sda"}
	e, err := c.Extents(t.Context(), q, 0)
	if err != nil || len(e.Extents) != 4 || e.NextOffset != nil || e.SizeBytes != int64(len(x.image)) {
		t.Fatal(e, err)
	}
	if last := e.Extents[3]; last.Offset+last.Length != e.SizeBytes {
		t.Fatalf("the last extent is %+v", last)
	}
	if e, err := c.Extents(t.Context(), q, 5000); err != nil || e.Extents[0].Offset != 5000 {
		t.Fatal(e, err)
	}
	if e, err := c.Extents(t.Context(), q, e.SizeBytes); err != nil || len(e.Extents) != 0 {
		t.Fatal(e, err)
	}
	r, err := c.Export(t.Context(), q, e.ETag, 3<<20, 9000)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || !bytes.Equal(b, x.image[3<<20:3<<20+9000]) {
		t.Fatal(len(b), err)
	}
	if _, err := c.Export(t.Context(), q, `"other"`, 0, 1); !errs.Is(err, errs.Invalid) {
		t.Fatal(err)
	}
}

func (x *exporter) client() *api.Client {
	x.t.Helper()
	u, err := url.Parse(x.http.URL)
	if err != nil {
		x.t.Fatal(err)
	}
	c, err := api.NewClient(u.Host)
	if err != nil {
		x.t.Fatal(err)
	}
	return c
}

func TestExportsAreBounded(t *testing.T) {
	x := newExporter(t)
	for range maxExports {
		if !x.s.exporting.try() {
			t.Fatal("too few")
		}
	}
	resp, b := x.get("GET", exportPath)
	if resp.StatusCode != 409 || !strings.Contains(string(b), "busy") {
		t.Fatalf("%s: %s", resp.Status, b)
	}
	for range maxExports {
		x.s.exporting.free()
	}
	for range 2 * maxExports { // whatever ends an export, it gives its slot back
		x.get("GET", exportPath, "Range", "bytes=0-1")
		x.get("GET", exportPath, "Range", "bytes=9-1")
		x.get("GET", exportPath+"&disk=none")
		x.get("HEAD", exportPath)
	}
	if len(x.s.exporting) != 0 {
		t.Fatalf("%d slots are held", len(x.s.exporting))
	}
}

// Bad bytes at the start are an error of their kind; further on the connection breaks, and is never ended as if
// all had been sent.
func TestExportOfBadBytesNeverEndsCleanly(t *testing.T) {
	x := newExporter(t)
	containers, err := filepath.Glob(filepath.Join(x.dir, "containers", "data", "*", "*"))
	if err != nil || len(containers) == 0 {
		t.Fatal(containers, err)
	}
	if err := x.s.store.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	at := 4<<20 + 200_000
	spoil(t, containers[0], x.image[at:at+64])
	x.s.store, err = snapshotchain.Open(t.Context(), snapshotchain.Options{
		Dir: x.dir, FS: vfs.OS{}, Clock: &clock.Fixed{T: time.Unix(1_800_000_000, 0)}, ChunkCache: 1 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(x.http.URL + exportPath)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil || len(b) >= len(x.image) || !bytes.Equal(b, x.image[:len(b)]) {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if resp, b := x.get("GET", exportPath, "Range", fmt.Sprintf("bytes=%d-", at)); resp.StatusCode != 500 || !strings.Contains(string(b), "corrupt") {
		t.Fatalf("%s: %s", resp.Status, b)
	}
}

// spoil flips a byte where the file holds content as it is: random bytes are not compressed.
func spoil(t *testing.T, path string, content []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, content)
	if at < 0 {
		t.Fatal("the content is not there")
	}
	b[at] ^= 0xff
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
