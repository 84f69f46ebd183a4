package snapshotchain

import (
	"context"
	"testing"
)

func proveAll(t *testing.T, s *Store) {
	t.Helper()
	s.DropCaches()
	for _, v := range s.VMs() {
		pts, err := s.Points(t.Context(), &v)
		if err != nil {
			t.Error(err)
			continue
		}
		for i := range pts {
			pr, err := s.Verify(t.Context(), &pts[i].Disks[0], nil)
			if err != nil || len(pr.Bad) > 0 {
				t.Errorf("%s point %s seq %d: %+v %v", v.Name, pts[i].ID, pts[i].Disks[0].Seq, pr, err)
			}
		}
	}
}

// contents returns n contents, distinct.
func contents(from uint64, n int) []uint64 {
	l := make([]uint64, n)
	for i := range l {
		l[i] = from + uint64(i)
	}
	return l
}

// The second point is kept by a branch, expired, and the third compared with the first: what the third shows is not what
// lies on top of the second.
func TestHistoryThatIsNoLineIsMarked(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir)
	p1 := putPages(t, s, "web", false, contents(100, 10)...)
	l := make([]uint64, 10)
	for i := 0; i < 9; i++ {
		l[i] = 500 + uint64(i)
	}
	p2 := putPages(t, s, "web", false, l...)
	d, err := s.BeginBranch(t.Context(), Branch{VM: p2.VM, Name: "web:b", Parent: p2.ID}, []DiskSpec{{Name: "sda", SizeBytes: 64 << 20, Base: &p2.Disks[0]}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Seal(t.Context(), SealInfo{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Expire(t.Context(), "web", p2.ID); err != nil {
		t.Fatal(err)
	}
	putPages(t, s, "web", false, 0, 0, 0, 0, 0, 0, 0, 0, 0, 900)
	if err := s.Expire(t.Context(), "web", p1.ID); err != nil {
		t.Fatal(err)
	}
	proveAll(t, s)
	if t.Failed() {
		t.Fatal("before gc")
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, dir) // containers are sealed now
	c, err := s.Collect(t.Context(), CollectOptions{})
	t.Logf("%+v %v", c, err)
	proveAll(t, s)
	s.Close(t.Context())
}

// The same with a disk that is open instead of a branch.
func TestHistoryBesideAnOpenDiskIsMarked(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir)
	p1 := putPages(t, s, "web", false, contents(100, 10)...)
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, dir)
	l := make([]uint64, 10)
	for i := 0; i < 9; i++ {
		l[i] = 500 + uint64(i)
	}
	p2 := putPages(t, s, "web", false, l...)
	open, err := s.OpenDisk(t.Context(), &p2.Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Expire(t.Context(), "web", p2.ID); err != nil {
		t.Fatal(err)
	}
	putPages(t, s, "web", false, 0, 0, 0, 0, 0, 0, 0, 0, 0, 900)
	if err := s.Expire(t.Context(), "web", p1.ID); err != nil {
		t.Fatal(err)
	}
	c, err := s.Collect(t.Context(), CollectOptions{})
	t.Logf("%+v %v", c, err)
	open.Close()
	proveAll(t, s)
	s.Close(t.Context())
}

// Two points are made while a collection marks, and the first of them, which found chunks that nobody needed, is expired.
func TestPointThatCameAndWentWhileMarkingIsMarked(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir)
	p1 := putPages(t, s, "web", false, contents(100, 10)...) // will be expired: dead
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, dir)
	putPages(t, s, "web", true, contents(300, 10)...)
	putPages(t, s, "web", false, contents(400, 1)...) // so that the delta of p3 covers one version
	if err := s.Expire(t.Context(), "web", p1.ID); err != nil {
		t.Fatal(err)
	}
	// what Collect does, step by step
	if err := s.packing.take(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := &collector{s: s, o: CollectOptions{Pace: func(ctx context.Context, _ int64) error { return ctx.Err() }}}
	c.live = newSlotSet(s.sealedStates())
	var err error
	if c.keep, err = s.whatIsKept(t.Context()); err != nil {
		t.Fatal(err)
	}
	m := &marker{s: s, keep: c.keep, live: c.live, purge: &purger{db: s.db, admit: s.opts.AdmitCommit}}
	if err := m.mark(t.Context(), func(f forgotten) error { return c.forget(t.Context(), f) }); err != nil {
		t.Fatal(err)
	}
	// meanwhile: two backups, and the first of them is expired
	p2 := putPages(t, s, "web", false, contents(100, 10)...) // finds all in the container of p1
	putPages(t, s, "web", false, 0, 0, 0, 0, 0, 0, 0, 0, 0, 900)
	if err := s.Expire(t.Context(), "web", p2.ID); err != nil {
		t.Fatal(err)
	}
	list, err := c.candidates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.sweep(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	s.packing.leave()
	t.Logf("%+v", c.report)
	proveAll(t, s)
	s.Close(t.Context())
}

// A branch whose points were all expired is begun again on a newer lineage.
func TestEmptiedBranchBeginsANewLineage(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir)
	p1 := putPages(t, s, "web", false, contents(100, 10)...)
	commit := func(name string, parent PointID, base *Point) Point {
		d, err := s.BeginBranch(t.Context(), Branch{VM: p1.VM, Name: name, Parent: parent}, []DiskSpec{{Name: "sda", SizeBytes: 64 << 20, Base: &base.Disks[0]}})
		if err != nil {
			t.Fatal(err)
		}
		p, err := d.Seal(t.Context(), SealInfo{})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	x := commit("web:x", p1.ID, &p1)
	y := commit("web:y", p1.ID, &p1)
	if err := s.Expire(t.Context(), "web:x", x.ID); err != nil {
		t.Fatal(err)
	}
	commit("web:x", 0, &y)
	proveAll(t, s)
	s.Close(t.Context())
}
