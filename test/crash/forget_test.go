package crash

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"livemount/server/api"
	"livemount/test/harness"
)

// TestStoreForgetsOnPurposeAndNeverByAccident does everything that a store can be asked to in random order, with the real daemon: backups,
// mounts, writes, commits, forks, expiry, holds, collections, scrubs, kills, metadata that is lost. After each kill, and in the
// end, every point and every mount is what it must be. The seed replays the order.
func TestStoreForgetsOnPurposeAndNeverByAccident(t *testing.T) {
	harness.NeedRoot(t)
	seed := harness.Seed(t)
	rng := rand.New(rand.NewPCG(seed, 6))
	for left := harness.Soak(300, 100_000); left > 0; left -= stepsPerStore {
		f := newForgetful(t, rng)
		for range min(left, stepsPerStore) {
			f.step()
		}
		f.finish()
	}
}

// stepsPerStore bounds how large a store gets.
const stepsPerStore = 300

// forgetful is a store with what it must hold.
type forgetful struct {
	t    *testing.T
	rng  *rand.Rand
	dir  string
	d    *harness.Daemon
	vms  []*vm
	held map[string]bool // points

	branches []*vm // their points only
	mounts   []*shown
	n        int
	did      map[string]int
}

// shown is a mount and what it must show.
type shown struct {
	id, dir string
	vm      string // that its point is of
	point   string
	disks   [][]byte
	kept    bool
}

func newForgetful(t *testing.T, rng *rand.Rand) *forgetful {
	dir := harness.Dir(t)
	f := &forgetful{t: t, rng: rng, dir: dir, d: harness.New(t, filepath.Join(dir, "store")), held: map[string]bool{}, did: map[string]int{}}
	f.d.Start()
	f.vms = []*vm{newVM(t, dir, "web", rng, 3<<20, 1<<20+512), newVM(t, dir, "db", rng, 4<<20)}
	for range 3 {
		f.backup()
	}
	return f
}

func (f *forgetful) step() {
	steps := []struct {
		name   string
		weight int
		do     func()
	}{
		{"backup", 8, f.backup}, {"mount", 3, f.mount}, {"write", 8, f.write}, {"commit", 3, f.commit}, {"fork", 2, f.fork},
		{"unmount", 3, f.unmount}, {"keep", 1, f.keep}, {"expire", 6, f.expire}, {"hold", 2, f.hold}, {"collect", 3, f.collect},
		{"scrub", 1, f.scrub}, {"verify", 1, f.verify}, {"kill", 1, f.kill}, {"kill in a collection", 1, f.killInCollection},
		{"lose the metadata", 1, f.loseMetadata}, {"remove a branch", 1, f.removeBranch},
	}
	total := 0
	for _, s := range steps {
		total += s.weight
	}
	at := f.rng.IntN(total)
	for _, s := range steps {
		if at -= s.weight; at < 0 {
			f.did[s.name]++
			f.n++
			s.do()
			break
		}
	}
	if f.t.Failed() {
		f.t.FailNow()
	}
}

// ctl runs a command that must succeed.
func (f *forgetful) ctl(args ...string) string {
	f.t.Helper()
	r := f.d.Ctl(args...)
	if r.Code != 0 {
		f.t.Fatalf("step %d: mountctl %q: exit %d: %s%s", f.n, args, r.Code, r.Out, r.Err)
	}
	return r.Out
}

func (f *forgetful) backup() {
	v := f.vms[f.rng.IntN(len(f.vms))]
	if err := v.change(f.rng, 40); err != nil {
		f.t.Fatal(err)
	}
	var more []string
	if f.rng.IntN(8) == 0 {
		more = append(more, "--full")
	}
	if f.rng.IntN(4) == 0 {
		more = append(more, "--compression", "fast")
	}
	if ok, err := v.backup(f.d, more...); !ok {
		f.t.Fatalf("step %d: %v\n%s", f.n, err, f.d.Log())
	}
}

// all are the VMs and branches that have points.
func (f *forgetful) all() []*vm {
	return slices.DeleteFunc(append(slices.Clone(f.vms), f.branches...), func(v *vm) bool { return len(v.points) == 0 })
}

func (f *forgetful) any() (*vm, int) {
	list := f.all()
	v := list[f.rng.IntN(len(list))]
	return v, f.rng.IntN(len(v.points))
}

