package crash

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"livemount/server/api"
	"livemount/test/harness"
)

// A disk that fails takes away only what it touched, says why, and what was there stays: of a mount whose log cannot be
// synced the writes, of a backup its point, of the journal or the metadata all changes until the next start.
func TestFailingDiskStopsOnlyWhatItTouched(t *testing.T) {
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	disk := newSickDisk(t)
	dir := harness.Dir(t)
	d := harness.New(t, filepath.Join(disk.dir, "store"))
	d.Start()
	v := newVM(t, dir, "vm", rng, 8<<20)
	w := newVM(t, dir, "other", rng, 2<<20)
	backup := func(v *vm) {
		t.Helper()
		if ok, err := v.backup(d); !ok {
			t.Fatal(err)
		}
	}
	backup(v)
	backup(w)

	sickMount(t, disk, d, w, backup)
	for _, c := range []struct{ op, what string }{{"write", "containers/data"}, {"sync", "containers/data"}, {"write", "containers/map"}, {"sync", "containers/map"}} {
		t.Log(c)
		mustChange(t, rng, v)
		disk.failOn(c.op, c.what)
		ok, err := v.backup(d)
		disk.heal()
		if ok || err == nil || !strings.Contains(err.Error(), "input/output error") {
			t.Fatalf("%v, %v; the disk failed %d times", ok, err, disk.hits.Load())
		}
		if st := d.Status(); st.ReadOnly != "" {
			t.Fatal(st.ReadOnly)
		}
		backup(w)
		backup(v)
	}
	for _, c := range []struct{ op, what string }{{"sync", "containers/journal"}, {"sync", "store/meta"}} {
		t.Log(c)
		m := d.Mount("other@latest", harness.Dir(t))
		mustChange(t, rng, v)
		disk.failOn(c.op, c.what)
		ok, err := v.backup(d)
		disk.heal()
		st := d.Status()
		if ok || st.Healthy || !strings.Contains(st.ReadOnly, "input/output error") {
			t.Fatalf("%v, %v: %+v; the disk failed %d times", ok, err, st, disk.hits.Load())
		}
		if ok, _ := w.backup(d); ok { // it is never tried again as if it could succeed
			t.Fatal("a change was taken after a failed sync")
		}
		checkPoint(t, d, "other", w.points[len(w.points)-1])
		writeSynced(t, m.Disks[0].Path, []byte("a mount goes on"))
		stopBroken(d)
		d.Start()
		v.settleLoose(t, d)
		w.settleLoose(t, d)
		unmount(t, d, m.Mount, api.UnmountRequest{})
		backup(v)
		backup(w)
	}
	for _, x := range []*vm{v, w} {
		for _, p := range x.points {
			checkPoint(t, d, x.name, p)
		}
	}
	if st := d.Status(); !st.Healthy {
		t.Errorf("%+v", st)
	}
}

// sickMount lets the log of one of two mounts fail.
func sickMount(t *testing.T, disk *sickDisk, d *harness.Daemon, w *vm, backup func(*vm)) {
	bad, good := d.Mount("other@latest", harness.Dir(t)), d.Mount("other@latest", harness.Dir(t))
	writeSynced(t, bad.Disks[0].Path, []byte("before"))
	disk.failOn("sync", "mounts/"+bad.Mount)
	if err := trySynced(bad.Disks[0].Path, []byte("behind")); !isEIO(err) {
		t.Fatalf("%v; the disk failed %d times", err, disk.hits.Load())
	}
	disk.heal()
	if err := trySynced(bad.Disks[0].Path, []byte("again!")); !isEIO(err) {
		t.Fatalf("a mount whose log failed takes writes: %v", err)
	}
	if _, err := os.ReadFile(bad.Disks[0].Path); err != nil {
		t.Fatal(err)
	}
	if m := d.MountByID(bad.Mount); m.State != "failed" || !strings.Contains(m.Reason, "input/output error") {
		t.Fatalf("%+v", m)
	}
	if st := d.Status(); st.Healthy || st.ReadOnly != "" || !strings.Contains(strings.Join(st.Damage, "\n"), bad.Mount) {
		t.Fatalf("%+v", st)
	}
	writeSynced(t, good.Disks[0].Path, []byte("beside"))
	backup(w)
	stopBroken(d)
	d.Start()
	b, err := os.ReadFile(bad.Disks[0].Path)
	if err != nil || string(b[:6]) == "again!" || string(b[:6]) != "before" && string(b[:6]) != "behind" {
		t.Fatalf("%q: %v", b[:6], err)
	}
	writeSynced(t, bad.Disks[0].Path, []byte("it goes on"))
	unmount(t, d, bad.Mount, api.UnmountRequest{})
	unmount(t, d, good.Mount, api.UnmountRequest{})
}

func mustChange(t *testing.T, rng *rand.Rand, v *vm) {
	t.Helper()
	if err := v.change(rng, 64); err != nil {
		t.Fatal(err)
	}
}

// stopBroken ends a daemon that has something to complain about.
func stopBroken(d *harness.Daemon) {
	d.Terminate()
	<-d.Exited()
}

func trySynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	return errors.Join(err, f.Sync(), f.Close())
}

func writeSynced(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := trySynced(path, b); err != nil {
		t.Fatal(err)
	}
}
