package fs_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"livemount/fs"
	"livemount/fs/fstest"
	"livemount/internal/errs"
)

// walk looks up a path below the root.
func walk(t *testing.T, h fs.Served, path string) (fs.Node, error) {
	t.Helper()
	var n fs.Node = h.Root()
	for _, name := range strings.Split(path, "/") {
		var err error
		if n, err = n.(fs.Folder).Lookup(t.Context(), name); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func must(t *testing.T, h fs.Served, path string) fs.Node {
	t.Helper()
	n, err := walk(t, h, path)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return n
}

// list lists a folder in steps of limit, calling between after each.
func list(t *testing.T, f fs.Folder, limit int, between func()) []fs.Entry {
	t.Helper()
	var all []fs.Entry
	for behind := fs.Cookie(0); ; {
		part, err := f.List(t.Context(), behind, limit)
		if err != nil {
			t.Fatal(err)
		}
		if len(part) == 0 {
			return all
		}
		if len(part) > limit {
			t.Fatalf("%d entries, not %d", len(part), limit)
		}
		all = append(all, part...)
		behind = part[len(part)-1].Cookie
		between()
	}
}

func names(entries []fs.Entry) []string {
	var out []string
	for _, e := range entries {
		out = append(out, e.Name)
	}
	return out
}

func TestHistoryHasAFolderForEachPoint(t *testing.T) {
	cat := fstest.New(1, 3)
	h := fs.NewHistory(cat, fs.HistoryOptions{})
	at := fs.PointName(fstest.TimeOf(2))
	if at != "2027-01-15T08:00:02.002000000Z" {
		t.Errorf("name %s", at)
	}
	vm, p, disk := must(t, h, "vm-0001"), must(t, h, "vm-0001/"+at), must(t, h, "vm-0001/"+at+"/sdb.raw").(fs.Regular)
	if got := names(list(t, vm.(fs.Folder), 2, func() {})); len(got) != 4 || got[0] != "latest" || got[2] != at || !slices.IsSorted(got[1:]) {
		t.Errorf("listed %v", got)
	}
	if got := names(list(t, p.(fs.Folder), 1, func() {})); !slices.Equal(got, []string{"sda.raw", "sdb.raw"}) {
		t.Errorf("listed %v", got)
	}
	target, err := must(t, h, "vm-0001/latest").(fs.Link).Target(t.Context())
	if want := fs.PointName(fstest.TimeOf(3)); target != want || err != nil || must(t, h, "vm-0001/latest").Attr().SizeBytes != int64(len(want)) {
		t.Errorf("latest is %s, %v", target, err)
	}
	if a := disk.Attr(); a.Mode != 0o400 || a.SizeBytes != fstest.SizeBytes || a.AllocatedBytes != 64<<10 || !a.Modified.Equal(fstest.TimeOf(2)) {
		t.Errorf("disk: %+v", a)
	}
	if !vm.Attr().Modified.Equal(fstest.TimeOf(3)) || !p.Attr().Modified.Equal(fstest.TimeOf(2)) || p.Attr().Mode.Perm() != 0o555 {
		t.Errorf("folders: %+v, %+v", vm.Attr(), p.Attr())
	}
	got := make([]byte, fstest.SizeBytes)
	if err := disk.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, fstest.Content(cat.ID("vm-0001"), 2, "sdb")) {
		t.Errorf("content differs, %v", err)
	}
}

func TestOnlyWhatIsListedIsFound(t *testing.T) {
	h := fs.NewHistory(fstest.New(1, 3), fs.HistoryOptions{})
	at := fs.PointName(fstest.TimeOf(3))
	for _, path := range []string{
		"vm", "vm-0001/2027-01-15T08:00:03Z", "vm-0001/" + fs.PointName(fstest.TimeOf(4)), "vm-0001/" + strings.TrimSuffix(at, "Z"),
		"vm-0001/" + fs.PointName(fstest.TimeOf(3).Add(1)), "vm-0001/" + at + "/sda", "vm-0001/" + at + "/sdc.raw", "vm-0001/" + at + "/latest",
		"vm-0001/" + at[:len(at)-1] + "+00:00", "vm-0001/ " + at,
	} {
		if _, err := walk(t, h, path); !errs.Is(err, errs.NotFound) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestNodesAreTheSameInEveryTree(t *testing.T) {
	a := fs.NewHistory(fstest.New(2, 3), fs.HistoryOptions{})
	b := fs.NewHistory(fstest.New(2, 3), fs.HistoryOptions{})
	seen := map[fs.NodeID]bool{fs.RootID: true}
	at := fs.PointName(fstest.TimeOf(2))
	for _, path := range []string{
		"vm-0001", "vm-0002", "vm-0001/latest", "vm-0002/latest", "vm-0001/" + at, "vm-0002/" + at, "vm-0001/" + at + "/sda.raw",
		"vm-0001/" + at + "/sdb.raw", "vm-0002/" + at + "/sda.raw",
	} {
		n := must(t, a, path)
		if n != must(t, a, path) {
			t.Errorf("%s is not itself", path)
		}
		if n.ID() != must(t, b, path).ID() || n.ID() != n.Attr().ID || seen[n.ID()] || n.ID() >= 1<<62 {
			t.Errorf("%s has id %d", path, n.ID())
		}
		seen[n.ID()] = true
	}
	for _, e := range list(t, must(t, a, "vm-0001/"+at).(fs.Folder), 9, func() {}) {
		if !seen[e.ID] {
			t.Errorf("%s is listed with another id", e.Name)
		}
	}
}

// TestListingHasWhatStaysExactlyOnce changes a catalogue between the parts of a listing.
func TestListingHasWhatStaysExactlyOnce(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 1))
		cat := fstest.New(20, 30)
		h := fs.NewHistory(cat, fs.HistoryOptions{})
		gone := map[string]bool{}
		points := list(t, must(t, h, "vm-0007").(fs.Folder), 1+rng.IntN(6), func() {
			n := 1 + rng.Uint64N(30)
			cat.Drop("vm-0007", n)
			gone[fs.PointName(fstest.TimeOf(n))] = true
			cat.Add("vm-0007", rng.IntN(2))
		})
		count := map[string]int{}
		for _, name := range names(points) {
			count[name]++
		}
		for n := range uint64(30) {
			name := fs.PointName(fstest.TimeOf(n + 1))
			if !gone[name] && count[name] != 1 || count[name] > 1 {
				t.Fatalf("seed %d: point %d is listed %d times", seed, n+1, count[name])
			}
		}
		clear(count)
		for _, name := range names(list(t, h.Root(), 1+rng.IntN(6), func() {
			vms := cat.Names()
			cat.Add(vms[0]+"x", 1)
			cat.Rename(vms[rng.IntN(len(vms))], "")
		})) {
			count[name]++
		}
		for _, name := range cat.Names() {
			if !strings.HasSuffix(name, "x") && count[name] != 1 {
				t.Fatalf("seed %d: VM %s is listed %d times", seed, name, count[name])
			}
		}
	}
}

