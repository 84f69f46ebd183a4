package fusefs_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Programs that others wrote use a disk file as they use any.

func TestExt4OnALoopDevice(t *testing.T) {
	tool(t, "mkfs.ext4", "e2fsprogs")
	backing := filepath.Join(t.TempDir(), "backing")
	for _, c := range []config{{}, {File: backing}, {DirectIO: true}} {
		c.Size = 64 << 20
		m := mounted(t, c)
		run(t, "mkfs.ext4", "-q", "-F", m.disk)
		exercise(t, m.disk)
		run(t, "e2fsck", "-f", "-n", m.disk)
	}
}

func TestXFSOnALoopDevice(t *testing.T) {
	tool(t, "mkfs.xfs", "xfsprogs")
	m := mounted(t, config{Size: 320 << 20, File: filepath.Join(t.TempDir(), "backing")})
	run(t, "mkfs.xfs", "-q", "-f", m.disk)
	exercise(t, m.disk)
	run(t, "xfs_repair", "-n", m.disk)
}

// exercise writes, renames and removes files in the file system on disk, and finds what it left after a
// new mount.
func exercise(t *testing.T, disk string) {
	t.Helper()
	tool(t, "stress-ng", "stress-ng")
	dir := loopMount(t, disk, "rw")
	content := strings.Repeat("Livemount", 50_000)
	if err := os.WriteFile(filepath.Join(dir, "kept"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, s := range [][2]string{{"--hdd", "30"}, {"--rename", "200"}, {"--fallocate", "4"}, {"--seek", "100"}, {"--iomix", "50"}} {
		run(t, "stress-ng", "--temp-path", dir, "--quiet", s[0], "1", s[0]+"-ops", s[1], "--timeout", "20s",
			"--hdd-bytes", "8M", "--fallocate-bytes", "8M", "--seek-size", "4M", "--iomix-bytes", "4M")
	}
	run(t, "umount", dir)
	dir = loopMount(t, disk, "rw")
	got, err := os.ReadFile(filepath.Join(dir, "kept"))
	if err != nil || string(got) != content {
		t.Errorf("what was written before: %d bytes, %v", len(got), err)
	}
	run(t, "umount", dir)
}

func TestFstrimGivesSpaceBack(t *testing.T) {
	tool(t, "fstrim", "util-linux")
	backing := filepath.Join(t.TempDir(), "backing")
	m := mounted(t, config{Size: 64 << 20, File: backing})
	run(t, "mkfs.ext4", "-q", "-F", m.disk)
	dir := loopMount(t, m.disk, "rw")
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, []byte(strings.Repeat("x", 20<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "sync", "-f", big)
	before := allocated(t, backing)
	if err := os.Remove(big); err != nil {
		t.Fatal(err)
	}
	run(t, "sync", "-f", dir)
	run(t, "fstrim", dir)
	if after := allocated(t, backing); after > before-19<<20 {
		t.Errorf("%d bytes before, %d after fstrim", before, after)
	}
	run(t, "umount", dir)
	run(t, "e2fsck", "-f", "-n", m.disk)
}

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func TestFioVerifies(t *testing.T) {
	tool(t, "fio", "fio")
	for _, c := range []config{{Size: 16 << 20}, {Size: 16 << 20, DirectIO: true}} {
		m := mounted(t, c)
		for _, args := range [][]string{
			{"--rw=randwrite", "--bsrange=512-256k", "--ioengine=psync"},
			{"--rw=randwrite", "--bs=4k", "--ioengine=libaio", "--direct=1", "--iodepth=16"},
			{"--rw=randwrite", "--bs=16k", "--ioengine=mmap"},
		} {
			run(t, "fio", append(args, "--name=verify", "--filename="+m.disk, "--size=16m", "--verify=crc32c",
				"--do_verify=1", "--verify_fatal=1", "--randseed=7")...)
		}
	}
}

func TestSQLiteOnALoopMount(t *testing.T) {
	tool(t, "sqlite3", "sqlite3")
	m := mounted(t, config{Size: 32 << 20})
	run(t, "mkfs.ext4", "-q", "-F", m.disk)
	dir := loopMount(t, m.disk, "rw")
	db := filepath.Join(dir, "db")
	run(t, "sqlite3", db, `pragma journal_mode=wal; create table t(i integer primary key, s text);
		with recursive c(i) as (select 1 union all select i+1 from c where i<5000)
		insert into t select i, hex(randomblob(50)) from c;`)
	for range 5 {
		run(t, "sqlite3", db, "update t set s=hex(randomblob(60)) where i%3=0; delete from t where i%7=0;")
	}
	run(t, "umount", dir)
	dir = loopMount(t, m.disk, "ro")
	got := run(t, "sqlite3", "file:"+filepath.Join(dir, "db")+"?immutable=1", "pragma integrity_check; select count(*) from t;")
	if strings.Fields(got)[0] != "ok" {
		t.Error(got)
	}
	run(t, "umount", dir)
	if syncs, _, _ := m.stats(); syncs == 0 {
		t.Error("the database never synced the disk")
	}
}

func TestQemuImgUsesADisk(t *testing.T) {
	tool(t, "qemu-img", "qemu-utils")
	m := mounted(t, config{Size: 8 << 20})
	f := openRW(t, m.disk, 0)
	if _, err := f.WriteAt([]byte(strings.Repeat("q", 100_000)), 1<<20); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "qemu-img", "map", "-f", "raw", m.disk); !strings.Contains(got, "0x100000") {
		t.Errorf("map: %s", got)
	}
	copied := filepath.Join(t.TempDir(), "copy.qcow2")
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", m.disk, copied)
	run(t, "qemu-img", "compare", "-F", "qcow2", "-f", "raw", m.disk, copied)
	run(t, "qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", copied, m.disk)
	run(t, "qemu-img", "compare", "-F", "qcow2", "-f", "raw", m.disk, copied)
}
