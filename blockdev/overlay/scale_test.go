package overlay

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"livemount/internal/vfs"
)

// TestOpenOfALargeIndexIsMeasured makes a log of OVERLAY_EXTENTS extents of 4 KiB, written in random order,
// in OVERLAY_SCALE_DIR; when there is one it opens it and prints time and memory. Run it twice:
//
//	OVERLAY_EXTENTS=26000000 OVERLAY_SCALE_DIR=/var/tmp/scale go test -run LargeIndex -v ./blockdev/overlay
func TestOpenOfALargeIndexIsMeasured(t *testing.T) {
	dir := os.Getenv("OVERLAY_SCALE_DIR")
	n, _ := strconv.ParseInt(os.Getenv("OVERLAY_EXTENTS"), 10, 64)
	if n == 0 || dir == "" {
		n, dir = 20000, filepath.Join(t.TempDir(), "log")
	}
	o := Options{FS: vfs.OS{}, Dir: dir, Mount: [16]byte{1}, NoBackground: true}
	nodes := []Node{{ID: 1, Size: n * 4096}}
	if _, err := os.Stat(dir); err != nil {
		makeLarge(t, o, nodes, n)
	}
	runtime.GC()
	began := time.Now()
	l, rep := mustOpen(t, o, nodes)
	took := time.Since(began)
	if s := l.Stats(); int64(s.Extents) != n || rep.Rotten {
		t.Fatalf("%+v, %+v", s, rep)
	}
	status, _ := os.ReadFile("/proc/self/status")
	var mem runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&mem)
	peak := ""
	for _, line := range strings.Split(string(status), "\n") {
		if strings.HasPrefix(line, "VmHWM") || strings.HasPrefix(line, "VmRSS") {
			peak += strings.Join(strings.Fields(line), " ") + ", "
		}
	}
	t.Logf("%d extents: open %v, heap %d MiB, %.1f bytes each, checkpoint %d MiB, %s", n, took, mem.HeapAlloc>>20,
		float64(mem.HeapAlloc)/float64(n), l.Stats().CheckpointSize>>20, peak)
	began = time.Now()
	must(t, l.checkpoint(bg()))
	t.Logf("checkpoint written in %v", time.Since(began))
	must(t, l.Close())
}

// makeLarge makes the segments, which hold nothing, and the index over them.
func makeLarge(t *testing.T, o Options, nodes []Node, n int64) {
	l := mustCreateIn(t, o, nodes)
	perSegment := (l.opts.SegmentBytes - testForm.first()) / testForm.dataBytes(4096)
	for number := uint64(2); number < uint64(n/perSegment)+4; number++ {
		s, err := l.createSegment(number)
		must(t, err)
		l.live.segments[uint32(number)] = s
		l.nextSeg = number + 1
	}
	l.index.Lock()
	for i := range n {
		p := i * 7919 % n // the moment when it was written
		rec := testForm.first() + p%perSegment*testForm.dataBytes(4096)
		l.node(1).put(extent{i * 4096, 4096, uint32(2 + p/perSegment), uint32(rec), 4096, 0}, &l.live)
	}
	l.index.Unlock()
	l.appending.Lock()
	must(t, l.roll())
	l.appending.Unlock()
	must(t, l.checkpoint(bg()))
	must(t, l.Close())
}

func mustCreateIn(t *testing.T, o Options, nodes []Node) *Log {
	l, err := Create(bg(), o, nodes)
	must(t, err)
	return l
}
