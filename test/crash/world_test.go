package crash

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"livemount/server/api"
	"livemount/test/harness"
)

// vm is a machine whose disks change, with all that was said about its points.
type vm struct {
	name    string
	sources []string
	content [][]byte

	points []expected // acknowledged, oldest first
	flight *expected  // being backed up when the daemon was killed
}

// expected is what a point must hold.
type expected struct {
	id    string // "" while not known
	disks []diskSum
}

type diskSum struct {
	size int64
	sum  string
	data [][2]int64
}

func newVM(t *testing.T, dir, name string, rng *rand.Rand, sizes ...int) *vm {
	t.Helper()
	v := &vm{name: name}
	for i, size := range sizes {
		b := make([]byte, size)
		for at := 0; at+harness.PageSize <= size; at += harness.PageSize {
			if rng.IntN(3) > 0 {
				fill(rng, b[at:at+harness.PageSize])
			}
		}
		v.content = append(v.content, b)
		v.sources = append(v.sources, filepath.Join(dir, fmt.Sprintf("%s-%d", name, i)))
		harness.WriteFile(t, v.sources[i], b)
	}
	return v
}

func fill(rng *rand.Rand, b []byte) {
	for i := range b {
		if i%8 < 6 { // compresses a little
			b[i] = byte(rng.Uint32())
		}
	}
}

