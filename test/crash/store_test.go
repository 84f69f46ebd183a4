package crash

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"livemount/blockdev/overlay"
	"livemount/internal/clock"
	"livemount/internal/vfs"
	"livemount/server/api"
	"livemount/test/harness"
)

// filledStore is a small store with all kinds of files, and what it holds.
type filledStore struct {
	dir    string
	id     string
	points map[string][]filledPoint // by VM, oldest first
	mounts []filledMount
}

type filledPoint struct {
	id    string
	disks [][]byte
}

type filledMount struct {
	id, vm, path, state string
	disks               [][]byte
}

// fillStore makes a store of three VMs with four points each, a mount that is mounted and one that is kept,
// both written to and each with a checkpoint. When killed, the daemon's last changes are in its logs only.
func fillStore(t *testing.T, rng *rand.Rand, killed bool) *filledStore {
	t.Helper()
	top := harness.MemoryDir(t)
	s := &filledStore{dir: filepath.Join(top, "store"), points: map[string][]filledPoint{}}
	d := harness.New(t, s.dir, "--log-level", "warn")
	d.Start()
	vms := []*vm{
		newVM(t, top, "alpha", rng, 1<<20, 512<<10+512), newVM(t, top, "beta", rng, 3<<20), newVM(t, top, "gamma", rng, 9<<20),
	}
	for range 4 {
		for _, v := range vms {
			s.backup(t, d, v, rng)
		}
	}
	s.mount(t, d, "alpha@latest", filepath.Join(top, "mounted"), rng)
	s.mount(t, d, "beta@-1", filepath.Join(top, "kept"), rng)
	d.Must(nil, "unmount", s.mounts[1].id, "--keep")
	s.mounts[1].state = "kept"
	s.id = d.Status().Store
	d.Stop()
	for i := range s.mounts {
		s.checkpoint(t, &s.mounts[i])
	}
	d.Start() // more behind the checkpoint, and tables beside logs
	s.write(t, &s.mounts[0], rng, 100)
	for _, v := range vms {
		s.backup(t, d, v, rng)
	}
	if killed {
		d.Kill()
		for _, m := range harness.Mounted(t, top) {
			harness.Run(t, "umount", "-l", m)
		}
	} else {
		d.Stop()
	}
	if err := os.RemoveAll(filepath.Join(s.dir, "ballast")); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *filledStore) backup(t *testing.T, d *harness.Daemon, v *vm, rng *rand.Rand) {
	t.Helper()
	if err := v.change(rng, 40); err != nil {
		t.Fatal(err)
	}
	if ok, err := v.backup(d); !ok {
		t.Fatal(err)
	}
	p := filledPoint{id: v.points[len(v.points)-1].id}
	for _, b := range v.content {
		p.disks = append(p.disks, append([]byte{}, b...))
	}
	s.points[v.name] = append(s.points[v.name], p)
}

func (s *filledStore) mount(t *testing.T, d *harness.Daemon, ref, path string, rng *rand.Rand) {
	t.Helper()
	m := d.Mount(ref, path)
	disks, err := readDisks(diskPaths(&m))
	if err != nil {
		t.Fatal(err)
	}
	s.mounts = append(s.mounts, filledMount{id: m.Mount, vm: m.VM, path: path, state: "mounted", disks: disks})
	s.write(t, &s.mounts[len(s.mounts)-1], rng, 300)
}

