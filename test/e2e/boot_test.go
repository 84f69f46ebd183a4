package e2e

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"livemount/test/harness"
)

// vmDisk makes a Debian that boots, once, in the project's build folder.
func vmDisk(t *testing.T) string {
	t.Helper()
	harness.NeedRoot(t)
	harness.Tools(t, "mmdebstrap mmdebstrap", "extlinux extlinux", "sfdisk fdisk", "qemu-system-x86_64 qemu-system-x86")
	root := filepath.Dir(strings.TrimSpace(harness.Run(t, "go", "env", "GOMOD")))
	disk := filepath.Join(root, "build", "e2e-vm.raw")
	harness.Run(t, filepath.Join(root, "test/e2e/mkvm.sh"), disk)
	return disk
}

// boot runs a machine from a disk, without help of the processor, until it powers itself off.
func boot(t *testing.T, disk string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi,tb-size=256",
		"-cpu", "Nehalem", "-smp", "2", "-m", "512", "-nodefaults", "-nographic", "-serial", "stdio", "-no-reboot",
		"-drive", "file="+disk+",format=raw,if=virtio,cache=none,aio=threads").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "LIVEMOUNT-BOOTED") {
		t.Errorf("%s did not boot: %v\n%s", disk, err, out[max(0, len(out)-4000):])
	}
}

// boots returns how often a disk says that it has booted, after checking that its file system is clean.
func boots(t *testing.T, disk, dir string) int {
	t.Helper()
	harness.Tools(t, "e2fsck e2fsprogs")
	dev := harness.Loop(t, disk, partStart, 2<<30-partStart, "--read-only")
	harness.Run(t, "e2fsck", "-f", "-n", dev)
	harness.MountFS(t, dev, dir, "ro", "noload")
	out, err := harness.Try("cat", filepath.Join(dir, "root/boots"))
	harness.Run(t, "umount", dir)
	harness.Run(t, "losetup", "-d", dev)
	if err != nil {
		return 0
	}
	return strings.Count(out, "\n")
}

// TestDebianBootsFromAMountAndItsFork: a machine boots from a point, what it did is in a fork and in a commit,
// both of which are clean, and the point is what it was.
func TestDebianBootsFromAMountAndItsFork(t *testing.T) {
	source := vmDisk(t)
	d, dir := started(t)
	d.Backup("vm", "sda="+source)
	before, err := harness.SumFile(source)
	if err != nil {
		t.Fatal(err)
	}
	m := d.Mount("vm@latest", filepath.Join(dir, "m"))
	boot(t, m.Disks[0].Path)

	var f struct {
		Disks []struct{ Path string }
	}
	d.Must(&f, "fork", m.Mount, filepath.Join(dir, "f"))
	d.Must(nil, "commit", m.Mount, "--branch", "booted")
	c := d.Mount("vm:booted@latest", filepath.Join(dir, "c"))
	look := harness.Mkdir(t, dir, "look")
	for _, disk := range []string{m.Disks[0].Path, f.Disks[0].Path, c.Disks[0].Path} {
		if n := boots(t, disk, look); n != 1 {
			t.Errorf("%s has booted %d times", disk, n)
		}
	}
	if harness.Soak(0, 1) == 1 { // all of them at once, and again
		var wg sync.WaitGroup
		for _, disk := range []string{m.Disks[0].Path, f.Disks[0].Path, c.Disks[0].Path} {
			wg.Go(func() { boot(t, disk) })
		}
		wg.Wait()
		for _, disk := range []string{m.Disks[0].Path, f.Disks[0].Path, c.Disks[0].Path} {
			if n := boots(t, disk, look); n != 2 {
				t.Errorf("%s has booted %d times", disk, n)
			}
		}
	}
	p := d.Mount("vm@latest", filepath.Join(dir, "p"), "--read-only")
	if after, err := harness.SumFile(p.Disks[0].Path); err != nil || after != before {
		t.Errorf("the point is not what it was: %v", err)
	}
}
