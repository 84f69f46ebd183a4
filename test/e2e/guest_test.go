package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"livemount/test/harness"
)

// guest is a disk with one partition and a file system in it.
type guest struct {
	table, fs string // dos or gpt; ext4 or xfs
	size      int64
}

const (
	partStart = 1 << 20
	partEnd   = 1 << 20 // before the end of the disk: room for the second GPT
)

func (g guest) make(t *testing.T, path string, files map[string][]byte) {
	t.Helper()
	harness.Tools(t, "sfdisk fdisk", "mkfs.ext4 e2fsprogs", "mkfs.xfs xfsprogs", "losetup mount")
	harness.WriteSparse(t, path, g.size)
	c := exec.Command("sfdisk", "-q", path)
	c.Stdin = strings.NewReader(fmt.Sprintf("label: %s\nstart=%d, size=%d\n", g.table, partStart/512, (g.size-partStart-partEnd)/512))
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v: %s", err, out)
	}
	dev := g.loop(t, path)
	if g.fs == "xfs" {
		harness.Run(t, "mkfs.xfs", "-q", "-f", dev)
	} else {
		harness.Run(t, "mkfs.ext4", "-q", "-F", dev)
	}
	dir := t.TempDir()
	g.mount(t, dev, dir)
	for name, b := range files {
		write(t, filepath.Join(dir, name), b)
	}
	g.unmount(t, dev, dir)
}

func (g guest) loop(t *testing.T, disk string, more ...string) string {
	t.Helper()
	return harness.Loop(t, disk, partStart, g.size-partStart-partEnd, more...)
}

func (g guest) mount(t *testing.T, dev, dir string, options ...string) {
	t.Helper()
	if g.fs == "xfs" {
		options = append(options, "nouuid") // the same file system may be mounted elsewhere
	}
	harness.MountFS(t, dev, dir, options...)
}

func (g guest) unmount(t *testing.T, dev, dir string) {
	t.Helper()
	harness.Run(t, "umount", dir)
	harness.Run(t, "losetup", "-d", dev)
}

// clean checks that the file system needs no repair.
func (g guest) clean(t *testing.T, disk string) {
	t.Helper()
	harness.Tools(t, "e2fsck e2fsprogs", "xfs_repair xfsprogs")
	dev := g.loop(t, disk, "--read-only")
	if g.fs == "xfs" {
		harness.Run(t, "xfs_repair", "-n", dev)
	} else {
		harness.Run(t, "e2fsck", "-f", "-n", dev)
	}
	harness.Run(t, "losetup", "-d", dev)
	if out := harness.Run(t, "sfdisk", "--dump", disk); !strings.Contains(out, "label: "+g.table) {
		t.Errorf("partition table: %s", out)
	}
}

func guests() map[string]guest {
	return map[string]guest{
		"ext4 behind an MBR": {table: "dos", fs: "ext4", size: 96 << 20},
		"xfs behind a GPT":   {table: "gpt", fs: "xfs", size: 340 << 20},
	}
}

