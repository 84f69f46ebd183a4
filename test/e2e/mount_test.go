package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"livemount/test/harness"
)

// disk makes a disk with data and holes.
func disk(t *testing.T, rng *rand.Rand, path string, pages int) []byte {
	t.Helper()
	b := make([]byte, pages*harness.PageSize)
	for p := range pages {
		if p/64%3 != 1 {
			copy(b[p*harness.PageSize:], random(rng, harness.PageSize))
		}
	}
	harness.WriteFile(t, path, b)
	return b
}

// change writes, and punches holes, as b says afterwards.
func change(rng *rand.Rand, path string, b []byte, n int) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for i := range n {
		length := 1 + rng.IntN(100_000)
		off := rng.IntN(len(b) - length)
		if i%4 == 3 {
			if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(length)); err != nil {
				return err
			}
			clear(b[off : off+length])
			continue
		}
		p := random(rng, length)
		if _, err := f.WriteAt(p, int64(off)); err != nil {
			return err
		}
		copy(b[off:], p)
	}
	return errors.Join(f.Sync(), f.Close())
}

// TestHolesAgreeWithContent: nothing but zeroes lies where SEEK_DATA finds no data, and what is zero as the
// point had it, or was punched in whole pages, is a hole.
func TestHolesAgreeWithContent(t *testing.T) {
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	d, dir := started(t)
	source := filepath.Join(dir, "source")
	b := disk(t, rng, source, 3000)
	d.Backup("vm", "sda="+source)
	m := d.Mount("vm@latest", filepath.Join(dir, "mnt"))
	path := m.Disks[0].Path
	for round := range 5 {
		same(t, path, b)
		data, err := harness.DataPages(path)
		if err != nil {
			t.Fatal(err)
		}
		at, holes := int64(0), 0
		for _, r := range append(data, [2]int64{int64(len(b)), int64(len(b))}) {
			for _, c := range b[at:r[0]] {
				if c != 0 {
					t.Fatalf("round %d: there is data between %d and %d", round, at, r[0])
				}
			}
			holes += int(r[0] - at)
			at = r[1]
		}
		if holes < len(b)/8 {
			t.Errorf("round %d: only %d bytes are holes", round, holes)
		}
		if err := change(rng, path, b, 40); err != nil {
			t.Fatal(err)
		}
	}
	copied := filepath.Join(dir, "copy")
	harness.Run(t, "cp", "--sparse=auto", path, copied) // cp asks for holes
	same(t, copied, b)
}

func TestFioVerifiesARawDisk(t *testing.T) {
	harness.Tools(t, "fio fio")
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	d, dir := started(t)
	source := filepath.Join(dir, "source")
	disk(t, rng, source, 16<<20/harness.PageSize)
	d.Backup("vm", "sda="+source)
	m := d.Mount("vm@latest", filepath.Join(dir, "mnt"))
	for _, args := range [][]string{
		{"--rw=randwrite", "--bsrange=512-256k", "--ioengine=psync", "--fsync=32"},
		{"--rw=randwrite", "--bs=4k", "--ioengine=libaio", "--direct=1", "--iodepth=16"},
		{"--rw=randrw", "--bs=16k", "--ioengine=mmap"},
	} {
		harness.Run(t, "fio", append(args, "--name=verify", "--filename="+m.Disks[0].Path, "--size=16m", "--verify=crc32c",
			"--do_verify=1", "--verify_fatal=1", "--randseed=7", "--verify_state_save=0")...)
	}
}

// TestMountsOfOnePointAreApart: ten mounts of a point are written at the same time; each keeps its own, also
// over a restart, and the point is what it was.
func TestMountsOfOnePointAreApart(t *testing.T) {
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	d, dir := started(t)
	source := filepath.Join(dir, "source")
	point := disk(t, rng, source, 2000)
	d.Backup("vm", "sda="+source)
	var contents [10][]byte
	var paths [10]string
	for i := range paths {
		m := d.Mount("vm@latest", filepath.Join(dir, fmt.Sprint("mnt", i)))
		paths[i], contents[i] = m.Disks[0].Path, append([]byte{}, point...)
	}
	for _, restart := range []func(){d.Stop, d.Kill} {
		var writers sync.WaitGroup
		var failed [10]error
		for i := range paths {
			own := rand.New(rand.NewPCG(rng.Uint64(), uint64(i)))
			writers.Go(func() { failed[i] = change(own, paths[i], contents[i], 30) })
		}
		writers.Wait()
		if err := errors.Join(failed[:]...); err != nil {
			t.Fatal(err)
		}
		restart()
		d.Start()
		for i := range paths {
			same(t, paths[i], contents[i])
		}
	}
	m := d.Mount("vm@latest", filepath.Join(dir, "point"), "--read-only")
	same(t, m.Disks[0].Path, point)
}

