package snapshotchain

import (
	"testing"
	"time"

	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// A list that changed since its VM was asked for does not add up, and is not damaged.
func TestPointsThatChangedMeanwhileAreNotDamage(t *testing.T) {
	m := vfs.NewMem()
	if err := m.MkdirAll("/c"); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), Options{Dir: t.TempDir(), FS: m, Containers: "/c", Clock: &clock.Fixed{T: time.Unix(1_800_000_000, 0)}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context())
	seal := func() VM {
		d, err := s.Begin(t.Context(), "web", []DiskSpec{{Name: "sda", SizeBytes: 1 << 20}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Seal(t.Context(), SealInfo{}); err != nil {
			t.Fatal(err)
		}
		vm, err := s.VM("web")
		if err != nil {
			t.Fatal(err)
		}
		return vm
	}
	old := seal()
	seal()
	s.points.Clear()
	if _, err := s.Points(t.Context(), &old); !errs.Is(err, errs.Busy) {
		t.Errorf("points of what the VM was: %v", err)
	}
	if _, list, err := s.PointsOf(t.Context(), old.ID); len(list) != 2 || err != nil {
		t.Errorf("%d points, %v", len(list), err)
	}
}