// change rewrites some pages of each disk, makes some zero, copies some from elsewhere.
func (v *vm) change(rng *rand.Rand, most int) error {
	for i, b := range v.content {
		f, err := os.OpenFile(v.sources[i], os.O_RDWR, 0)
		if err != nil {
			return err
		}
		for range 1 + rng.IntN(8) {
			n := min(1+rng.IntN(most), len(b)/harness.PageSize) * harness.PageSize
			at := rng.IntN((len(b)-n)/harness.PageSize+1) * harness.PageSize
			switch p := b[at : at+n]; rng.IntN(8) {
			case 0:
				clear(p)
			case 1:
				copy(p, v.content[rng.IntN(len(v.content))])
			default:
				fill(rng, p)
			}
			if _, err := f.WriteAt(b[at:at+n], int64(at)); err != nil {
				return err
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

func (v *vm) now() expected {
	var e expected
	for _, b := range v.content {
		e.disks = append(e.disks, diskSum{size: int64(len(b)), sum: harness.Sum(b), data: harness.NonZero(b)})
	}
	return e
}

func (v *vm) diskArgs() []string {
	var list []string
	for i, s := range v.sources {
		list = append(list, "--disk", fmt.Sprintf("sd%c=%s", 'a'+i, s))
	}
	return list
}

// backup takes the VM in. It returns false when the daemon did not answer: then the point may exist.
func (v *vm) backup(d *harness.Daemon, more ...string) (bool, error) {
	e := v.now()
	v.flight = &e
	args := append([]string{"backup", v.name, "--output", "json"}, v.diskArgs()...)
	r := d.Ctl(append(args, more...)...)
	switch {
	case r.Code == 0:
		var b api.Backup
		if err := json.Unmarshal([]byte(r.Out), &b); err != nil {
			return false, err
		}
		e.id = b.Point
		v.points, v.flight = append(v.points, e), nil
		return true, nil
	case r.Code == 17: // the daemon is stopping: nothing may be left
		v.flight = nil
		return false, nil
	case r.Code == 14 || !d.Running():
		return false, nil
	default:
		return false, fmt.Errorf("backup of %s: exit %d: %s%s", v.name, r.Code, r.Out, r.Err)
	}
}

// settle compares the points that the daemon lists with those that were acknowledged. One more may be there:
// the one that was in flight.
func (v *vm) settle(t *testing.T, d *harness.Daemon) {
	t.Helper()
	var list api.Points
	err := d.Client.Do(t.Context(), "GET", "/v1/points", url.Values{"vm": {v.name}}, nil, &list)
	if err != nil && len(v.points) > 0 {
		t.Fatal(err)
	}
	if n := len(v.points); len(list.Points) == n+1 && v.flight != nil {
		v.flight.id = list.Points[n].Point
		v.points = append(v.points, *v.flight)
		checkPoint(t, d, v.name, v.points[n])
	}
	v.flight = nil
	if len(list.Points) != len(v.points) {
		t.Fatalf("%s has %d points; %d were acknowledged", v.name, len(list.Points), len(v.points))
	}
	for i, p := range list.Points {
		if p.Point != v.points[i].id {
			t.Fatalf("point %d of %s is %s, not %s", i, v.name, p.Point, v.points[i].id)
		}
	}
}

// checkPoint reads a point through a read-only mount.
func checkPoint(t *testing.T, d *harness.Daemon, name string, e expected) {
	t.Helper()
	dir := harness.Dir(t)
	var m api.Mount
	req := api.MountRequest{Ref: name + "@id:" + e.id, Place: api.Place{Path: dir}, ReadOnly: true}
	if err := d.Client.Do(t.Context(), "POST", "/v1/mounts", nil, req, &m); err != nil {
		t.Fatalf("mount point %s of %s: %v", e.id, name, err)
	}
	if len(m.Disks) != len(e.disks) {
		t.Fatalf("point %s of %s has %d disks, not %d", e.id, name, len(m.Disks), len(e.disks))
	}
	for i, want := range e.disks {
		checkDisk(t, fmt.Sprintf("point %s of %s, disk %d", e.id, name, i), m.Disks[i].Path, want)
	}
	unmount(t, d, m.Mount, api.UnmountRequest{})
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
}

func checkDisk(t *testing.T, what, path string, want diskSum) {
	t.Helper()
	sum, err := harness.SumFile(path)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if sum != want.sum {
		t.Fatalf("%s: content differs", what)
	}
	data, err := harness.DataPages(path)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if !slices.Equal(data, want.data) {
		t.Fatalf("%s: data is at %v, not %v", what, data, want.data)
	}
}

func unmount(t *testing.T, d *harness.Daemon, id string, req api.UnmountRequest) {
	t.Helper()
	if err := d.Client.Do(t.Context(), "POST", "/v1/mounts/"+id+"/unmount", nil, req, nil); err != nil {
		t.Fatal(err)
	}
}

// errorList collects what goes wrong in goroutines.
type errorList struct {
	mu   sync.Mutex
	list []error
}

func (l *errorList) add(err error) {
	if err == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, err)
}

func (l *errorList) report(t *testing.T) {
	t.Helper()
	for _, err := range l.list {
		t.Error(err)
	}
	if len(l.list) > 0 {
		t.FailNow()
	}
}

// readDisks reads whole disks.
func readDisks(paths []string) ([][]byte, error) {
	var list [][]byte
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		list = append(list, b)
	}
	return list, nil
}

func diskPaths(m *api.Mount) []string {
	var list []string
	for _, d := range m.Disks {
		list = append(list, d.Path)
	}
	return list
}

// interrupt is Ctrl-C.
func interrupt(t *testing.T, c *exec.Cmd) {
	t.Helper()
	if err := c.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	var e *exec.ExitError
	if err := c.Wait(); err != nil && !errors.As(err, &e) {
		t.Fatal(err)
	}
}

// acknowledge notes the point that mountctl reported.
func (v *vm) acknowledge(out string, e expected) {
	var b api.Backup
	if err := json.Unmarshal([]byte(out), &b); err == nil {
		e.id = b.Point
		v.points, v.flight = append(v.points, e), nil
	}
}

// settleLoose accepts a point whose backup ended with an error behind its journal record.
func (v *vm) settleLoose(t *testing.T, d *harness.Daemon) {
	t.Helper()
	if list := d.Points(v.name); len(list) > len(v.points) {
		t.Logf("a backup that ended with an error is there: %s", list[len(list)-1].Point)
		v.settle(t, d)
	}
	v.flight = nil
}