func TestAPointThatGoesCanBeReadByWhoHasIt(t *testing.T) {
	cat := fstest.New(1, 2)
	h := fs.NewHistory(cat, fs.HistoryOptions{})
	at := fs.PointName(fstest.TimeOf(2))
	vm, p := must(t, h, "vm-0001").(fs.Folder), must(t, h, "vm-0001/"+at).(fs.Folder)
	link, disk := must(t, h, "vm-0001/latest").(fs.Link), must(t, h, "vm-0001/"+at+"/sda.raw").(fs.Regular)
	cat.Drop("vm-0001", 2)
	if _, err := walk(t, h, "vm-0001/"+at); !errs.Is(err, errs.NotFound) {
		t.Errorf("lookup: %v", err)
	}
	if _, err := p.Lookup(t.Context(), "sda.raw"); !errs.Is(err, errs.NotFound) {
		t.Errorf("lookup in its folder: %v", err)
	}
	if got := list(t, p, 9, func() {}); len(got) != 0 {
		t.Errorf("listed %v", got)
	}
	if target, err := link.Target(t.Context()); target != fs.PointName(fstest.TimeOf(1)) || err != nil {
		t.Errorf("latest is %s, %v", target, err)
	}
	if err := disk.ReadAt(t.Context(), make([]byte, 10), 0); err != nil {
		t.Error(err)
	}
	cat.Drop("vm-0001", 1)
	if _, err := walk(t, h, "vm-0001/latest"); !errs.Is(err, errs.NotFound) {
		t.Errorf("latest of no points: %v", err)
	}
	if got := list(t, vm, 9, func() {}); len(got) != 0 {
		t.Errorf("listed %v", got)
	}
	cat.Rename("vm-0001", "")
	if got := list(t, vm, 9, func() {}); len(got) != 0 {
		t.Errorf("listed %v", got)
	}
	if !vm.Attr().Mode.IsDir() || !vm.Attr().Modified.Equal(time.Unix(0, 0)) {
		t.Errorf("folder of a VM that is gone: %+v", vm.Attr())
	}
}

func TestOpenDisksAreBounded(t *testing.T) {
	cat := fstest.New(1, 100)
	h := fs.NewHistory(cat, fs.HistoryOptions{OpenDisks: 4})
	var disks []fs.Regular
	for n := range uint64(100) {
		disks = append(disks, must(t, h, "vm-0001/"+fs.PointName(fstest.TimeOf(n+1))+"/sda.raw").(fs.Regular))
	}
	if cat.Opened.Load() != 0 {
		t.Errorf("%d disks were opened by looking", cat.Opened.Load())
	}
	var g sync.WaitGroup
	failed := make(chan error, 8)
	for worker := range 8 {
		g.Go(func() {
			b := make([]byte, 4096)
			for i := range 500 {
				n := (i*7 + worker*13) % 100
				err := disks[n].ReadAt(t.Context(), b, 0)
				if want := fstest.Content(cat.ID("vm-0001"), uint64(n+1), "sda")[:4096]; err == nil && !bytes.Equal(b, want) {
					err = errors.New("content differs")
				}
				if open := cat.Opened.Load() - cat.Closed.Load(); err == nil && open > 4+8+8 { // cached, read, about to be
					err = errors.New("too many are open")
				}
				if err != nil {
					failed <- err
					return
				}
			}
		})
	}
	g.Wait()
	select {
	case err := <-failed:
		t.Error(err)
	default:
	}
	if err := h.Close(); err != nil || cat.Opened.Load() != cat.Closed.Load() {
		t.Errorf("%d opened, %d closed, %v", cat.Opened.Load(), cat.Closed.Load(), err)
	}
}

func TestExtentsOfAPointsDisk(t *testing.T) {
	h := fs.NewHistory(fstest.New(1, 1), fs.HistoryOptions{})
	disk := must(t, h, "vm-0001/"+fs.PointName(fstest.TimeOf(1))+"/sda.raw").(fs.Regular)
	var got []int64
	for e, err := range disk.Extents(t.Context(), 100, fstest.SizeBytes-100) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Off, e.Len)
	}
	if !slices.Equal(got, []int64{100, 64<<10 - 100, 64 << 10, 10}) {
		t.Errorf("extents %v", got)
	}
}
