package e2e

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"livemount/server/api"
	"livemount/test/harness"
)

// world111 is a network namespace with a daemon that is its portmapper as well.
type world111 struct {
	t      *testing.T
	d      *harness.Daemon
	dir    string
	before []string
	disk   []byte
	m      api.Mount
}

func newWorld111(t *testing.T) *world111 {
	t.Helper()
	w := &world111{t: t, before: harness.Namespace(t), dir: harness.Dir(t)}
	w.d = harness.New(t, filepath.Join(w.dir, "store"), "--log-level", "warn", "--nfs-listen", "127.0.0.1:2049", "--nfs-portmap",
		"--nfs-allow", "127.0.0.0/8,insecure") // QEMU's user network
	w.d.Before = w.before
	w.d.Start()
	w.disk = disk(t, rand.New(rand.NewPCG(harness.Seed(t), 0)), filepath.Join(w.dir, "disk"), 4096)
	w.d.Backup("vm", "sda="+filepath.Join(w.dir, "disk"))
	w.m = mountNFS(t, w.d, "vm@latest")
	return w
}

// run runs a program in the namespace.
func (w *world111) run(name string, args ...string) string {
	w.t.Helper()
	return harness.Run(w.t, w.before[0], append(append(w.before[1:len(w.before):len(w.before)], name), args...)...)
}

// TestLibnfsPrograms: libnfs finds the ports by itself, lists, reads, writes and copies.
func TestLibnfsPrograms(t *testing.T) {
	harness.Tools(t, "nfs-ls libnfs-utils", "nfs-cat libnfs-utils", "nfs-cp libnfs-utils")
	w := newWorld111(t)
	url := w.m.NFSURL
	if strings.Contains(url, "port=") {
		t.Errorf("the ports are standard, and said all the same: %s", url)
	}
	if out := w.run("nfs-ls", "-R", url); !strings.Contains(out, "vm.vmx") || !strings.Contains(out, "sda-flat.vmdk") {
		t.Errorf("nfs-ls: %s", out)
	}
	out, err := exec.Command(w.before[0], append(w.before[1:len(w.before):len(w.before)], "nfs-cat", w.m.Disks[0].NFSURL)...).Output()
	if err != nil || harness.Sum(out) != harness.Sum(w.disk) {
		t.Errorf("nfs-cat: %d bytes, %v", len(out), err)
	}
	local, back := filepath.Join(w.dir, "local"), filepath.Join(w.dir, "back")
	if err := os.WriteFile(local, w.disk[:3_000_001], 0o600); err != nil {
		t.Fatal(err)
	}
	w.run("nfs-cp", local, url+"/vm/copy")
	w.run("nfs-cp", url+"/vm/copy", back)
	if sum, err := harness.SumFile(back); err != nil || sum != harness.Sum(w.disk[:3_000_001]) {
		t.Errorf("copied there and back: %v", err)
	}
	// The same by explicit ports, as the URL of a server elsewhere says.
	w.run("nfs-cp", url+"/vm/copy?nfsport=2049&mountport=2049", filepath.Join(w.dir, "ports"))
	if now := w.d.MountByID(w.m.Mount); now.NFS.ReadBytes < int64(len(w.disk)) || now.NFS.WrittenBytes < 3_000_001 || len(now.NFS.Clients) != 1 {
		t.Errorf("counted: %+v", now.NFS)
	}
	r := w.d.Ctl("unmount", w.m.Mount, "--yes")
	if r.Code != 11 || !strings.Contains(r.Err, "NFS clients have it mounted: 127.0.0.1") {
		t.Errorf("unmount under a client: %d, %s", r.Code, r.Err)
	}
	w.d.Must(nil, "unmount", w.m.Mount, "--yes", "--force")
	if out, err := harness.Try(w.before[0], append(w.before[1:len(w.before):len(w.before)], "nfs-ls", url)...); err == nil {
		t.Errorf("after unmount: %s", out)
	}
}

