package server

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/snapshotchain"
)

func exampleRecord() *mountRecord {
	return &mountRecord{
		ID: 1, VM: "web", VMID: 2, Point: 3, PointTime: time.Unix(1_800_000_000, 0).UTC(), Created: time.Unix(1_800_000_001, 0).UTC(),
		Path: "/mnt/web", MadeDir: true, State: stateMounted,
		Disks: []mountDisk{{Node: 2, Disk: snapshotchain.PointDisk{Name: "sda", Lineage: 4, Seq: 5, SizeBytes: 6}}},
	}
}

func TestGoldenMountRecord(t *testing.T) {
	dir := t.TempDir()
	if err := exampleRecord().write(dir); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "record.a"))
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("LIVEMOUNT_GOLDEN") == "write" {
		if err := os.WriteFile("testdata/record.golden", got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/record.golden")
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the format of a mount record changed: %v\n%s", err, got)
	}
}

// Whatever byte of one of the two records is flipped, the other one counts, or both say the same.
func TestAFlippedByteInARecordLosesNoMount(t *testing.T) {
	dir := t.TempDir()
	r := exampleRecord()
	for range 2 {
		if err := r.write(dir); err != nil {
			t.Fatal(err)
		}
	}
	newest := filepath.Join(dir, "record.b")
	content, err := os.ReadFile(newest)
	if err != nil {
		t.Fatal(err)
	}
	for pos := range content {
		spoiled := bytes.Clone(content)
		spoiled[pos] ^= 1 << (pos % 8)
		if err := os.WriteFile(newest, spoiled, 0o600); err != nil {
			t.Fatal(err)
		}
		got, _, err := readMountRecord(dir)
		if err != nil || got.Path != "/mnt/web" || got.Point != 3 || len(got.Disks) != 1 || got.Disks[0].Disk.Seq != 5 {
			t.Fatalf("flip at %d: %+v, %v", pos, got, err)
		}
	}
}

func TestANewerMountRecordIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := vfs.WriteChecked(vfs.OS{}, filepath.Join(dir, "record.a"), []byte(`{"format": 2}`)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := readMountRecord(dir); !errs.Is(err, errs.Newer) {
		t.Fatal(err)
	}
}

func FuzzMountRecord(f *testing.F) {
	dir := f.TempDir()
	if err := exampleRecord().write(dir); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "record.a"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := parseMountRecord("fuzz", b); err != nil && !errs.Is(err, errs.Corrupt) && !errs.Is(err, errs.Newer) {
			t.Fatal(err)
		}
	})
}
