package snapshotchain_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"livemount/blockdev"
	"livemount/blockdev/image"
	"livemount/ingest"
	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/snapshotchain"
)

// differences is what Diff must say of two disks of the model.
func differences(a, b *sparse) []blockdev.Extent {
	var list []blockdev.Extent
	add := func(from, to int64, kind blockdev.Kind) {
		if last := len(list) - 1; last >= 0 && list[last].End() == from && list[last].Kind == kind {
			list[last].Len += to - from
		} else if to > from {
			list = append(list, blockdev.Extent{Off: from, Len: to - from, Kind: kind})
		}
	}
	all := maps.Clone(a.pages)
	maps.Copy(all, b.pages)
	for _, no := range slices.Sorted(maps.Keys(all)) {
		x, y := a.pages[no], b.pages[no]
		from, to := no*page, min(no*page+page, max(a.size, b.size))
		switch {
		case x != nil && y != nil && *x == *y:
		case y == nil:
			add(from, to, blockdev.Zero)
		default:
			add(from, min(to, b.size), blockdev.Data)
			add(min(to, b.size), to, blockdev.Zero)
		}
	}
	return list
}

func collect(t *rapid.T, a, b *snapshotchain.Disk, off int64) []blockdev.Extent {
	var list []blockdev.Extent
	for e, err := range snapshotchain.DiffFrom(context.Background(), a, b, off) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, e)
	}
	return list
}

// checkDiff compares two disks from their start and from somewhere else.
func (m *machine) checkDiff(a, b *snapshotchain.Disk, x, y *sparse) {
	want := differences(x, y)
	if got := collect(m.t, a, b, 0); !slices.Equal(got, want) {
		m.t.Fatalf("differences of disks of %d and %d bytes:\n%v, want\n%v", x.size, y.size, got, want)
	}
	off := rapid.Int64Range(0, max(x.size, y.size)).Draw(m.t, "from")
	var rest []blockdev.Extent
	for _, e := range want {
		if start := max(e.Off, off/page*page); start < e.End() {
			rest = append(rest, blockdev.Extent{Off: start, Len: e.End() - start, Kind: e.Kind})
		}
	}
	if got := collect(m.t, a, b, off); !slices.Equal(got, rest) {
		m.t.Fatalf("differences from %d on:\n%v, want\n%v", off, got, rest)
	}
}

// shown is a disk of a point, beside the model's.
type shown struct {
	disk *snapshotchain.Disk
	want *sparse
}

// everyDisk opens the disks of all points.
func (m *machine) everyDisk() []shown {
	var list []shown
	for _, vm := range slices.Sorted(maps.Keys(m.points)) {
		for i := range m.points[vm] {
			list = append(list, m.disksOf(vm, &m.points[vm][i])...)
		}
	}
	return list
}

func (m *machine) disksOf(vm string, p *sealed) []shown {
	_, got, err := m.store.Resolve(context.Background(), vm+"@id:"+p.id.String(), time.Time{}, time.UTC)
	if err != nil {
		m.t.Fatal(err)
	}
	var list []shown
	for i := range got.Disks {
		d, err := m.store.OpenDisk(context.Background(), &got.Disks[i])
		if err != nil {
			m.t.Fatal(err)
		}
		list = append(list, shown{d, p.disks[got.Disks[i].Name]})
	}
	return list
}

// diff compares two disks of any points, of any VMs and branches.
func (m *machine) diff(*rapid.T) {
	all := m.everyDisk()
	if len(all) == 0 {
		return
	}
	a, b := rapid.SampledFrom(all).Draw(m.t, "a"), rapid.SampledFrom(all).Draw(m.t, "b")
	m.checkDiff(a.disk, b.disk, a.want, b.want)
}

// export reads a small disk of any point as raw and as qcow2, as a download does.
func (m *machine) export(*rapid.T) {
	var small []shown
	for _, s := range m.everyDisk() {
		if s.want.size <= 10<<20 {
			small = append(small, s)
		}
	}
	if len(small) == 0 {
		return
	}
	s := rapid.SampledFrom(small).Draw(m.t, "disk")
	ctx := context.Background()
	q, err := image.AsQcow2(ctx, s.disk)
	if err != nil {
		m.t.Fatal(err)
	}
	path := filepath.Join(m.root, "export.qcow2")
	if err := os.WriteFile(path, m.whole(q), 0o600); err != nil {
		m.t.Fatal(err)
	}
	r, err := image.OpenQcow2(path, image.Qcow2Options{})
	if err != nil {
		m.t.Fatal(err)
	}
	defer r.Close()
	raw, want := m.whole(s.disk), m.whole(s.want)
	if string(raw) != string(want) {
		m.t.Fatal("the raw bytes differ")
	}
	if got := m.whole(r)[:s.want.size]; string(got) != string(want) {
		m.t.Fatal("the disk in the qcow2 image differs")
	}
}

func (m *machine) whole(r blockdev.Reader) []byte {
	b := make([]byte, r.Size())
	if err := r.ReadAt(context.Background(), b, 0); err != nil {
		m.t.Fatal(err)
	}
	return b
}

// again writes pages with the content that they have, so that they are listed as changed, or stored anew.
func (m *machine) again(*rapid.T) {
	vm, name := m.pick()
	for no := range m.disks[vm][name].pages {
		if !slices.Contains(m.dirty[vm][name], no) {
			m.dirty[vm][name] = append(m.dirty[vm][name], no)
		}
	}
	slices.Sort(m.dirty[vm][name])
}

