package snapshotchain

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// stoppedStore is a store with two VMs, of which points were expired and collected, and one is held.
func stoppedStore(t *testing.T) (Options, Point) {
	t.Helper()
	o := Options{Dir: t.TempDir(), FS: vfs.OS{}, Clock: &clock.Fixed{T: time.Unix(1_800_000_000, 0)}, ContainerBytes: 256 << 10}
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	var points []Point
	for i := range uint64(12) {
		points = append(points, putPages(t, s, "web", false, 100+i, 7, 200+i))
	}
	putPages(t, s, "db", false, 7, 8)
	for _, p := range points[1:9] {
		if err := s.Expire(t.Context(), "web", p.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Hold(t.Context(), &points[10], "audit"); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Collect(t.Context(), CollectOptions{}); err != nil || r.FreedBytes == 0 {
		t.Fatalf("%+v: %v", r, err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return o, points[0]
}

func TestCheckFindsAGoodStoreGoodAndChangesNothing(t *testing.T) {
	o, _ := stoppedStore(t)
	before := listing(t, o.Dir)
	for _, quick := range []bool{true, false} {
		c, err := Check(t.Context(), o, CheckOptions{Quick: quick})
		if err != nil || len(c.Damage) > 0 || len(c.Notes) > 0 || c.Points != 5 || (c.ReadBytes == 0) != quick {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if after := listing(t, o.Dir); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
}

// listing tells the files below a folder, with their sizes.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			b.WriteString(path + " " + info.ModTime().String() + "\n")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestCheckFindsWhatIsSpoiled breaks one thing of a store at a time.
func TestCheckFindsWhatIsSpoiled(t *testing.T) {
	files := func(t *testing.T, dir, class string) []string {
		var list []string
		filepath.WalkDir(filepath.Join(dir, "containers", class), func(path string, e os.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				list = append(list, path)
			}
			return err
		})
		if len(list) == 0 {
			t.Fatal("no containers")
		}
		return list
	}
	must := func(t *testing.T, err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, x := range map[string]struct {
		spoil           func(t *testing.T, dir string)
		damage, touches bool
		note            string
	}{
		"a data container is missing": {func(t *testing.T, dir string) { must(t, os.Remove(files(t, dir, "data")[0])) }, true, true, ""},
		"a map container is missing":  {func(t *testing.T, dir string) { must(t, os.Remove(files(t, dir, "map")[0])) }, true, false, ""},
		"the journal is cut": {func(t *testing.T, dir string) {
			j := files(t, dir, "journal")[0]
			b, err := os.ReadFile(j)
			must(t, err)
			must(t, os.WriteFile(j, append(b[:300], b[600:]...), 0o600))
		}, true, false, ""},
		"a chunk rots": {func(t *testing.T, dir string) {
			f := files(t, dir, "data")[0]
			b, err := os.ReadFile(f)
			must(t, err)
			b[5000] ^= 1
			must(t, os.WriteFile(f, b, 0o600))
		}, true, true, ""},
		"FORMAT is missing":       {func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, "FORMAT"))) }, false, false, "FORMAT"},
		"the metadata is missing": {func(t *testing.T, dir string) { must(t, os.RemoveAll(filepath.Join(dir, "meta"))) }, false, false, "is missing"},
		"a table of the metadata rots": {func(t *testing.T, dir string) {
			list, err := filepath.Glob(filepath.Join(dir, "meta", "*.sst"))
			if err != nil || len(list) == 0 {
				t.Fatal("no tables", err)
			}
			b, err := os.ReadFile(list[0])
			must(t, err)
			b[len(b)/2] ^= 1
			must(t, os.WriteFile(list[0], b, 0o600))
		}, false, false, "made again"},
	} {
		t.Run(name, func(t *testing.T) {
			o, _ := stoppedStore(t)
			x.spoil(t, o.Dir)
			c, err := Check(t.Context(), o, CheckOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if (len(c.Damage) > 0) != x.damage || (len(c.Touched) > 0) != x.touches {
				t.Errorf("damage %q, touched %v", c.Damage, c.Touched)
			}
			if (x.note != "") != (len(c.Notes) > 0) || !strings.Contains(strings.Join(c.Notes, "\n"), x.note) {
				t.Errorf("notes %q", c.Notes)
			}
		})
	}
}

func TestRebuildBringsEverythingBack(t *testing.T) {
	o, first := stoppedStore(t)
	damage, err := Rebuild(t.Context(), o)
	if err != nil || len(damage) > 0 {
		t.Fatalf("%q: %v", damage, err)
	}
	if _, err := os.Stat(filepath.Join(o.Dir, "meta.bad-1")); err != nil {
		t.Error("the old metadata was not kept", err)
	}
	s := openAt(t, o.Dir)
	defer s.Close(t.Context())
	vm, err := s.VM("web")
	if err != nil {
		t.Fatal(err)
	}
	points, err := s.Points(t.Context(), &vm)
	if err != nil || len(points) != 4 || points[0].ID != first.ID {
		t.Fatalf("%d points: %v", len(points), err)
	}
	for i := range points {
		if proof := proofOf(t, s, &points[i]); len(proof.Bad) > 0 {
			t.Errorf("%+v", proof)
		}
	}
	if g := s.GuardOf(&points[2]); len(g.Holds) != 1 || g.Holds[0].Reason != "audit" {
		t.Errorf("%+v", g)
	}
	if err := s.Expire(t.Context(), "web", points[2].ID); !errs.Is(err, errs.Busy) {
		t.Errorf("a held point was expired: %v", err)
	}
}

func TestStoreOfANewerVersionIsLeftAlone(t *testing.T) {
	o, _ := stoppedStore(t)
	text := `{"format": 2, "store": "000102030405060708090a0b0c0d0e0f"}`
	if err := vfs.WriteChecked(vfs.OS{}, filepath.Join(o.Dir, "FORMAT"), []byte(text)); err != nil {
		t.Fatal(err)
	}
	before := listing(t, o.Dir)
	if _, err := Open(t.Context(), o); !errs.Is(err, errs.Newer) {
		t.Error(err)
	}
	if _, err := Check(t.Context(), o, CheckOptions{}); !errs.Is(err, errs.Newer) {
		t.Error(err)
	}
	if after := listing(t, o.Dir); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
}

// Metadata that is replaced again and again does not fill the disk.
func TestOnlyTheNewestBadMetadataIsKept(t *testing.T) {
	o, _ := stoppedStore(t)
	for range keptAside + 2 {
		if _, err := Rebuild(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	names, err := filepath.Glob(filepath.Join(o.Dir, "meta.bad-*"))
	if err != nil || len(names) != keptAside || filepath.Base(names[0]) != "meta.bad-1" || filepath.Base(names[2]) != "meta.bad-5" {
		t.Fatalf("%v: %v", names, err)
	}
}