func (f *forgetful) mount() {
	if len(f.mounts) >= 5 {
		return
	}
	v, i := f.any()
	m := &shown{vm: v.name, point: v.points[i].id, dir: filepath.Join(f.dir, fmt.Sprintf("m%d", f.n))}
	got := f.d.Mount(v.name+"@id:"+m.point, m.dir)
	m.id = got.Mount
	disks, err := readDisks(diskPaths(&got))
	if err != nil {
		f.t.Fatal(err)
	}
	m.disks = disks
	for k, want := range v.points[i].disks {
		if harness.Sum(disks[k]) != want.sum {
			f.t.Fatalf("step %d: point %s of %s, disk %d differs", f.n, m.point, v.name, k)
		}
	}
	f.mounts = append(f.mounts, m)
}

func (f *forgetful) served() *shown {
	list := slices.DeleteFunc(slices.Clone(f.mounts), func(m *shown) bool { return m.kept })
	if len(list) == 0 {
		return nil
	}
	return list[f.rng.IntN(len(list))]
}

// write writes to a mount, and syncs.
func (f *forgetful) write() {
	m := f.served()
	if m == nil {
		return
	}
	got := f.d.MountByID(m.id)
	k := f.rng.IntN(len(m.disks))
	file, err := os.OpenFile(got.Disks[k].Path, os.O_RDWR, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	defer file.Close()
	for range 1 + f.rng.IntN(4) {
		b := m.disks[k]
		n := min(1+f.rng.IntN(30000), len(b))
		at := f.rng.IntN(len(b) - n + 1)
		fill(f.rng, b[at:at+n])
		if _, err := file.WriteAt(b[at:at+n], int64(at)); err != nil {
			f.t.Fatal(err)
		}
	}
	if err := file.Sync(); err != nil {
		f.t.Fatal(err)
	}
}

// commit makes what a mount shows a point of a branch of its own.
func (f *forgetful) commit() {
	m := f.served()
	if m == nil || len(f.branches) > 6 {
		return
	}
	var b api.Backup
	name := "b" + m.id[:8]
	if err := json.Unmarshal([]byte(f.ctl("commit", m.id, "--branch", name, "--output", "json")), &b); err != nil {
		f.t.Fatal(err)
	}
	e := expected{id: b.Point}
	for _, disk := range m.disks {
		e.disks = append(e.disks, diskSum{size: int64(len(disk)), sum: harness.Sum(disk), data: harness.NonZero(disk)})
	}
	for _, v := range f.branches {
		if v.name == b.VM {
			v.points = append(v.points, e)
			return
		}
	}
	f.branches = append(f.branches, &vm{name: b.VM, points: []expected{e}})
}

func (f *forgetful) fork() {
	m := f.served()
	if m == nil || len(f.mounts) >= 5 {
		return
	}
	to := &shown{vm: m.vm, point: m.point, dir: filepath.Join(f.dir, fmt.Sprintf("f%d", f.n))}
	var got api.Mount
	if err := json.Unmarshal([]byte(f.ctl("fork", m.id, to.dir, "--output", "json")), &got); err != nil {
		f.t.Fatal(err)
	}
	to.id = got.Mount
	for _, disk := range m.disks {
		to.disks = append(to.disks, slices.Clone(disk))
	}
	f.mounts = append(f.mounts, to)
}

func (f *forgetful) unmount() {
	if len(f.mounts) == 0 {
		return
	}
	i := f.rng.IntN(len(f.mounts))
	f.checkMount(f.mounts[i])
	f.ctl("unmount", f.mounts[i].id, "--yes")
	f.mounts = slices.Delete(f.mounts, i, i+1)
}

func (f *forgetful) keep() {
	if m := f.served(); m != nil {
		f.ctl("unmount", m.id, "--keep")
		m.kept = true
	}
}

// checkMount compares what a mount shows; one that is kept is resumed.
func (f *forgetful) checkMount(m *shown) {
	f.t.Helper()
	if m.kept {
		f.ctl("mount", "--resume", m.id, m.dir)
		m.kept = false
	}
	got := f.d.MountByID(m.id)
	disks, err := readDisks(diskPaths(&got))
	if err != nil {
		f.t.Fatalf("step %d: mount %s: %v", f.n, m.id, err)
	}
	for k := range disks {
		if harness.Sum(disks[k]) != harness.Sum(m.disks[k]) {
			f.t.Fatalf("step %d: mount %s, disk %d differs", f.n, m.id, k)
		}
	}
}

// mounted reports whether a mount stands on a point.
func (f *forgetful) mounted(point string) bool {
	return slices.ContainsFunc(f.mounts, func(m *shown) bool { return m.point == point })
}

func (f *forgetful) expire() {
	v, i := f.any()
	id := v.points[i].id
	r := f.d.Ctl("expire", v.name+"@id:"+id, "--yes")
	switch {
	case f.held[id] || f.mounted(id):
		if r.Code != 11 {
			f.t.Fatalf("step %d: expire %s, which is held or mounted: exit %d: %s", f.n, id, r.Code, r.Err)
		}
	case r.Code != 0:
		f.t.Fatalf("step %d: expire %s: exit %d: %s", f.n, id, r.Code, r.Err)
	default:
		v.points = slices.Delete(v.points, i, i+1)
	}
	if len(f.all()) == 0 {
		f.backup()
	}
}

func (f *forgetful) hold() {
	v, i := f.any()
	id := v.points[i].id
	if f.held[id] {
		f.ctl("release", v.name+"@id:"+id)
	} else {
		f.ctl("hold", v.name+"@id:"+id, "--reason", "test")
	}
	f.held[id] = !f.held[id]
}

func (f *forgetful) collect() { f.ctl("gc") }
func (f *forgetful) scrub()   { f.ctl("scrub", "--all") }

func (f *forgetful) verify() {
	v, i := f.any()
	f.ctl("verify", v.name+"@id:"+v.points[i].id)
}

func (f *forgetful) kill() {
	f.d.Kill()
	f.d.Start()
	f.check(false)
}

// killInCollection kills the daemon at some moment of a collection.
func (f *forgetful) killInCollection() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.d.Ctl("gc") // it ends with the daemon, or before
	}()
	select {
	case <-done:
	case <-time.After(time.Duration(f.rng.IntN(40_000)) * time.Microsecond):
	}
	f.d.Kill()
	<-done
	f.d.Start()
	f.check(false)
}

