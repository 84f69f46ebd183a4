package server

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"livemount/ingest"
	"livemount/internal/clock"
	"livemount/internal/vfs"
	"livemount/server/api"
	"livemount/snapshotchain"
)

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s(Debian: qemu-utils)", name, args, err, out)
	}
}

// backup takes in one image in the way of the API.
func (s *Server) backupImage(t *testing.T, path, backingDir string) snapshotchain.PointDisk {
	t.Helper()
	d, err := s.openSource(&api.DiskSource{Name: "sda", Source: path, BackingDir: backingDir}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Source.Close()
	var c ingest.Counters
	p, err := ingest.Run(t.Context(), s.store, ingest.Request{VM: "web", Disks: []ingest.Disk{*d}}, &c, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	return p.Disks[0]
}

// TestOnlyTheClustersAboveTheParentsImageAreRead backs up a raw disk, then the snapshots that stand on it.
func TestOnlyTheClustersAboveTheParentsImageAreRead(t *testing.T) {
	dir, ctx := t.TempDir(), context.Background()
	// The clock is ahead, so that the images are old enough to be told by their times.
	c := &clock.Fixed{T: time.Now().Add(time.Hour)}
	store, err := snapshotchain.Open(ctx, snapshotchain.Options{Dir: filepath.Join(dir, "store"), FS: vfs.OS{}, Clock: c})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close(ctx)
	s := &Server{store: store, clock: c, config: Config{Data: filepath.Join(dir, "store")}}
	path := func(name string) string { return filepath.Join(dir, name) }

	content := make([]byte, 4<<20)
	for i := range content {
		content[i] = byte(i>>12) + 1
	}
	if err := os.WriteFile(path("base.raw"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	first := s.backupImage(t, path("base.raw"), "")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", path("base.raw"), "-F", "raw", path("s1.qcow2"))
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 9 1M 100k", "-c", "write -z 2M 64k", path("s1.qcow2"))
	second := s.backupImage(t, path("s1.qcow2"), dir)
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", path("s1.qcow2"), "-F", "qcow2", path("s2.qcow2"), "5M")
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 64k 4k", path("s2.qcow2"))
	third := s.backupImage(t, path("s2.qcow2"), dir)
	if first.Mode != "full" || second.Mode != "list" || third.Mode != "list" {
		t.Fatalf("modes %s, %s, %s", first.Mode, second.Mode, third.Mode)
	}
	if second.ReadBytes != 128<<10 || third.ReadBytes != 64<<10 {
		t.Fatalf("read %d and %d bytes, want the two data clusters, then one", second.ReadBytes, third.ReadBytes)
	}
	// Another way to the same content: the root hash is that of the content.
	run(t, "qemu-img", "convert", "-O", "raw", path("s2.qcow2"), path("flat.raw"))
	if flat := s.backupImage(t, path("flat.raw"), ""); flat.Root != third.Root || flat.ChangedBytes != 0 {
		t.Fatalf("the flattened image differs: %d bytes", flat.ChangedBytes)
	}
	// An image that was written to since is no longer what the point was made of.
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 5 0 4k", path("s2.qcow2"))
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", path("s2.qcow2"), "-F", "qcow2", path("s3.qcow2"))
	if fourth := s.backupImage(t, path("s3.qcow2"), dir); fourth.Mode != "compare" || fourth.ChangedBytes != 4096 {
		t.Fatalf("mode %s, changed %d", fourth.Mode, fourth.ChangedBytes)
	}
}
