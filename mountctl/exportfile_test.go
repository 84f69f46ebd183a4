package mountctl

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/server/api"
)

// world is a disk to export.
type world struct {
	want []byte
	data [][2]int64 // where want has data
	etag string
}

func newWorld(rng *rand.Rand, etag string, size int64) *world {
	w := &world{want: make([]byte, size), etag: etag}
	for off := rng.Int64N(size / 4); off < size; {
		n := min(size-off, 1+rng.Int64N(size/3))
		for i := off; i < off+n; i++ {
			w.want[i] = byte(1 + rng.IntN(255))
		}
		w.data = append(w.data, [2]int64{off, off + n})
		off += n + 1 + rng.Int64N(size/4)
	}
	return w
}

// run exports up to stop bytes of data, and reports whether that was all.
func (w *world) run(fs vfs.FS, stop int64, force bool) (resumed, done bool, err error) {
	x := &exporter{notes: io.Discard}
	p := &partFile{fs: fs, path: "/d/out", state: exportState{ETag: w.etag, Format: "raw", SizeBytes: int64(len(w.want))}}
	if err := p.open(x, force); err != nil {
		return false, false, err
	}
	for _, d := range w.data {
		for off := max(d[0], p.at); off < d[1]; {
			n := min(d[1]-off, 3000)
			if stop -= n; stop < 0 {
				return x.done.Resumed, false, p.wait()
			}
			p.dirty += saveEvery / 8 // so that it saves now and then
			if err := p.put(context.Background(), w.want[off:off+n], off); err != nil {
				return x.done.Resumed, false, p.leave(err)
			}
			off += n
		}
	}
	return x.done.Resumed, true, p.finish(force)
}

func (w *world) check(t *testing.T, fs vfs.FS) {
	t.Helper()
	got, err := vfs.ReadFile(fs, "/d/out", 1<<30)
	if err != nil || !bytes.Equal(got, w.want) {
		t.Fatalf("%d bytes, want %d: %v", len(got), len(w.want), err)
	}
	if names, err := fs.List("/d"); err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
}

func emptyDisk(t *testing.T) *vfs.Mem {
	t.Helper()
	fs := vfs.NewMem()
	if err := fs.MkdirAll("/d"); err != nil {
		t.Fatal(err)
	}
	return fs
}

// Whenever the power goes, and whichever disk was exported before to the same name, the file is right once it
// has its name.
func TestExportSurvivesPowerCuts(t *testing.T) {
	resumed := 0
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		fs := emptyDisk(t)
		worlds := []*world{newWorld(rng, "one", 100_000), newWorld(rng, "two", 100_000), newWorld(rng, "three", 60_000)}
		w := worlds[0]
		for range 1 + rng.IntN(6) {
			if rng.IntN(3) == 0 {
				w = worlds[rng.IntN(3)]
			}
			r, done, err := w.run(fs, rng.Int64N(60_000), true)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if r {
				resumed++
			}
			if done {
				w.check(t, fs)
			}
			fs = fs.CrashClone(rng)
		}
		if _, done, err := w.run(fs, 1<<40, true); err != nil || !done {
			t.Fatalf("seed %d: %v", seed, err)
		}
		w.check(t, fs.CrashClone(rng))
	}
	if resumed < 50 {
		t.Errorf("only %d runs went on where one was", resumed)
	}
}

func TestExportToAFullDiskSaysHowToGoOn(t *testing.T) {
	mem := emptyDisk(t)
	w := newWorld(rand.New(rand.NewPCG(1, 1)), "one", 100_000)
	full := true
	fs := &vfs.Faulty{FS: mem, Fail: func(op vfs.Op, name string) error {
		if full && op == vfs.OpWrite && strings.HasSuffix(name, ".part") && len(w.data) > 0 {
			if f, err := mem.Open("/d/out.part.json"); err == nil {
				b := make([]byte, 200)
				n, _ := f.ReadAt(b, 0)
				if !strings.Contains(string(b[:n]), `"offset":0}`) {
					return syscall.ENOSPC
				}
			}
		}
		return nil
	}}
	_, _, err := w.run(fs, 1<<40, false)
	if !errs.Is(err, errs.NoSpace) || !strings.Contains(errs.TryOf(err), "make room; then the same command again: it goes on at ") {
		t.Fatalf("%v; %s", err, errs.TryOf(err))
	}
	full = false
	resumed, done, err := w.run(fs, 1<<40, false)
	if err != nil || !resumed || !done {
		t.Fatal(resumed, done, err)
	}
	w.check(t, mem)
}

func TestExportLeavesAForeignFileAlone(t *testing.T) {
	fs := emptyDisk(t)
	w := newWorld(rand.New(rand.NewPCG(1, 1)), "one", 100_000)
	if err := vfs.WriteFile(fs, "/d/out.part", []byte("somebody's")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.run(fs, 1<<40, false); !errs.Is(err, errs.Exists) {
		t.Fatal(err)
	}
	if b, err := vfs.ReadFile(fs, "/d/out.part", 100); err != nil || string(b) != "somebody's" {
		t.Fatal(b, err)
	}
	for _, state := range []string{"", "{", `{"etag":"one","format":"raw","size_bytes":100000,"offset":-5}`, `{"etag":"one","format":"raw","size_bytes":100000,"offset":99999999}`} {
		if err := vfs.WriteFile(fs, "/d/out.part.json", []byte(state)); err != nil {
			t.Fatal(err)
		}
		if err := vfs.WriteFile(fs, "/d/out.part", bytes.Repeat([]byte("x"), 100_000)); err != nil {
			t.Fatal(err)
		}
		resumed, done, err := w.run(fs, 1<<40, false)
		if err != nil || resumed || !done {
			t.Fatal(resumed, done, err)
		}
		w.check(t, fs)
		if err := fs.Remove("/d/out"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRangesThatLieNearAreTakenTogether(t *testing.T) {
	for _, c := range []struct {
		gaps []int64
		want int
	}{{nil, 1}, {[]int64{1}, 2}, {[]int64{maxGap, maxGap + 1, 1}, 2}, {[]int64{maxGap + 1}, 1}} {
		list := ranges(c.gaps)
		if got := near(list); got != c.want {
			t.Error(fmt.Sprint(c.gaps), got)
		}
	}
}

func ranges(gaps []int64) []api.Range {
	list := []api.Range{{Offset: 5, Length: 10}}
	for _, gap := range gaps {
		last := list[len(list)-1]
		list = append(list, api.Range{Offset: last.Offset + last.Length + gap, Length: 10})
	}
	return list
}
