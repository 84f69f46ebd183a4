package server

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"livemount/fs"
	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/snapshotchain"
)

func openStore(t testing.TB) *snapshotchain.Store {
	t.Helper()
	m := vfs.NewMem()
	if err := m.MkdirAll("/c"); err != nil {
		t.Fatal(err)
	}
	s, err := snapshotchain.Open(t.Context(), snapshotchain.Options{
		Dir: t.TempDir(), FS: m, Containers: "/c", Clock: &clock.Fixed{T: time.Unix(1_800_000_000, 0)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(context.Background()) })
	return s
}

func sealPoint(t testing.TB, s *snapshotchain.Store, vm string) snapshotchain.Point {
	t.Helper()
	d, err := s.Begin(t.Context(), vm, []snapshotchain.DiskSpec{{Name: "sda", SizeBytes: 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := d.Seal(t.Context(), snapshotchain.SealInfo{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func historyOf(s *snapshotchain.Store) *fs.History {
	return fs.NewHistory(&catalogue{store: s, mount: &mount{rec: &mountRecord{}}}, fs.HistoryOptions{})
}

// walkAll lists a folder and all below, and looks up all that it lists. It returns the number of nodes.
func walkAll(ctx context.Context, f fs.Folder) (int, error) {
	total := 1
	for behind := fs.Cookie(0); ; {
		list, err := f.List(ctx, behind, 256)
		if err != nil || len(list) == 0 {
			return total, err
		}
		for _, e := range list {
			behind = e.Cookie
			n, err := f.Lookup(ctx, e.Name)
			if errs.Is(err, errs.NotFound) {
				continue
			}
			if err != nil {
				return total, err
			}
			below := 1
			if dir, ok := n.(fs.Folder); ok {
				below, err = walkAll(ctx, dir)
			}
			if total += below; err != nil {
				return total, err
			}
		}
	}
}

func TestHistoryOfAStore(t *testing.T) {
	s := openStore(t)
	for range 3 {
		sealPoint(t, s, "web")
	}
	p := sealPoint(t, s, "db")
	h := historyOf(s)
	if n, err := walkAll(t.Context(), h.Root()); n != 1+2+2+4*2 || err != nil || h.Len() != 1+2+2+4 {
		t.Errorf("%d nodes, %v", n, err)
	}
	vm, err := h.Root().Lookup(t.Context(), "db")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := vm.(fs.Folder).Lookup(t.Context(), fs.PointName(p.Time))
	if err != nil {
		t.Fatal(err)
	}
	disk, err := dir.(fs.Folder).Lookup(t.Context(), "sda.raw")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), "db"); err != nil {
		t.Fatal(err)
	}
	if err := disk.(fs.Regular).ReadAt(t.Context(), make([]byte, 4096), 0); err != nil {
		t.Errorf("disk of a VM that is gone: %v", err)
	}
	if n, err := walkAll(t.Context(), h.Root()); n != 1+2+3*2 || err != nil {
		t.Errorf("%d nodes, %v", n, err)
	}
}

// TestListingsWhilePointsComeAndGo: a list that is read while it changes is not taken for a damaged one.
func TestListingsWhilePointsComeAndGo(t *testing.T) {
	s := openStore(t)
	sealPoint(t, s, "web")
	h := historyOf(s)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var g sync.WaitGroup
	for range 2 {
		g.Go(func() {
			for ctx.Err() == nil {
				if _, err := walkAll(context.Background(), h.Root()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	name := "web"
	for i := range 60 {
		p := sealPoint(t, s, name)
		if i%2 == 0 {
			if err := s.Expire(t.Context(), name, p.ID); err != nil {
				t.Error(err)
			}
		}
		next := fmt.Sprintf("web%d", i)
		if err := s.Rename(t.Context(), name, next); err != nil {
			t.Error(err)
		}
		name = next
	}
	stop()
	g.Wait()
}

// BenchmarkHistoryOfAStore lists every point of a real store: go test ./server -run - -bench History -benchtime 1x
func BenchmarkHistoryOfAStore(b *testing.B) {
	s := openStore(b)
	const vms, points = 100, 100
	for v := range vms {
		for range points {
			sealPoint(b, s, fmt.Sprintf("vm-%04d", v))
		}
	}
	h := historyOf(s)
	for b.Loop() {
		if n, err := walkAll(b.Context(), h.Root()); n != 1+vms*(2+points*2) || err != nil {
			b.Fatalf("%d nodes, %v", n, err)
		}
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(m.HeapAlloc)/(1<<20), "MiB-heap")
}