func TestReadOnlyMountRefusesWrites(t *testing.T) {
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	d, dir := started(t)
	source := filepath.Join(dir, "source")
	b := disk(t, rng, source, 200)
	d.Backup("vm", "sda="+source)
	m := d.Mount("vm@latest", filepath.Join(dir, "mnt"), "--read-only")
	path := m.Disks[0].Path
	if _, err := os.OpenFile(path, os.O_RDWR, 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("open for writing: %v", err)
	}
	if err := os.Truncate(path, 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("truncate: %v", err)
	}
	if err := os.Remove(path); !errors.Is(err, unix.EROFS) {
		t.Errorf("remove: %v", err)
	}
	if out, err := harness.Try("losetup", "--find", "--show", path); err != nil || harness.Run(t, "blockdev", "--getro", strings.TrimSpace(out)) != "1\n" {
		t.Errorf("a loop device on it is not read-only: %v: %s", err, out)
	} else {
		harness.Unloop(strings.TrimSpace(out))
	}
	same(t, path, b)
	if r := d.Ctl("unmount", m.Mount, "--keep"); r.Code != 2 {
		t.Errorf("keep a read-only mount: exit %d: %s", r.Code, r.Err)
	}
	d.Must(nil, "unmount", m.Mount)
}

// TestPlainUmountKeepsTheWrites: who does not know of mountctl loses nothing.
func TestPlainUmountKeepsTheWrites(t *testing.T) {
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	d, dir := started(t)
	source := filepath.Join(dir, "source")
	b := disk(t, rng, source, 1000)
	d.Backup("vm", "sda="+source)
	m := d.Mount("vm@latest", filepath.Join(dir, "mnt"))
	for round := range 3 {
		if err := change(rng, m.Disks[0].Path, b, 20); err != nil {
			t.Fatal(err)
		}
		harness.Run(t, "umount", m.Path)
		harness.Poll(t, "the umount is noticed", func() bool { return d.MountByID(m.Mount).State == "kept" })
		if round == 1 {
			d.Kill()
			d.Start()
		}
		d.Must(&m, "mount", "--resume", m.Mount[:6], filepath.Join(dir, fmt.Sprint("again", round)))
		same(t, m.Disks[0].Path, b)
	}
}

// TestDisksComeAndGoBetweenPoints: each point has the disks, and their sizes, that the VM had then.
func TestDisksComeAndGoBetweenPoints(t *testing.T) {
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	d, dir := started(t)
	type state map[string][]byte
	var states []state
	for i, sizes := range []map[string]int{
		{"sda": 500}, {"sda": 700, "sdb": 300}, {"sdb": 300}, {"sda": 300, "sdb": 301, "sdc": 1}, {"sda": 2500},
	} {
		now, args := state{}, []string{}
		for name, pages := range sizes {
			path := filepath.Join(dir, fmt.Sprint(name, i))
			now[name] = disk(t, rng, path, pages)
			if i > 0 && states[i-1][name] != nil { // the same disk, with little changed
				copy(now[name], states[i-1][name])
				harness.WriteFile(t, path, now[name])
			}
			args = append(args, name+"="+path)
		}
		d.Backup("vm", args...)
		states = append(states, now)
	}
	points := d.Points("vm")
	if len(points) != len(states) {
		t.Fatalf("%d points", len(points))
	}
	for i, want := range states {
		m := d.Mount("vm@id:"+points[i].Point, filepath.Join(dir, fmt.Sprint("mnt", i)))
		if len(m.Disks) != len(want) {
			t.Errorf("point %d has the disks %+v", i, m.Disks)
		}
		for _, disk := range m.Disks {
			same(t, disk.Path, want[disk.Name])
		}
	}
}

// TestFilesMadeWhileTheDaemonWasDownDoNotKeepAMountAway: a program that writes by name makes a file in the
// bare folder; the mount comes back over it, with what was written to the mount.
func TestFilesMadeWhileTheDaemonWasDownDoNotKeepAMountAway(t *testing.T) {
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	d, dir := started(t)
	source := filepath.Join(dir, "source")
	b := disk(t, rng, source, 100)
	d.Backup("vm", "sda="+source)
	m := d.Mount("vm@latest", filepath.Join(dir, "mnt"))
	if err := change(rng, m.Disks[0].Path, b, 20); err != nil {
		t.Fatal(err)
	}
	d.Stop()
	harness.WriteFile(t, m.Disks[0].Path, []byte("stray"))
	d.Start()
	same(t, m.Disks[0].Path, b)
	d.Must(nil, "unmount", m.Mount, "--yes")
	same(t, m.Disks[0].Path, []byte("stray"))
}

// TestABindCopyDoesNotHoldUpUnmount: what is mounted elsewhere too is named, and --force ends it.
func TestABindCopyDoesNotHoldUpUnmount(t *testing.T) {
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	d, dir := started(t)
	source := filepath.Join(dir, "source")
	disk(t, rng, source, 100)
	d.Backup("vm", "sda="+source)
	m := d.Mount("vm@latest", filepath.Join(dir, "mnt"))
	harness.Run(t, "mount", "--bind", m.Path, harness.Mkdir(t, dir, "copy"))
	if r := d.Ctl("unmount", m.Mount, "--yes"); r.Code != 11 {
		t.Fatalf("unmount: %+v", r)
	}
	d.Must(nil, "unmount", m.Mount, "--yes", "--force")
	if list := d.Mounts(); len(list) != 0 {
		t.Fatalf("%+v", list)
	}
}
