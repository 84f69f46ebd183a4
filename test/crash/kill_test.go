package crash

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"livemount/server/api"
	"livemount/test/harness"
)

// roundsPerStore bounds how large a store gets.
const roundsPerStore = 10

// TestKillLosesNothingAcknowledged kills the daemon at random moments while it takes in two VMs, while disks
// of a mount are written, and while mounts come and go.
func TestKillLosesNothingAcknowledged(t *testing.T) {
	harness.NeedRoot(t)
	seed := harness.Seed(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	for left := harness.Soak(30, 2000); left > 0; left -= roundsPerStore {
		k := newKilled(t, rng)
		for n := range min(left, roundsPerStore) {
			k.round(t, n)
		}
		k.finish(t)
	}
}

// killed is a store whose daemon is killed again and again.
type killed struct {
	rng    *rand.Rand
	d      *harness.Daemon
	dir    string
	vms    []*vm
	disks  [][]byte // of the mount that is written to
	mount  api.Mount
	visits *visits

	stopped bool // it was asked to stop
}

func newKilled(t *testing.T, rng *rand.Rand) *killed {
	t.Helper()
	dir := harness.Dir(t)
	k := &killed{rng: rng, dir: dir, d: harness.New(t, filepath.Join(dir, "store"))}
	k.d.Start()
	k.vms = []*vm{newVM(t, dir, "small", rng, 3<<20, 2<<20+512), newVM(t, dir, "large", rng, 24<<20)}
	for _, v := range k.vms {
		if ok, err := v.backup(k.d); !ok {
			t.Fatal(err)
		}
	}
	k.mount = k.d.Mount("small@latest", filepath.Join(dir, "written"))
	var err error
	if k.disks, err = readDisks(diskPaths(&k.mount)); err != nil {
		t.Fatal(err)
	}
	k.visits = &visits{dir: dir, known: map[string]*visit{}}
	return k
}

// round lets everything happen at once, kills, starts again and checks.
func (k *killed) round(t *testing.T, n int) {
	t.Helper()
	seed := k.rng.Uint64()
	w := startWriter(t, seed, "run", diskPaths(&k.mount)...)
	held, err := os.Open(k.mount.Disks[0].Path)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	var errs errorList
	var actors sync.WaitGroup
	for _, v := range k.vms {
		own := rand.New(rand.NewPCG(k.rng.Uint64(), 3))
		actors.Go(func() { errs.add(backups(k.d, v, own)) })
	}
	own := rand.New(rand.NewPCG(k.rng.Uint64(), 4))
	actors.Go(func() { errs.add(k.visits.run(k.d, own, k.vms)) })
	k.killAt(t, time.Duration(k.rng.IntN(700_000))*time.Microsecond, k.rng.IntN(5) == 0)
	actors.Wait()
	errs.report(t)
	k.restart(t)
	if err := unix.Fsync(int(held.Fd())); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("a file that was open on the dead mount: %v", err)
	}
	k.check(t, w, seed)
	if t.Failed() {
		t.Fatalf("in round %d", n)
	}
}

// killAt kills the daemon after a while, in the middle of whatever it does; when asked, in the middle of a
// clean stop.
func (k *killed) killAt(t *testing.T, after time.Duration, stopping bool) {
	t.Helper()
	if stopping {
		defer k.killAt(t, time.Duration(k.rng.IntN(150_000))*time.Microsecond, false)
	}
	ctx, cancel := context.WithTimeout(t.Context(), after)
	defer cancel()
	select {
	case <-ctx.Done():
	case <-k.d.Exited():
		if !k.stopped {
			t.Fatal("the daemon ended by itself")
		}
	}
	if stopping {
		k.stopped = true
		k.d.Terminate()
		return
	}
	k.stopped = false
	k.d.Kill()
}

// restart starts the daemon; now and then it is killed once more while it starts.
func (k *killed) restart(t *testing.T) {
	t.Helper()
	for k.rng.IntN(4) == 0 {
		if _, err := k.d.Launch(); err != nil {
			t.Fatal(err)
		}
		k.killAt(t, time.Duration(k.rng.IntN(120_000))*time.Microsecond, false)
	}
	k.d.Start()
}

