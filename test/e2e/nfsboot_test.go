package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"livemount/test/harness"
)

// captured is the configuration that a backup kept: its paths lead elsewhere.
const captured = `.encoding = "UTF-8"
config.version = "8"
virtualHW.version = "19"
displayName = "the original"
guestOS = "debian12-64"
memSize = "640"
numvcpus = "2"
firmware = "bios"
nvme0.present = "TRUE"
nvme0:0.present = "TRUE"
nvme0:0.fileName = "/vmfs/volumes/65a0c0de-12345678/original/original-000002.vmdk"
ide1:0.present = "TRUE"
ide1:0.deviceType = "cdrom-image"
ide1:0.fileName = "/vmfs/volumes/iso/debian.iso"
`

// vmxValue is a value of a .vmx, as the hypervisor reads it.
func vmxValue(t *testing.T, vmx, key string) string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(key) + ` = "(.*)"$`).FindStringSubmatch(vmx)
	if m == nil {
		t.Fatalf("the .vmx has no %s:\n%s", key, vmx)
	}
	return m[1]
}

// TestDebianBootsOverNFS boots a machine from the datastore with the hardware that its .vmx names: memory, processors and
// an NVMe disk, through QEMU's NFS driver. (Soak.)
func TestDebianBootsOverNFS(t *testing.T) {
	if harness.Soak(0, 1) == 0 {
		return
	}
	source := vmDisk(t)
	w := newWorld111(t)
	config := filepath.Join(w.dir, "original.vmx")
	if err := os.WriteFile(config, []byte(captured), 0o600); err != nil {
		t.Fatal(err)
	}
	w.d.Must(nil, "backup", "debian", "--disk", "sda="+source, "--config", config)
	before, err := harness.SumFile(source)
	if err != nil {
		t.Fatal(err)
	}
	m := mountNFS(t, w.d, "debian@latest")
	folder := m.NFSURL + "/debian/"
	vmx := w.run("nfs-cat", folder+"debian.vmx")
	disk := folder + strings.TrimSuffix(vmxValue(t, vmx, "nvme0:0.fileName"), ".vmdk") + "-flat.vmdk"
	if vmxValue(t, vmx, "firmware") != "bios" || strings.Contains(vmx, "/vmfs/") {
		t.Errorf("the .vmx:\n%s", vmx)
	}
	w.bootFrom(disk, vmxValue(t, vmx, "memSize"), vmxValue(t, vmx, "numvcpus"))
	w.d.Must(nil, "fork", m.Mount, filepath.Join(w.dir, "f"))
	look := harness.Mkdir(t, w.dir, "look")
	if n := boots(t, filepath.Join(w.dir, "f", "sda.raw"), look); n != 1 {
		t.Errorf("it has booted %d times", n)
	}
	p := w.d.Mount("debian@latest", filepath.Join(w.dir, "p"), "--read-only")
	if after, err := harness.SumFile(p.Disks[0].Path); err != nil || after != before {
		t.Errorf("the point is not what it was: %v", err)
	}
}

// bootFrom runs a machine until it powers itself off.
func (w *world111) bootFrom(disk, memory, processors string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Minute)
	defer cancel()
	args := append(w.before[1:len(w.before):len(w.before)], "qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi,tb-size=256",
		"-cpu", "Nehalem", "-smp", processors, "-m", memory, "-nodefaults", "-nographic", "-serial", "stdio", "-no-reboot",
		"-drive", "file="+disk+",format=raw,if=none,id=d0,cache=none", "-device", "nvme,drive=d0,serial=livemount,bootindex=0")
	out, err := exec.CommandContext(ctx, w.before[0], args...).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "LIVEMOUNT-BOOTED") {
		w.t.Fatalf("%s did not boot: %v\n%s", disk, err, out[max(0, len(out)-4000):])
	}
}