func random(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// write makes a file and waits until it is on disk, with its name.
func write(t *testing.T, path string, b []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func same(t *testing.T, path string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != string(want) {
		t.Errorf("%s: %d bytes, %v", path, len(got), err)
	}
}

// TestGuestFileSystemsSurvive: a partition of a mounted disk is used like any disk, is clean afterwards, and
// its journal recovers it when the daemon was killed under it.
func TestGuestFileSystemsSurvive(t *testing.T) {
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	for name, g := range guests() {
		t.Run(name, func(t *testing.T) {
			d, dir := started(t)
			old, gone, kept, synced := random(rng, 3<<20), random(rng, 1<<20), random(rng, 5<<20), random(rng, 2<<20)
			source := filepath.Join(dir, "source")
			g.make(t, source, map[string][]byte{"old": old, "gone": gone})
			before, err := harness.SumFile(source)
			if err != nil {
				t.Fatal(err)
			}
			d.Backup("guest", "sda="+source)
			m := d.Mount("guest@latest", filepath.Join(dir, "mnt"))
			disk := m.Disks[0].Path
			g.clean(t, disk)

			dev, inside := g.loop(t, disk), harness.Mkdir(t, dir, "inside")
			g.mount(t, dev, inside)
			same(t, filepath.Join(inside, "old"), old)
			write(t, filepath.Join(inside, "kept"), kept)
			if err := os.Remove(filepath.Join(inside, "gone")); err != nil {
				t.Fatal(err)
			}
			g.unmount(t, dev, inside)
			g.clean(t, disk)

			dev = g.loop(t, disk)
			g.mount(t, dev, inside)
			write(t, filepath.Join(inside, "synced"), synced)
			if err := os.WriteFile(filepath.Join(inside, "not synced"), random(rng, 4<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			d.Kill()
			if err := unix.Unmount(inside, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
			harness.Unloop(dev)
			d.Start()

			after := harness.Mkdir(t, dir, "after")
			dev = g.loop(t, disk)
			g.mount(t, dev, after)
			for name, want := range map[string][]byte{"old": old, "kept": kept, "synced": synced} {
				same(t, filepath.Join(after, name), want)
			}
			if _, err := os.Stat(filepath.Join(after, "gone")); !os.IsNotExist(err) {
				t.Errorf("a removed file: %v", err)
			}
			g.unmount(t, dev, after)
			g.clean(t, disk)

			ro := d.Mount("guest@latest", filepath.Join(dir, "point"), "--read-only")
			if sum, err := harness.SumFile(ro.Disks[0].Path); err != nil || sum != before {
				t.Errorf("the point changed: %v", err)
			}
		})
	}
}

// TestFstrimGivesSpaceBack: what a guest discards is not kept by the mount.
func TestFstrimGivesSpaceBack(t *testing.T) {
	harness.Tools(t, "fstrim util-linux")
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	g := guest{table: "dos", fs: "ext4", size: 256 << 20}
	d, dir := started(t)
	source := filepath.Join(dir, "source")
	g.make(t, source, nil)
	d.Backup("guest", "sda="+source)
	m := d.Mount("guest@latest", filepath.Join(dir, "mnt"))
	dev, inside := g.loop(t, m.Disks[0].Path), harness.Mkdir(t, dir, "inside")
	g.mount(t, dev, inside)
	big := filepath.Join(inside, "big")
	peak := int64(0)
	for range 3 { // more is dead than clean-up leaves lying
		write(t, big, random(rng, 150<<20))
		peak = max(peak, d.MountByID(m.Mount).OverlayBytes)
		if err := os.Remove(big); err != nil {
			t.Fatal(err)
		}
		harness.Run(t, "sync", "-f", inside)
		harness.Run(t, "fstrim", inside)
		if now := d.MountByID(m.Mount); now.WrittenBytes > 20<<20 {
			t.Errorf("%d bytes are written after fstrim", now.WrittenBytes)
		}
	}
	log := filepath.Join(d.Data, "mounts", m.Mount, "log")
	harness.Poll(t, "the log shrinks", func() bool {
		now := d.MountByID(m.Mount)
		return now.OverlayBytes < 300<<20 && harness.Bytes(t, log) < 320<<20
	})
	t.Logf("%d bytes at most, %d in the end", peak, harness.Bytes(t, log))
	g.unmount(t, dev, inside)
	g.clean(t, m.Disks[0].Path)
}

// TestSQLiteInAGuest: a database in a guest's file system keeps what it committed when the daemon is killed.
func TestSQLiteInAGuest(t *testing.T) {
	harness.Tools(t, "sqlite3 sqlite3")
	g := guests()["ext4 behind an MBR"]
	d, dir := started(t)
	source := filepath.Join(dir, "source")
	g.make(t, source, nil)
	d.Backup("guest", "sda="+source)
	m := d.Mount("guest@latest", filepath.Join(dir, "mnt"))
	dev, inside := g.loop(t, m.Disks[0].Path), harness.Mkdir(t, dir, "inside")
	g.mount(t, dev, inside)
	db := filepath.Join(inside, "db")
	harness.Run(t, "sqlite3", db, `pragma journal_mode=wal; pragma synchronous=full; create table t(i integer primary key, s text);
		with recursive c(i) as (select 1 union all select i+1 from c where i<20000)
		insert into t select i, hex(randomblob(60)) from c;`)
	for range 5 {
		harness.Run(t, "sqlite3", db, "pragma synchronous=full; update t set s=hex(randomblob(70)) where i%3=0; delete from t where i%11=0;")
	}
	want := harness.Run(t, "sqlite3", db, "select count(*), sum(length(s)) from t;")
	d.Kill()
	if err := unix.Unmount(inside, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	harness.Unloop(dev)
	d.Start()
	after := harness.Mkdir(t, dir, "after")
	dev = g.loop(t, m.Disks[0].Path)
	g.mount(t, dev, after)
	db = filepath.Join(after, "db")
	if got := harness.Run(t, "sqlite3", db, "pragma integrity_check;"); strings.TrimSpace(got) != "ok" {
		t.Error(got)
	}
	if got := harness.Run(t, "sqlite3", db, "select count(*), sum(length(s)) from t;"); got != want {
		t.Errorf("%s, not %s", got, want)
	}
	g.unmount(t, dev, after)
	g.clean(t, m.Disks[0].Path)
}
