package snapshotchain

import "testing"

// A list of what changed counts from the newest point that was made, and is of no use when that had not the disk or is gone.
func TestListOfChangesFitsOnlyTheNewestPointThatWasMade(t *testing.T) {
	s := openAt(t, t.TempDir())
	defer s.Close(t.Context())
	add := func(disks ...string) (p Point, current []bool) {
		t.Helper()
		var specs []DiskSpec
		for _, name := range disks {
			specs = append(specs, DiskSpec{Name: name, SizeBytes: 1 << 20})
		}
		d, err := s.Begin(t.Context(), "web", specs)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range d.Disks() {
			current = append(current, k.Current())
		}
		if p, err = d.Seal(t.Context(), SealInfo{}); err != nil {
			t.Fatal(err)
		}
		return p, current
	}
	expire := func(p Point) {
		t.Helper()
		if err := s.Expire(t.Context(), "web", p.ID); err != nil {
			t.Fatal(err)
		}
	}
	add("sda", "sdb")
	if _, current := add("sda", "sdb"); !current[0] || !current[1] {
		t.Fatal("a list does not fit the point before")
	}
	without, _ := add("sda")
	expire(without)
	if _, current := add("sda", "sdb"); current[0] || current[1] {
		t.Fatalf("a list fits a point before the newest that was made: %v", current)
	}
	last, current := add("sda", "sdb")
	if !current[0] || !current[1] {
		t.Fatal("a list does not fit the point before")
	}
	expire(last)
	if _, current := add("sda", "sdb"); current[0] || current[1] {
		t.Fatalf("a list fits an expired point: %v", current)
	}
}
