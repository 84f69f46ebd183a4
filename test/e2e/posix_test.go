package e2e

import (
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"livemount/test/harness"
)

// TestPosixInsideAFork runs go-fuse's tests for file systems on one that lies on a forked disk. On the mount
// itself none of them applies: its folder takes no new files, and disks have fixed sizes.
func TestPosixInsideAFork(t *testing.T) {
	d, dir := started(t)
	g := guests()["ext4 behind an MBR"]
	source := filepath.Join(dir, "source")
	g.make(t, source, nil)
	d.Backup("vm", "sda="+source)
	m := d.Mount("vm@latest", filepath.Join(dir, "m"))
	var f struct {
		Disks []struct{ Path string }
	}
	d.Must(&f, "fork", m.Mount, filepath.Join(dir, "f"))
	dev, inside := g.loop(t, f.Disks[0].Path), harness.Mkdir(t, dir, "inside")
	g.mount(t, dev, inside)
	for name, test := range posixtest.All {
		switch name {
		case "DirectIO", "FdLeak", "FcntlFlockLocksFile": // they look into a server in this process
			continue
		}
		t.Run(name, func(t *testing.T) { test(t, harness.Mkdir(t, inside, name)) })
	}
	g.unmount(t, dev, inside)
	g.clean(t, f.Disks[0].Path)
}
