package snapshotchain

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
)

func openAt(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Options{Dir: dir, FS: vfs.OS{}, Clock: &clock.Fixed{T: time.Unix(1_800_000_000, 0)}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func emptyPoint(t *testing.T, s *Store, vm string) Point {
	t.Helper()
	d, err := s.Begin(t.Context(), vm, []DiskSpec{{Name: "sda", SizeBytes: 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := d.Seal(t.Context(), SealInfo{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func beginBranch(t *testing.T, s *Store, vm string, p Point) *Draft {
	t.Helper()
	v, err := s.VM(vm)
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.BeginBranch(t.Context(), Branch{VM: v.ID, Name: vm + ":x", Parent: p.ID}, []DiskSpec{{Name: "sda", SizeBytes: 1 << 20, Base: p.Disk("sda")}})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestRenameWaitsForTheFirstCommitToABranch(t *testing.T) {
	s := openAt(t, t.TempDir())
	defer s.Close(t.Context())
	p := emptyPoint(t, s, "web")
	d := beginBranch(t, s, "web", p)
	rerr := s.Rename(t.Context(), "web", "web2")
	_, serr := d.Seal(t.Context(), SealInfo{})
	if !errs.Is(rerr, errs.Busy) || serr != nil {
		t.Errorf("rename: %v, seal: %v", rerr, serr)
	}
}

func TestRemoveWaitsForTheFirstCommitToABranch(t *testing.T) {
	s := openAt(t, t.TempDir())
	defer s.Close(t.Context())
	p := emptyPoint(t, s, "web")
	d := beginBranch(t, s, "web", p)
	rerr := s.Remove(t.Context(), "web")
	_, serr := d.Seal(t.Context(), SealInfo{})
	if !errs.Is(rerr, errs.Busy) || serr != nil {
		t.Errorf("remove: %v, seal: %v", rerr, serr)
	}
}

// rotJournal spoils the payload of the n-th journal record (from 1), and of its twin, and removes Badger.
func rotJournal(t *testing.T, dir string, n int) {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(dir, "containers", "journal", "*"))
	i := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for off := 128; off+64 <= len(b) && string(b[off:off+4]) == "LMR1"; {
			pl, aux := int(binary.LittleEndian.Uint32(b[off+12:])), int(binary.LittleEndian.Uint32(b[off+20:]))
			if i++; (i+1)/2 == n {
				b[off+64+aux+pl/2] ^= 0xff
				if err := os.WriteFile(f, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			off += (64 + aux + pl + 7) &^ 7
		}
	}
	if i < 2*n {
		t.Fatalf("only %d records in %v", i, files)
	}
	if err := os.RemoveAll(filepath.Join(dir, "meta")); err != nil {
		t.Fatal(err)
	}
}

func TestADropWhoseSealWasLostTakesNothingElseAway(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir)
	a := emptyPoint(t, s, "web")                               // records 1, 2
	emptyPoint(t, s, "web")                                    // 3, 4
	emptyPoint(t, s, "web")                                    // 5, 6
	if err := s.Expire(t.Context(), "web", a.ID); err != nil { // 7
		t.Fatal(err)
	}
	s.Close(t.Context())
	rotJournal(t, dir, 2) // the seal of the dropped point
	s = openAt(t, dir)
	defer s.Close(t.Context())
	vm, err := s.VM("web")
	if err != nil {
		t.Fatal(err)
	}
	list, err := s.Points(t.Context(), &vm)
	if err != nil || len(list) != 2 {
		t.Errorf("two sound points cannot be listed: %v", err)
	}
}

func TestALostRenameLeavesOneVMOfAName(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir)
	emptyPoint(t, s, "web")                                     // 1, 2
	if err := s.Rename(t.Context(), "web", "old"); err != nil { // 3
		t.Fatal(err)
	}
	emptyPoint(t, s, "web") // 4, 5
	s.Close(t.Context())
	rotJournal(t, dir, 3)
	s = openAt(t, dir)
	defer s.Close(t.Context())
	names := map[string]int{}
	for _, v := range s.VMs() {
		names[v.Name]++
	}
	if names["web"] > 1 {
		t.Error("two VMs are named web")
	}
	seen := map[VMID]int{}
	for range 50 {
		v, _ := s.VM("web")
		seen[v.ID]++
	}
	if len(seen) != 1 {
		t.Errorf("the name web means one of %v", seen)
	}
}

func TestALostSealDoesNotBringARemovedVMBackUnderItsName(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir)
	emptyPoint(t, s, "web")                              // 1, 2
	emptyPoint(t, s, "web")                              // 3, 4
	if err := s.Remove(t.Context(), "web"); err != nil { // 5
		t.Fatal(err)
	}
	emptyPoint(t, s, "web") // 6, 7
	s.Close(t.Context())
	rotJournal(t, dir, 2)
	s = openAt(t, dir)
	defer s.Close(t.Context())
	if v, err := s.VM("web"); err != nil || v.Points != 1 {
		t.Errorf("the VM made last has %d points: %v", v.Points, err)
	}
}

// What a point put into a container that others had begun is read from it once it is full, too.
func TestAContainerThatManyPointsFilledIsReadWhole(t *testing.T) {
	s, err := Open(t.Context(), Options{Dir: t.TempDir(), FS: vfs.OS{}, Clock: &clock.Fixed{T: time.Unix(1_800_000_000, 0)}, ContainerBytes: 1 << 18})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context())
	rng := rand.New(rand.NewPCG(1, 2))
	var list []Point
	var configs [][]byte
	for range 12 {
		d, err := s.Begin(t.Context(), "vm", []DiskSpec{{Name: "sda", SizeBytes: LeafBytes}})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Disks()[0].SetLeaf(t.Context(), 0, []Run{{Page: 1, Len: 1}}); err != nil {
			t.Fatal(err)
		}
		config := make([]byte, 50_000)
		for i := range config {
			config[i] = byte(rng.Uint32())
		}
		p, err := d.Seal(t.Context(), SealInfo{ConfigName: "vm.xml", Config: config})
		if err != nil {
			t.Fatal(err)
		}
		list, configs = append(list, p), append(configs, config)
	}
	for i := range list {
		if got, err := s.Config(t.Context(), &list[i]); err != nil || !bytes.Equal(got, configs[i]) {
			t.Errorf("configuration of point %d: %d bytes, %v", i, len(got), err)
		}
	}
}

// A point whose record Badger lost is read from the journal, and can be pinned and held as any other.
func TestPointThatBadgerLostCanBePinnedAndHeld(t *testing.T) {
	s := openAt(t, t.TempDir())
	defer s.Close(t.Context())
	p := emptyPoint(t, s, "web")
	list := &puts{}
	list.add(keyPoint(p.VM, 1), nil)
	if err := s.write(list); err != nil {
		t.Fatal(err)
	}
	vm, err := s.VM("web")
	if err != nil {
		t.Fatal(err)
	}
	points, err := s.Points(t.Context(), &vm)
	if err != nil || len(points) != 1 {
		t.Fatalf("%d points: %v", len(points), err)
	}
	if err := s.write(list); err != nil { // what healed it is lost as well
		t.Fatal(err)
	}
	pin, err := s.Pin(&points[0], "test")
	if err != nil {
		t.Fatal(err)
	}
	pin.Release()
	if err := s.Hold(t.Context(), &points[0], "test"); err != nil {
		t.Fatal(err)
	}
}