// write makes n changes to the disks of a mount, synced.
func (s *filledStore) write(t *testing.T, m *filledMount, rng *rand.Rand, n int) {
	t.Helper()
	var sizes []int64
	w := &writer{}
	for i, b := range m.disks {
		f, err := os.OpenFile(filepath.Join(m.path, fmt.Sprintf("sd%c.raw", 'a'+i)), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		w.files, sizes = append(w.files, f), append(sizes, int64(len(b)))
	}
	w.h = newHistory(rng.Uint64(), sizes)
	for range n {
		o := w.h.next()
		if err := w.apply(o); err != nil {
			t.Fatal(err)
		}
		copy(m.disks[o.disk][o.off:], w.h.data(o))
	}
	for _, f := range w.files {
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// checkpoint writes one, as clean-up of a long log would.
func (s *filledStore) checkpoint(t *testing.T, m *filledMount) {
	t.Helper()
	o := overlay.Options{FS: vfs.OS{}, Dir: s.log(m), Clock: clock.System{}, NoBackground: true, Mount: s.identity(t, m)}
	var nodes []overlay.Node
	for i, b := range m.disks {
		nodes = append(nodes, overlay.Node{ID: uint64(i) + 2, Size: int64(len(b))})
	}
	l, rep, err := overlay.Open(context.Background(), o, nodes)
	if err != nil || len(rep.Damage) > 0 {
		t.Fatal(err, rep)
	}
	if err := l.Clean(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func (s *filledStore) log(m *filledMount) string { return filepath.Join(s.dir, "mounts", m.id, "log") }

// identity is that of the mount's log (server/FORMAT.md).
func (s *filledStore) identity(t *testing.T, m *filledMount) (id [16]byte) {
	t.Helper()
	raw, err := hex.DecodeString(s.id)
	if err != nil {
		t.Fatal(err)
	}
	copy(id[:8], raw[:8])
	n, err := strconv.ParseUint(m.id, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	binary.BigEndian.PutUint64(id[8:], n)
	return id
}

// copyTo makes a copy of the store, with its holes.
func (s *filledStore) copyTo(t *testing.T, dir string) {
	t.Helper()
	harness.Run(t, "cp", "-a", "--sparse=always", s.dir, dir)
}

// tally is what was seen of a store that was spoiled.
type tally struct {
	badPages int      // that are an I/O error
	refused  []string // operations with an error
	lost     []string // what is not listed
}

func (y *tally) clean() bool { return y.badPages == 0 && len(y.refused) == 0 && len(y.lost) == 0 }

// examine reads every byte of every point and mount. Wrong bytes fail the test; everything else is told.
func (s *filledStore) examine(t *testing.T, d *harness.Daemon) *tally {
	t.Helper()
	y := &tally{}
	for name, points := range s.points {
		s.examineVM(t, d, y, name, points)
	}
	listed := map[string]api.Mount{}
	for _, m := range d.Mounts() {
		listed[m.Mount] = m
	}
	for i := range s.mounts {
		m := &s.mounts[i]
		now, ok := listed[m.id]
		if !ok {
			y.lost = append(y.lost, "mount "+m.id)
			continue
		}
		s.examineMount(t, d, y, m, now)
	}
	return y
}

func (s *filledStore) examineVM(t *testing.T, d *harness.Daemon, y *tally, name string, points []filledPoint) {
	t.Helper()
	var list api.Points
	if err := d.Client.Do(t.Context(), "GET", "/v1/points", map[string][]string{"vm": {name}}, nil, &list); err != nil {
		y.refused = append(y.refused, fmt.Sprintf("list points of %s: %v", name, err))
		return
	}
	ids := map[string]bool{}
	for _, p := range list.Points {
		ids[p.Point] = true
	}
	for i, p := range points {
		if !ids[p.id] {
			y.lost = append(y.lost, fmt.Sprintf("point %d of %s", i, name))
			continue
		}
		delete(ids, p.id)
		s.examinePoint(t, d, y, name, p)
	}
	if len(ids) > 0 {
		t.Errorf("%s has points that were never made: %v", name, ids)
	}
}

func (s *filledStore) examinePoint(t *testing.T, d *harness.Daemon, y *tally, name string, p filledPoint) {
	t.Helper()
	dir := filepath.Join(filepath.Dir(s.dir), "look")
	var m api.Mount
	req := api.MountRequest{Ref: name + "@id:" + p.id, Place: api.Place{Path: dir}, ReadOnly: true}
	if err := d.Client.Do(t.Context(), "POST", "/v1/mounts", nil, req, &m); err != nil {
		y.refused = append(y.refused, fmt.Sprintf("mount point %s of %s: %v", p.id, name, err))
		return
	}
	s.compare(t, y, fmt.Sprintf("point %s of %s", p.id, name), m, p.disks)
	unmount(t, d, m.Mount, api.UnmountRequest{})
}

func (s *filledStore) examineMount(t *testing.T, d *harness.Daemon, y *tally, m *filledMount, now api.Mount) {
	t.Helper()
	if now.State != m.state && now.State != "failed" {
		y.refused = append(y.refused, fmt.Sprintf("mount %s is %s, was %s", m.id, now.State, m.state))
	}
	switch now.State {
	case "failed":
		y.refused = append(y.refused, now.Reason)
	case "mounted":
		s.compare(t, y, "mount "+m.id, now, m.disks)
	case "kept":
		if err := d.Client.Do(t.Context(), "POST", "/v1/mounts/"+m.id+"/resume", nil, api.ResumeRequest{Place: api.Place{Path: m.path}}, &now); err != nil {
			y.refused = append(y.refused, fmt.Sprintf("resume %s: %v", m.id, err))
			return
		}
		s.compare(t, y, "kept mount "+m.id, now, m.disks)
		unmount(t, d, m.id, api.UnmountRequest{Keep: true})
	}
}

func (s *filledStore) compare(t *testing.T, y *tally, what string, m api.Mount, want [][]byte) {
	t.Helper()
	if len(m.Disks) != len(want) {
		t.Errorf("%s has %d disks, not %d", what, len(m.Disks), len(want))
		return
	}
	for i, disk := range m.Disks {
		bad, err := comparePages(disk.Path, want[i])
		if err != nil {
			t.Errorf("%s, %s: %v", what, disk.Name, err)
		}
		y.badPages += bad
	}
}

// comparePages reads a whole disk. It returns how many pages are I/O errors, and an error when a byte is wrong.
func comparePages(path string, want []byte) (bad int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() != int64(len(want)) {
		return 0, fmt.Errorf("size %d, not %d: %v", info.Size(), len(want), err)
	}
	buf := make([]byte, 1<<20)
	for at := 0; at < len(want); {
		n, err := f.ReadAt(buf[:min(len(buf), len(want)-at)], int64(at))
		if string(buf[:n]) != string(want[at:at+n]) {
			return bad, fmt.Errorf("wrong bytes between %d and %d", at, at+n)
		}
		at += n
		if err != nil {
			if !isEIO(err) {
				return bad, err
			}
			bad++
			at = (at/harness.PageSize + 1) * harness.PageSize
		}
	}
	return bad, nil
}
