package crash

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"livemount/test/harness"
)

// loggedDisk is an ext4 on a disk of which every write and flush is logged: ext4, a loop device, a file that
// qemu-storage-daemon shows through FUSE, its driver blklogwrites, an image. A write is logged when it is done,
// and before it is answered. QEMU passes no flush on: what counts is that they are in the log.
type loggedDisk struct {
	dir   string // where the file system is mounted
	size  int64
	base  string // the image before anything was logged
	image string
	log   *os.File
	start int64 // the position when the file system was ready
}

// mountOptions take from ext4 the favour that a file which is renamed over another is written before, so
// that a sync which is missing is missed.
const mountOptions = "noauto_da_alloc"

// diskDir makes a folder for it: in memory when there is room, as nothing of it must survive a real power cut.
func diskDir(t *testing.T) string {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &st); err != nil || int64(st.Bavail)*st.Bsize < 2<<30 {
		return harness.Dir(t)
	}
	return harness.MemoryDir(t)
}

func newLoggedDisk(t *testing.T, top string, sizeMiB int64) *loggedDisk {
	t.Helper()
	harness.NeedRoot(t)
	harness.Tools(t, "mkfs.ext4 e2fsprogs", "e2fsck e2fsprogs", "mount mount",
		"qemu-storage-daemon qemu-system-common", "fusermount3 fuse3")
	d := &loggedDisk{
		dir: harness.Mkdir(t, top, "fs"), size: sizeMiB << 20,
		base: filepath.Join(top, "base"), image: filepath.Join(top, "image"),
	}
	harness.WriteSparse(t, d.base, d.size)
	harness.Run(t, "mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", d.base)
	copySparse(t, d.base, d.image)
	name := filepath.Join(top, "log")
	harness.WriteSparse(t, name, 0)
	var err error
	if d.log, err = os.Open(name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.log.Close() })
	shown := filepath.Join(top, "disk")
	startStorageDaemon(t, d.image, name, shown)
	mountImage(t, shown, d.dir)
	harness.WriteFile(t, filepath.Join(d.dir, "first"), []byte("the first flush writes the superblock of the log"))
	harness.Run(t, "sync", "-f", d.dir)
	if d.start, err = d.position(); err != nil {
		t.Fatal(err)
	}
	return d
}

func copySparse(t *testing.T, from, to string) {
	t.Helper()
	harness.Run(t, "cp", "--sparse=auto", "--reflink=auto", from, to)
}

// mountImage mounts a file. The loop device goes when it is unmounted, by whomever.
func mountImage(t *testing.T, image, dir string) {
	t.Helper()
	harness.MountFS(t, image, dir, "loop", mountOptions)
}

// startStorageDaemon shows image as the file shown. It ends with the test.
func startStorageDaemon(t *testing.T, image, log, shown string) {
	t.Helper()
	harness.WriteSparse(t, shown, 0)
	ready := shown + ".pid"
	c := exec.Command("qemu-storage-daemon",
		"--blockdev", "driver=file,node-name=image,cache.no-flush=on,filename="+image,
		"--blockdev", "driver=file,node-name=log,cache.no-flush=on,filename="+log,
		"--blockdev", "driver=blklogwrites,node-name=logged,file=image,log=log",
		"--export", "type=fuse,id=shown,node-name=logged,writable=on,mountpoint="+shown,
		"--pidfile", ready)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = c.Wait() // killed
	}()
	t.Cleanup(func() {
		_ = c.Process.Kill() // it is gone when this fails
		<-ended
	})
	harness.Poll(t, "qemu-storage-daemon", func() bool {
		select {
		case <-ended:
			t.Fatalf("qemu-storage-daemon ended: %s", c.ProcessState)
		default:
		}
		_, err := os.Stat(ready)
		return err == nil
	})
}

// position is how many entries of the log are surely there, by its superblock, which is written with each
// flush before that is answered. What was synced before this is called is in those entries; what is asked
// for afterwards is in none of them.
func (d *loggedDisk) position() (int64, error) {
	n, _, err := readBlockSuper(d.log)
	return n, err
}

// read returns what was logged.
func (d *loggedDisk) read(t *testing.T) *blockLog {
	t.Helper()
	info, err := d.log.Stat()
	if err != nil {
		t.Fatal(err)
	}
	l, err := readBlockLog(d.log, info.Size(), d.size)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