func (k *killed) check(t *testing.T, w *writerProcess, seed uint64) {
	t.Helper()
	if s := k.d.Status(); !s.Healthy {
		t.Errorf("after the kill: read-only %q, damage %q", s.ReadOnly, s.Damage)
	}
	if m := k.d.MountByID(k.mount.Mount); m.State != "mounted" {
		t.Fatalf("the mount is %s: %s", m.State, m.Reason)
	}
	seen, err := readDisks(diskPaths(&k.mount))
	if err != nil {
		t.Fatal(err)
	}
	sizes := make([]int64, len(seen))
	for i := range seen {
		sizes[i] = int64(len(seen[i]))
	}
	least, most := w.bounds()
	found, err := prefix(k.disks, seen, newHistory(seed, sizes), least, most)
	if err != nil {
		t.Fatalf("history %d (the writer ended with %q): %v", seed, w.why, err)
	}
	t.Logf("writes: %d acknowledged, %d returned, %d found", least, most-1, found)
	k.visits.settle(t, k.d)
	for _, v := range k.vms {
		v.settle(t, k.d)
		checkPoint(t, k.d, v.name, v.points[len(v.points)-1])
		checkPoint(t, k.d, v.name, v.points[k.rng.IntN(len(v.points))])
	}
	k.onlyKnownMounts(t)
}

// onlyKnownMounts finds mount points that nobody lists.
func (k *killed) onlyKnownMounts(t *testing.T) {
	t.Helper()
	listed := map[string]bool{}
	for _, m := range k.d.Mounts() {
		listed[m.Path] = m.State == "mounted"
	}
	for _, dir := range harness.Mounted(t, k.dir) {
		if !listed[dir] {
			t.Errorf("something is mounted at %s that is not listed", dir)
		}
	}
}

// finish checks every point, stops cleanly and checks once more that nothing was lost by that.
func (k *killed) finish(t *testing.T) {
	t.Helper()
	for _, v := range k.vms {
		for _, e := range v.points {
			checkPoint(t, k.d, v.name, e)
		}
		t.Logf("%s: %d points", v.name, len(v.points))
	}
	k.d.Stop()
	k.d.Start()
	seen, err := readDisks(diskPaths(&k.mount))
	if err != nil {
		t.Fatal(err)
	}
	for i := range seen {
		if string(seen[i]) != string(k.disks[i]) {
			t.Errorf("disk %d of the mount changed by a clean restart", i)
		}
	}
	k.d.Stop()
	if left := harness.Mounted(t, k.dir); len(left) > 0 {
		t.Errorf("a clean stop left %v mounted", left)
	}
}

// backups takes in a VM again and again until the daemon is gone.
func backups(d *harness.Daemon, v *vm, rng *rand.Rand) error {
	for {
		if err := v.change(rng, len(v.content[0])/harness.PageSize/8); err != nil {
			return err
		}
		var more []string
		if rng.IntN(6) == 0 {
			more = []string{"--full"}
		}
		if ok, err := v.backup(d, more...); !ok {
			return err
		}
	}
}

// visits are mounts that come and go.
type visits struct {
	dir   string
	n     int
	known map[string]*visit // by id
	busy  string            // the mount that something was being done to at the kill
}

type visit struct {
	state string // mounted or kept
	path  string
	off   int64
	stamp string // written to the first disk
}

func (v *visits) run(d *harness.Daemon, rng *rand.Rand, vms []*vm) error {
	for {
		ok, err := v.one(d, rng, vms[rng.IntN(len(vms))])
		if !ok || err != nil {
			return err
		}
	}
}

