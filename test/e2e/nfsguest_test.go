package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"livemount/server/api"
	"livemount/test/harness"
	"livemount/test/nfsclient"
)

// freePort is a port of the loopback that nobody has.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// withNFS is a running daemon that serves NFS at a port of its own.
func withNFS(t *testing.T, more ...string) (*harness.Daemon, string) {
	t.Helper()
	harness.NeedRoot(t)
	dir := harness.Dir(t)
	args := append([]string{"--log-level", "warn", "--nfs-listen", fmt.Sprintf("127.0.0.1:%d", freePort(t)), "--nfs-allow", "127.0.0.0/8,insecure"}, more...)
	d := harness.New(t, filepath.Join(dir, "store"), args...)
	d.Start()
	return d, dir
}

// mountNFS exports a point, and shows it in no folder.
func mountNFS(t *testing.T, d *harness.Daemon, ref string, more ...string) api.Mount {
	t.Helper()
	var m api.Mount
	d.Must(&m, append([]string{"mount", ref, "--nfs"}, more...)...)
	return m
}

// guestFiles makes the small guest, once, in the project's build folder.
func guestFiles(t *testing.T) string {
	t.Helper()
	harness.NeedRoot(t)
	harness.Tools(t, "qemu-system-x86_64 qemu-system-x86", "cpio cpio", "depmod kmod", "mount.nfs nfs-common", "busybox busybox-static", "fio fio")
	root := filepath.Dir(strings.TrimSpace(harness.Run(t, "go", "env", "GOMOD")))
	dir := filepath.Join(root, "build", "e2e-guest")
	harness.Run(t, filepath.Join(root, "test/e2e/mkguest.sh"), dir)
	return dir
}

