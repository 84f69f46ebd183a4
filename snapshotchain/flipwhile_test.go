package snapshotchain

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/snapshotchain/chunkstore"
)

// rottenStore is a store in whose containers one byte rots at a moment of an operation.
type rottenStore struct {
	t      *testing.T
	o      Options
	fs     vfs.FS
	root   string
	left   atomic.Int64 // operations of the disk until a byte rots; negative never
	mu     sync.Mutex   // guards rng and what
	rng    *rand.Rand
	what   string
	s      *Store
	points []Point
	shows  [][]uint64 // contents of each point's runs
}

func newRottenStore(t *testing.T, seed uint64, level chunkstore.Level) *rottenStore {
	r := &rottenStore{t: t, fs: vfs.OS{}, rng: rand.New(rand.NewPCG(seed, 77)), what: "nothing"}
	dir := t.TempDir()
	r.root = filepath.Join(dir, "containers")
	r.left.Store(-1)
	r.o = Options{
		Dir: dir, Clock: &clock.Fixed{T: time.Unix(1_800_000_000, 0)}, ContainerBytes: 256 << 10, ChunkCache: 1 << 20,
		FS: &vfs.Faulty{FS: r.fs, Fail: func(vfs.Op, string) error {
			if r.left.Add(-1) == 0 {
				r.rot()
			}
			return nil
		}},
	}
	r.open()
	now := make([]uint64, 3)
	for i := range uint64(8) {
		contents := []uint64{compressible + i, 0, 200 + i/2}
		if i == 0 {
			contents[1] = 7
		}
		for j, c := range contents {
			if c != 0 {
				now[j] = c
			}
		}
		r.points = append(r.points, putPagesAt(t, r.s, level, "web", false, contents...))
		r.shows = append(r.shows, append([]uint64(nil), now...))
	}
	r.close()
	r.open() // all containers are sealed
	return r
}

func (r *rottenStore) open() {
	s, err := Open(r.t.Context(), r.o)
	if err != nil {
		r.t.Fatalf("%s rotten: %v", r.what, err)
	}
	r.s = s
}

func (r *rottenStore) close() {
	if err := r.s.Close(context.Background()); err != nil {
		r.t.Fatalf("%s rotten: close: %v", r.what, err)
	}
}

// rot changes one byte of a file.
func (r *rottenStore) rot() {
	r.mu.Lock()
	defer r.mu.Unlock()
	var files []string
	walkFiles(r.fs, r.root, func(name string) { files = append(files, name) })
	for range 100 {
		name := files[r.rng.IntN(len(files))]
		f, err := r.fs.OpenRW(name)
		if err != nil {
			continue // it went just now
		}
		size, err := f.Size()
		if err == nil && size > 0 {
			off, b := r.rng.Int64N(size), []byte{0}
			if _, err = f.ReadAt(b, off); err == nil {
				b[0] ^= 1 << r.rng.IntN(8)
				_, err = f.WriteAt(b, off)
				r.what = fmt.Sprintf("%s, byte %d of %d,", name, off, size)
			}
		}
		_ = f.Close()
		if err == nil && size > 0 {
			return
		}
	}
}

func walkFiles(fsys vfs.FS, dir string, each func(name string)) {
	names, _ := fsys.List(dir)
	for _, n := range names {
		name := path.Join(dir, n)
		if info, err := fsys.Stat(name); err == nil && info.IsDir {
			walkFiles(fsys, name, each)
		} else if err == nil {
			each(name)
		}
	}
}

// check reads all points from the disk: what they show is right, or Corrupt. It returns the contents that are not had.
func (r *rottenStore) check() map[uint64]bool {
	r.t.Helper()
	vm, err := r.s.VM("web")
	if err != nil {
		r.t.Fatalf("%s rotten: %v", r.what, err)
	}
	points, err := r.s.Points(context.Background(), &vm)
	if err != nil || len(points) != len(r.points) {
		r.t.Fatalf("%s rotten: %d points of %d: %v", r.what, len(points), len(r.points), err)
	}
	r.s.DropCaches()
	lost := map[uint64]bool{}
	for i := range points {
		d, err := r.s.OpenDisk(context.Background(), &points[i].Disks[0])
		if err != nil {
			r.t.Fatalf("%s rotten: %v", r.what, err)
		}
		for j, c := range r.shows[i] {
			_, want := chunkOf(r.t, r.s, c)
			got := make([]byte, len(want))
			switch err := d.ReadAt(context.Background(), got, int64(100*j)*chunkstore.PageSize); {
			case errs.Is(err, errs.Corrupt):
				lost[c] = true
			case err != nil:
				r.t.Fatalf("%s rotten: read: %v", r.what, err)
			case !bytes.Equal(got, want):
				r.t.Fatalf("%s rotten: point %d shows other bytes at run %d", r.what, i, j)
			}
		}
		_ = d.Close()
	}
	return lost
}