// one mounts a VM, or a kept mount, writes a stamp, and unmounts it in one way or the other.
func (v *visits) one(d *harness.Daemon, rng *rand.Rand, m *vm) (bool, error) {
	v.n++
	path := filepath.Join(v.dir, fmt.Sprintf("visit-%d", v.n))
	args := []string{"mount", m.name + "@latest", path, "--output", "json"}
	var resumed *visit
	for id, old := range v.known {
		if old.state == "kept" && rng.IntN(2) == 0 {
			resumed, v.busy = old, id
			args = []string{"mount", "--resume", id, path, "--output", "json"}
			break
		}
	}
	var a api.Mount
	if ok, err := decoded(d, d.Ctl(args...), &a); !ok {
		return false, err
	}
	now := &visit{state: "mounted", path: path, off: rng.Int64N(500) * 4096, stamp: fmt.Sprintf("stamp %d %d", v.n, rng.Uint64())}
	if resumed != nil {
		if err := resumed.verify(a.Disks[0].Path); gone(d, err) {
			return false, nil
		} else if err != nil {
			return false, err
		}
	}
	v.known[a.Mount], v.busy = now, a.Mount
	if err := now.write(a.Disks[0].Path); gone(d, err) {
		now.stamp = ""
		return false, nil
	} else if err != nil {
		return false, err
	}
	way := []string{"--keep", "--yes", "--yes"}[rng.IntN(3)]
	if ok, err := decoded(d, d.Ctl("unmount", a.Mount, way, "--output", "json"), nil); !ok {
		return false, err
	}
	if now.state = "kept"; way == "--yes" {
		delete(v.known, a.Mount)
	}
	v.busy = ""
	return true, nil
}

// decoded returns false when the daemon is gone.
func decoded(d *harness.Daemon, r harness.Result, out any) (bool, error) {
	if r.Code == 14 || r.Code == 17 || (r.Code != 0 && !d.Running()) {
		return false, nil
	}
	if r.Code != 0 {
		return false, fmt.Errorf("mountctl: exit %d: %s", r.Code, r.Err)
	}
	if out == nil {
		return true, nil
	}
	return true, json.Unmarshal([]byte(r.Out), out)
}

// gone says that an error comes from a daemon that was killed, or that stops and has taken its mounts away.
// What was acknowledged is looked for after the next start all the same.
func gone(d *harness.Daemon, err error) bool {
	return err != nil && (errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.EIO) || !d.Running())
}

func (v *visit) write(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(v.stamp), v.off)
	return errors.Join(err, f.Sync(), f.Close())
}

func (v *visit) verify(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, len(v.stamp))
	if _, err := f.ReadAt(b, v.off); err != nil {
		return err
	}
	if string(b) != v.stamp {
		return fmt.Errorf("%s: %q at %d, not %q", path, b, v.off, v.stamp)
	}
	return nil
}

// settle compares the listed mounts with what was acknowledged, and ends those whose state was open.
func (v *visits) settle(t *testing.T, d *harness.Daemon) {
	t.Helper()
	listed := map[string]api.Mount{}
	for _, m := range d.Mounts() {
		listed[m.Mount] = m
	}
	for id, want := range v.known {
		m, ok := listed[id]
		if !ok {
			if id != v.busy {
				t.Errorf("mount %s was acknowledged as %s and is gone", id, want.state)
			}
			delete(v.known, id)
			continue
		}
		if m.State != want.state && id != v.busy {
			t.Errorf("mount %s is %s, not %s: %s", id, m.State, want.state, m.Reason)
		}
		if m.State == "mounted" {
			if err := want.verify(m.Disks[0].Path); err != nil {
				t.Error(err)
			}
		}
	}
	for id, m := range listed {
		if v.known[id] == nil && filepath.Base(m.Path) == "written" {
			continue
		}
		if m.State == "failed" {
			t.Errorf("mount %s: %s", id, m.Reason)
		}
		if m.State == "mounted" {
			unmount(t, d, id, api.UnmountRequest{})
			delete(v.known, id)
		} else if v.known[id] != nil {
			v.known[id].state = m.State
		} else if m.State == "kept" {
			t.Errorf("mount %s is kept; it was unmounted for good", id)
		}
	}
	v.busy = ""
}