// Diff says the same as a comparison of the bytes, for all pairs of a history.
func TestDiffAgreesWithTheBytes(t *testing.T) {
	base := t.TempDir()
	var n atomic.Int64
	rapid.Check(t, func(rt *rapid.T) {
		root := filepath.Join(base, fmt.Sprint(n.Add(1)))
		defer os.RemoveAll(root)
		m := newMachine(rt, root)
		all, some := m.actions(), map[string]func(*rapid.T){"write again": m.again}
		for i := range 3 { // what makes maps differ, and often
			for _, name := range []string{"write", "resize", "branch off", "backup"} {
				some[fmt.Sprint(name, i)] = all[name]
			}
		}
		rt.Repeat(some)
		disks := m.everyDisk()
		for _, a := range disks[:min(len(disks), 12)] {
			for _, b := range disks[max(0, len(disks)-12):] {
				m.checkDiff(a.disk, b.disk, a.want, b.want)
			}
		}
		m.close()
	})
}

// Disks of a tebibyte that are nearly empty are compared without a look at what is not there.
func TestDiffOfSparseDisksIsQuick(t *testing.T) {
	s := emptyStore(t)
	var disks []*snapshotchain.Disk
	for _, vm := range []string{"a", "b"} {
		d, err := s.Begin(t.Context(), vm, []snapshotchain.DiskSpec{{Name: "sda", SizeBytes: 1 << 40}})
		if err != nil {
			t.Fatal(err)
		}
		p, err := d.Seal(t.Context(), snapshotchain.SealInfo{})
		if err != nil {
			t.Fatal(err)
		}
		disk, err := s.OpenDisk(t.Context(), &p.Disks[0])
		if err != nil {
			t.Fatal(err)
		}
		disks = append(disks, disk)
	}
	began := time.Now()
	const rounds = 100
	for range rounds {
		for e, err := range snapshotchain.Diff(t.Context(), disks[0], disks[1]) {
			t.Fatal(e, err)
		}
	}
	if each := time.Since(began) / rounds; each > 20*time.Millisecond {
		t.Errorf("it takes %v", each)
	} else {
		t.Logf("%v each", each)
	}
}

func TestDiffOfTwoStoresIsRefused(t *testing.T) {
	var disks []*snapshotchain.Disk
	for range 2 {
		s := emptyStore(t)
		d, err := s.Begin(t.Context(), "a", []snapshotchain.DiskSpec{{Name: "sda", SizeBytes: 1 << 20}})
		if err != nil {
			t.Fatal(err)
		}
		p, err := d.Seal(t.Context(), snapshotchain.SealInfo{})
		if err != nil {
			t.Fatal(err)
		}
		disk, err := s.OpenDisk(t.Context(), &p.Disks[0])
		if err != nil {
			t.Fatal(err)
		}
		disks = append(disks, disk)
	}
	for _, err := range snapshotchain.Diff(t.Context(), disks[0], disks[1]) {
		if !errs.Is(err, errs.Invalid) {
			t.Fatal(err)
		}
	}
}

func emptyStore(t *testing.T) *snapshotchain.Store {
	t.Helper()
	s, err := snapshotchain.Open(t.Context(), snapshotchain.Options{
		Dir: t.TempDir(), FS: vfs.OS{}, Clock: &clock.Fixed{T: time.Unix(1_800_000_000, 0)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(context.Background()) })
	return s
}

// A branch that shrank and grew again sees less of what it stands on, in the middle of a leaf and of whole ones,
// without a map of its own.
func TestDiffSeesWhatShrankAndGrew(t *testing.T) {
	s := emptyStore(t)
	disk := &sparse{size: 3 << 30, pages: map[int64]*[page]byte{}}
	for i, no := range []int64{3, 2000, 2300, 2700, 3000, 5000, 700_000, 700_001} {
		disk.set(no, uint64(i+10))
	}
	var points []snapshotchain.Point
	var disks []*sparse
	take := func(req ingest.Request) {
		t.Helper()
		copied := disk.clone()
		req.Disks = []ingest.Disk{{Name: "sda", Source: copied, Listed: len(points) > 0}}
		var c ingest.Counters
		p, err := ingest.Run(t.Context(), s, req, &c, func(string) {})
		if err != nil {
			t.Fatal(err)
		}
		points, disks = append(points, p), append(disks, copied)
	}
	take(ingest.Request{VM: "web"})
	vm, err := s.VM("web")
	if err != nil {
		t.Fatal(err)
	}
	branch := func() ingest.Request {
		req := ingest.Request{VM: "web:b", Branch: &snapshotchain.Branch{VM: vm.ID, Name: "web:b", Parent: points[0].ID}, From: &snapshotchain.Point{}}
		if have, err := s.VM("web:b"); err == nil {
			req.Branch.Parent = have.Latest
		} else {
			req.From = &points[0]
		}
		return req
	}
	for _, size := range []int64{3 << 30, 3200 * page, 3 << 30, 10 << 20, 4 << 30, 1000 * page} {
		disk.resize(size)
		take(branch())
	}
	for i := range points {
		for j := range points {
			diffOf(t, s, &points[i], &points[j], disks[i], disks[j])
		}
	}
}

func diffOf(t *testing.T, s *snapshotchain.Store, a, b *snapshotchain.Point, x, y *sparse) {
	t.Helper()
	var open [2]*snapshotchain.Disk
	for i, p := range []*snapshotchain.Point{a, b} {
		var err error
		if open[i], err = s.OpenDisk(t.Context(), &p.Disks[0]); err != nil {
			t.Fatal(err)
		}
	}
	var got []blockdev.Extent
	for e, err := range snapshotchain.Diff(t.Context(), open[0], open[1]) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e)
	}
	if want := differences(x, y); !slices.Equal(got, want) {
		t.Errorf("points %d and %d: %v, want %v", a.Ordinal, b.Ordinal, got, want)
	}
}