// runGuest runs a shell script in the small guest. Each line MARK that it prints calls on[MARK]. The command may be run
// in front of QEMU: to enter a network namespace.
func runGuest(t *testing.T, script string, on map[string]func(), before ...string) string {
	t.Helper()
	dir, work := guestFiles(t), harness.Dir(t)
	if err := os.WriteFile(filepath.Join(work, "test.sh"), []byte("echo\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	harness.Run(t, "sh", "-c", fmt.Sprintf("cd %s && echo test.sh | cpio -o -H newc --quiet | gzip -1 > test.gz && cat %s/initrd.gz test.gz > initrd.gz", work, dir))
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	args := append(before, "qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "Nehalem", "-smp", "2",
		"-m", "512", "-nodefaults", "-nographic", "-serial", "stdio", "-no-reboot",
		"-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile=",
		"-drive", "file="+dir+"/tools.ext4,format=raw,if=virtio,readonly=on,file.locking=off",
		"-kernel", dir+"/vmlinuz", "-initrd", filepath.Join(work, "initrd.gz"), "-append", "console=ttyS0 panic=-1 quiet mitigations=off")
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = c.Stdout
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	said := listen(out, on)
	if err := c.Wait(); err != nil || !strings.Contains(said, "TEST-STATUS=0") {
		t.Fatalf("the guest: %v\n%s", err, said[max(0, len(said)-6000):])
	}
	return said
}

func listen(out io.Reader, on map[string]func()) string {
	var said bytes.Buffer
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		said.WriteString(line + "\n")
		if f := on[line]; f != nil {
			f()
		}
	}
	return said.String()
}

// checks is what the Linux client does to a datastore mounted at /mnt.
const checks = `
cd /mnt/vm
ls -l
echo made > new
if (set -C; : > new) 2>/dev/null; then echo "made twice"; exit 1; fi
(set -C; echo exclusive > excl)
dd if=/dev/urandom of=data bs=64k count=32 conv=fsync 2>/dev/null
sum=$(md5sum < data)
cp data copy; sync
mv copy data2; mv data data2
[ "$(md5sum < data2)" = "$sum" ]
[ ! -e data ]
ln data2 link
[ "$(stat -c %h link)" = 2 ]
dd if=/dev/null of=link bs=1 seek=100000 2>/dev/null
[ "$(stat -c %s data2)" = 100000 ]
md5sum < data2 > /tmp/sum
rm data2
truncate -s 3G sparse
[ "$(stat -c %s sparse)" = 3221225472 ]
printf x | dd of=sparse bs=1 seek=3000000000 conv=notrunc 2>/dev/null
ln -s new sym; [ "$(cat sym)" = made ]
chmod 640 new; chown 7:8 new; [ "$(stat -c %a:%u:%g new)" = 640:7:8 ]
mkdir -p a/b/c; echo deep > a/b/c/f; mv a/b z; [ "$(cat z/c/f)" = deep ]
rmdir a
if rmdir z 2>/dev/null; then echo "removed a full folder"; exit 1; fi
[ "$(ls many | wc -l)" = 20000 ]
[ "$(find many -type f | wc -l)" = 20000 ]
[ "$(cat many/name-12345)" = 12345 ]
rm many/name-1????
[ "$(ls many | wc -l)" = 10000 ]
df /mnt | tail -1
dd if=sda-flat.vmdk of=/dev/null bs=1M 2>/dev/null
md5sum < sda-flat.vmdk | sed 's/^/DISK /'
exec 3<new; rm new; [ "$(cat <&3)" = made ]; exec 3<&-
cd /
umount.nfs /mnt
`

const again = `
cd /mnt/vm
[ "$(cat excl)" = exclusive ]
[ "$(stat -c %s sparse)" = 3221225472 ]
[ "$(dd if=sparse bs=1 skip=3000000000 count=1 2>/dev/null)" = x ]
[ "$(ls many | wc -l)" = 10000 ]
[ ! -e new ]
[ "$(md5sum < link)" = "$(cat /tmp/sum)" ]
cd /
`

// many makes 20,000 files with many calls at a time.
func many(t *testing.T, m *api.Mount) {
	t.Helper()
	ctx := t.Context()
	c, err := nfsclient.Dial(ctx, fmt.Sprintf("127.0.0.1:%d", m.NFS.Port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	vm, err := c.MountPath(ctx, m.NFS.Export+"/vm")
	if err != nil {
		t.Fatal(err)
	}
	dir, _, err := c.Mkdir(ctx, vm, "many")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	const at = 100
	for part := range at {
		wg.Go(func() {
			for i := part; i < 20000; i += at {
				h, _, err := c.Create(ctx, dir, fmt.Sprintf("name-%05d", i), 1, nfsclient.Nothing())
				if err == nil && i == 12345 {
					_, _, err = c.Write(ctx, h, 0, []byte("12345\n"), nfsclient.FileSync)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func vmDisk16(t *testing.T, d *harness.Daemon, dir string) []byte {
	t.Helper()
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	b := disk(t, rng, filepath.Join(dir, "disk"), 4096)
	d.Backup("vm", "sda="+filepath.Join(dir, "disk"))
	return b
}

// TestLinuxClient: the kernel's client does what programs ask of it, mounts again, and works on while the server is killed
// and started again under fio, which checks what it wrote.
func TestLinuxClient(t *testing.T) {
	d, dir := withNFS(t)
	b := vmDisk16(t, d, dir)
	m := mountNFS(t, d, "vm@latest")
	many(t, &m)
	mount := fmt.Sprintf("mount.nfs 10.0.2.2:%s /mnt -o vers=3,tcp,hard,port=%d,mountport=%d,mountproto=tcp,nolock,noacl\n", m.NFS.Export, m.NFS.Port, m.NFS.MountPort)
	kill := func() {
		d.Kill()
		if err := d.TryStart(); err != nil {
			t.Error(err)
		}
	}
	script := mount + checks + mount + again + `
cd /mnt/vm
/tools/run fio --name=v --filename=fiofile --size=8m --rw=randwrite --bs=16k --ioengine=psync --fsync=16 --verify=crc32c --do_verify=1 \
  --verify_fatal=1 --randseed=7 --loops=2 --time_based=0 --status-interval=5 > /tmp/fio 2>&1 &
pid=$!
for n in 1 2 3; do
  before=$(cat /proc/$pid/io 2>/dev/null | sed -n 's/^wchar: //p')
  while kill -0 $pid 2>/dev/null; do
    now=$(cat /proc/$pid/io 2>/dev/null | sed -n 's/^wchar: //p')
    [ "$((now - before))" -gt 2000000 ] && break
    usleep 20000
  done
  echo KILL; mkdir marker-$n
done
wait $pid || { cat /tmp/fio; exit 1; }
cat /tmp/fio | grep -E 'err=' 
ls -d marker-1 marker-2 marker-3
cd /
umount.nfs /mnt
`
	kills := 0
	out := runGuest(t, script, map[string]func(){"KILL": func() {
		kills++
		kill()
	}})
	if kills != 3 {
		t.Errorf("killed %d times\n%s", kills, out)
	}
	if want := "DISK " + md5Of(b); !strings.Contains(out, want) {
		t.Errorf("the disk is another than the point: no line %q in\n%s", want, out)
	}
	// Without a portmapper umount.nfs does not find out whom to tell.
	if now := d.MountByID(m.Mount); len(now.NFS.Clients) != 1 || now.NFS.Clients[0].Connections != 0 {
		t.Errorf("after umount: %+v", now.NFS.Clients)
	}
}

func md5Of(b []byte) string {
	s := md5.Sum(b)
	return hex.EncodeToString(s[:]) + "  -"
}