func (f *forgetful) loseMetadata() {
	f.d.Kill()
	if err := os.RemoveAll(filepath.Join(f.dir, "store", "meta")); err != nil {
		f.t.Fatal(err)
	}
	f.d.Start()
	f.check(true)
	f.d.Stop() // so that status forgets that
	f.d.Start()
}

func (f *forgetful) removeBranch() {
	if len(f.branches) == 0 {
		return
	}
	i := f.rng.IntN(len(f.branches))
	b := f.branches[i]
	kept := slices.ContainsFunc(b.points, func(e expected) bool { return f.held[e.id] || f.mounted(e.id) })
	r := f.d.Ctl("vm", "remove", b.name, "--yes")
	if kept != (r.Code == 11) || !kept && r.Code != 0 {
		f.t.Fatalf("step %d: remove %s: exit %d: %s", f.n, b.name, r.Code, r.Err)
	}
	if !kept {
		f.branches = slices.Delete(f.branches, i, i+1)
	}
}

// check compares the lists of points, one point and one mount; status knows no damage but that the metadata was lost.
func (f *forgetful) check(lost bool) {
	f.t.Helper()
	for _, v := range f.all() {
		f.checkList(v)
	}
	v, i := f.any()
	checkPoint(f.t, f.d, v.name, v.points[i])
	if len(f.mounts) > 0 {
		f.checkMount(f.mounts[f.rng.IntN(len(f.mounts))])
	}
	s := f.d.Status()
	if s.ReadOnly != "" || len(s.Damage) > 1 || len(s.Damage) == 1 && !lost {
		f.t.Fatalf("step %d: read-only %q, damage %q", f.n, s.ReadOnly, s.Damage)
	}
}

func (f *forgetful) checkList(v *vm) {
	f.t.Helper()
	var list api.Points
	if err := f.d.Client.Do(f.t.Context(), "GET", "/v1/points", url.Values{"vm": {v.name}}, nil, &list); err != nil {
		f.t.Fatal(err)
	}
	if len(list.Points) != len(v.points) {
		f.t.Fatalf("step %d: %s has %d points, not %d", f.n, v.name, len(list.Points), len(v.points))
	}
	for i, p := range list.Points {
		if p.Point != v.points[i].id || (len(p.Holds) > 0) != f.held[p.Point] {
			f.t.Fatalf("step %d: point %d of %s is %s with the holds %v, not %s", f.n, i, v.name, p.Point, p.Holds, v.points[i].id)
		}
	}
}

// finish checks everything, and that fsck agrees.
func (f *forgetful) finish() {
	f.t.Helper()
	f.check(false)
	for _, v := range f.all() {
		for _, e := range v.points {
			checkPoint(f.t, f.d, v.name, e)
		}
	}
	for _, m := range f.mounts {
		f.checkMount(m)
		f.ctl("unmount", m.id, "--yes")
	}
	f.d.Stop()
	f.t.Logf("%v", f.did)
	f.d.Fsck()
}