// TestQemuOverNFS: QEMU's NFS driver reads and writes the disk; its VMDK driver opens the descriptor.
func TestQemuOverNFS(t *testing.T) {
	harness.Tools(t, "qemu-io qemu-utils", "qemu-img qemu-utils")
	w := newWorld111(t)
	flat := w.m.Disks[0].NFSURL
	source := filepath.Join(w.dir, "disk")
	w.run("qemu-img", "compare", "-f", "raw", "-F", "raw", flat, source)
	// QEMU's NFS driver takes the descriptor for a folder when it looks for its extent: through FUSE it does not.
	store := w.d.Mount("vm@latest", "--datastore", filepath.Join(w.dir, "store-of-vm"))
	descriptor := strings.TrimSuffix(store.Disks[0].Path, "-flat.vmdk") + ".vmdk"
	if out := w.run("qemu-img", "info", "-f", "vmdk", descriptor); !strings.Contains(out, "virtual size: 16 MiB") {
		t.Errorf("qemu-img info: %s", out)
	}
	w.run("qemu-img", "compare", "-f", "vmdk", "-F", "raw", descriptor, source)
	w.run("qemu-io", "-f", "raw", "-c", "write -P 0x5a 1M 64k", "-c", "write -P 0xa5 5000 300", "-c", "flush", flat)
	w.run("qemu-io", "-f", "raw", "-r", "-c", "read -P 0x5a 1M 64k", "-c", "read -P 0xa5 5000 300", flat)
	w.run("qemu-img", "bench", "-f", "raw", "-w", "-c", "2000", "-d", "32", "-s", "4096", flat)
	w.run("qemu-img", "bench", "-f", "raw", "-c", "2000", "-d", "32", "-s", "65536", flat)
	w.run("qemu-io", "-f", "raw", "-c", "write -P 0x77 9M 64k", "-c", "flush", flat)
	w.d.Kill()
	w.d.Start()
	w.run("qemu-io", "-f", "raw", "-r", "-c", "read -P 0x77 9M 64k", "-c", "read -P 0 1M 64k", flat)
	ro := w.d.Mount("vm@latest", filepath.Join(w.dir, "ro"), "--read-only")
	if sum, err := harness.SumFile(ro.Disks[0].Path); err != nil || sum != harness.Sum(w.disk) {
		t.Errorf("the point changed: %v", err)
	}
}

// TestLinuxClientFindsThePorts: the kernel's client mounts without being told ports, and showmount sees it.
func TestLinuxClientFindsThePorts(t *testing.T) {
	harness.Tools(t, "showmount nfs-common", "rpcinfo rpcbind")
	w := newWorld111(t)
	if out := w.run("rpcinfo", "-p", "127.0.0.1"); !strings.Contains(out, "100003    3   tcp   2049") || !strings.Contains(out, "100005    3   udp   2049") {
		t.Errorf("rpcinfo: %s", out)
	}
	if out := w.run("showmount", "-e", "127.0.0.1"); !strings.Contains(out, w.m.NFS.Export) || !strings.Contains(out, "127.0.0.0/8") {
		t.Errorf("showmount -e: %s", out)
	}
	script := "mount.nfs 10.0.2.2:" + w.m.NFS.Export + " /mnt -o vers=3,nolock\necho MOUNTED\nls /mnt/vm\nmd5sum < /mnt/vm/sda-flat.vmdk | sed 's/^/DISK /'\numount.nfs /mnt\n"
	var seen string
	out := runGuest(t, script, map[string]func(){"MOUNTED": func() { seen = w.run("showmount", "-a", "127.0.0.1") }}, w.before...)
	if !strings.Contains(out, "DISK "+md5Of(w.disk)) {
		t.Errorf("the guest reads another disk: %s", out)
	}
	if now := w.d.MountByID(w.m.Mount); len(now.NFS.Clients) != 0 {
		t.Errorf("after umount: %+v", now.NFS.Clients)
	}
	w.d.Must(nil, "unmount", w.m.Mount, "--yes")
	if !strings.Contains(seen, "127.0.0.1:"+w.m.NFS.Export) {
		t.Errorf("showmount -a: %q; the guest: %s", seen, out)
	}
}