// forget expires points, which stay in no list.
func (r *rottenStore) forget(n int) {
	var ids []PointID
	for _, p := range r.points[:n] {
		ids = append(ids, p.ID)
	}
	if err := r.s.Expire(r.t.Context(), "web", ids...); err != nil {
		r.t.Fatal(err)
	}
	r.points, r.shows = r.points[n:], r.shows[n:]
}

// settle heals what was lost by taking it in again, now and after a restart. noMap says that there was no metadata, from which
// a part of the map that is bad is made again: what it lists is lost.
func (r *rottenStore) settle(noMap bool) {
	lost := r.check()
	if noMap && strings.Contains(r.what, "/map/") {
		return
	}
	if len(lost) > 1 {
		r.t.Fatalf("%s rotten: one byte cost %v", r.what, lost)
	}
	for c := range lost {
		putPagesAt(r.t, r.s, chunkstore.LevelDefault, "again", true, c)
		if _, err := r.s.Heal(context.Background()); err != nil {
			r.t.Fatalf("%s rotten: heal: %v", r.what, err)
		}
	}
	for range 2 {
		if still := r.check(); len(still) > 0 {
			r.t.Fatalf("%s rotten: %v is lost though it came in again", r.what, still)
		}
		r.close()
		r.open()
	}
}

// A byte rots at any moment of an operation that reads or moves what is stored: it costs at most the one chunk that it
// is in, nothing else is served, and the same data heals it.
func TestByteThatRotsDuringAnOperationIsNeverServed(t *testing.T) {
	seeds := 40
	if os.Getenv("LIVEMOUNT_SOAK") != "" {
		seeds = 4000
	}
	rebuild := func(r *rottenStore) error {
		r.close()
		_, err := Rebuild(r.t.Context(), r.o)
		r.open()
		return err
	}
	for _, op := range []struct {
		name  string
		level chunkstore.Level
		do    func(r *rottenStore) error
	}{
		{"collect", chunkstore.LevelDefault, func(r *rottenStore) error {
			r.forget(5)
			_, err := r.s.Collect(r.t.Context(), CollectOptions{})
			return err
		}},
		{"pack", chunkstore.LevelFast, func(r *rottenStore) error {
			_, err := r.s.Pack(r.t.Context())
			return err
		}},
		{"scrub", chunkstore.LevelDefault, func(r *rottenStore) error {
			_, err := r.s.Scrub(r.t.Context(), 0, noPace, nil)
			return err
		}},
		{"verify", chunkstore.LevelDefault, func(r *rottenStore) error {
			for i := range r.points {
				if _, err := r.s.Verify(r.t.Context(), &r.points[i].Disks[0], nil); err != nil {
					return err
				}
			}
			return nil
		}},
		{"rebuild", chunkstore.LevelDefault, rebuild},
	} {
		t.Run(op.name, func(t *testing.T) {
			t.Parallel()
			missed := 0
			most := countOps(t, op.level, op.do)
			for seed := range uint64(seeds) {
				r := newRottenStore(t, seed, op.level)
				r.left.Store(1 + r.rng.Int64N(most))
				if err := op.do(r); err != nil && !errs.Is(err, errs.Corrupt) {
					t.Fatalf("seed %d, %s rotten: %v", seed, r.what, err)
				}
				r.left.Store(-1)
				if r.what == "nothing" {
					t.Logf("seed %d: the operation was over before a byte rotted", seed)
					missed++
				}
				r.settle(op.name == "rebuild")
				r.close()
			}
			if missed > seeds/4 {
				t.Errorf("nothing rotted in %d of %d", missed, seeds)
			}
		})
	}
}

// countOps counts what an operation does with the disk.
func countOps(t *testing.T, level chunkstore.Level, do func(r *rottenStore) error) int64 {
	r := newRottenStore(t, 0, level)
	const many = 1 << 40
	r.left.Store(many)
	if err := do(r); err != nil {
		t.Fatal(err)
	}
	n := many - r.left.Load()
	r.close()
	return max(1, n)
}
