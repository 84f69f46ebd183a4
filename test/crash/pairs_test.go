package crash

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"livemount/server/api"
	"livemount/test/harness"
)

// pairWorld is a store that operations run on, two at a time.
type pairWorld struct {
	t       *testing.T
	d       *harness.Daemon
	dir     string
	sources map[string]string // of VMs
	m       api.Mount         // a writable mount that stays, also served by NFS
	n       atomic.Int64      // makes names
	renamed atomic.Bool       // db has its other name
	wrote   [][]byte          // what the mount acknowledged, at its first bytes; of one writer
	writing sync.Mutex

	mu   sync.Mutex
	done map[string]int // commands that succeeded, by their first words
}

// operation is one of those in docs/LOCKING.md. It returns what it did wrong; a refusal that says so is none.
type operation struct {
	name string
	do   func(w *pairWorld) error
}

// ctl runs mountctl. Refusals are fine: not found, busy, denied, exists.
func (w *pairWorld) ctl(args ...string) error {
	r := w.d.Ctl(args...)
	switch r.Code {
	case 0:
		w.mu.Lock()
		w.done[args[0]]++
		w.mu.Unlock()
		return nil
	case 10, 11, 12, 16:
		return nil
	}
	return fmt.Errorf("mountctl %s: exit %d: %s%s", strings.Join(args, " "), r.Code, r.Out, r.Err)
}

func (w *pairWorld) fresh(name string) string {
	return filepath.Join(w.dir, fmt.Sprintf("%s%d", name, w.n.Add(1)))
}

func (w *pairWorld) backup(vm string) error {
	return w.ctl("backup", vm, "--disk", "sda="+w.sources[vm])
}

// write is acknowledged by a sync.
func (w *pairWorld) write() error {
	w.writing.Lock()
	defer w.writing.Unlock()
	b := fmt.Appendf(nil, "write %08d", w.n.Add(1))
	if err := trySynced(w.m.Disks[0].Path, b); err != nil {
		return err
	}
	w.wrote = append(w.wrote, b)
	return nil
}

func (w *pairWorld) mountAndRead() error {
	dir := w.fresh("m")
	if err := w.ctl("mount", "web@latest", dir, "--read-only"); err != nil {
		return err
	}
	_, err := os.ReadFile(filepath.Join(dir, "sda.raw"))
	if errors.Is(err, os.ErrNotExist) { // refused
		return nil
	}
	return errors.Join(err, w.ctl("unmount", dir))
}

func (w *pairWorld) fork() error {
	dir := w.fresh("f")
	return errors.Join(w.ctl("fork", w.m.Mount, dir), w.ctl("unmount", dir, "--yes"))
}

func (w *pairWorld) browse() error {
	dir := w.fresh("b")
	if err := w.ctl("browse", dir); err != nil {
		return err
	}
	list, err := filepath.Glob(filepath.Join(dir, "*", "*", "*.raw"))
	for _, name := range list[:min(3, len(list))] {
		_, rerr := os.ReadFile(name)
		if !errors.Is(rerr, os.ErrNotExist) { // it was expired between the two
			err = errors.Join(err, rerr)
		}
	}
	return errors.Join(err, w.ctl("unmount", dir))
}

func (w *pairWorld) nfs() error {
	var out bytes.Buffer
	c := exec.Command("nfs-cat", w.m.Disks[0].NFSURL)
	c.Stderr = &out
	if err := c.Run(); err != nil {
		return fmt.Errorf("nfs-cat: %w: %s", err, out.String())
	}
	return nil
}

func (w *pairWorld) rename() error {
	if w.renamed.CompareAndSwap(false, true) {
		defer w.renamed.Store(false)
		return errors.Join(w.ctl("vm", "rename", "db", "dbx"), w.ctl("vm", "rename", "dbx", "db"))
	}
	return nil
}

func (w *pairWorld) hold() error {
	reason := fmt.Sprint("pair ", w.n.Add(1))
	return errors.Join(w.ctl("hold", "web@-2", "--reason", reason), w.ctl("release", "web@-2"))
}

func (w *pairWorld) removeBranch() error {
	name := fmt.Sprint("r", w.n.Add(1))
	return errors.Join(w.ctl("commit", w.m.Mount, "--branch", name), w.ctl("vm", "remove", "web:"+name, "--yes"))
}

func run(args ...string) func(*pairWorld) error {
	return func(w *pairWorld) error { return w.ctl(args...) }
}

func operations() []operation {
	return []operation{
		{"backup", func(w *pairWorld) error { return w.backup("web") }},
		{"backup of another VM", func(w *pairWorld) error { return w.backup("db") }},
		{"mount and read", (*pairWorld).mountAndRead},
		{"write to a mount", (*pairWorld).write},
		{"read by NFS", (*pairWorld).nfs},
		{"commit", func(w *pairWorld) error {
			return w.ctl("commit", w.m.Mount, "--branch", fmt.Sprint("c", w.n.Add(1)))
		}},
		{"fork", (*pairWorld).fork},
		{"browse", (*pairWorld).browse},
		{"export", func(w *pairWorld) error { return w.ctl("export", "web@-1", "--disk", "sda", "-o", w.fresh("export")) }},
		{"diff", run("diff", "web@-3", "web@latest", "--extents")},
		{"rename", (*pairWorld).rename},
		{"remove a branch", (*pairWorld).removeBranch},
		{"expire", run("expire", "web@-4", "--yes")},
		{"expire the newest", run("expire", "web@latest", "--yes")},
		{"hold and release", (*pairWorld).hold},
		{"collect", run("gc")},
		{"scrub", run("scrub", "--all")},
		{"verify", run("verify", "web@-1")},
		{"measure", run("points", "web", "--unique")},
		{"rules", run("retention", "apply", "--dry-run")},
		{"key rotation", run("key", "rotate")},
	}
}

// Each pair of operations, also two of one kind, runs at once: they succeed or are refused, points stay what they are, and so
// do acknowledged writes.
func TestEachPairOfOperationsMayRunTogether(t *testing.T) {
	harness.NeedRoot(t)
	harness.Tools(t, "nfs-cat libnfs-utils")
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	w := newPairWorld(t, rng)
	ops := operations()
	for range harness.Soak(1, 20) {
		for i, a := range ops {
			for _, b := range ops[i:] {
				w.refill(rng)
				w.pair(a, b)
			}
		}
		w.check()
	}
	w.d.Stop()
	w.d.Start()
	w.check()
	for _, name := range strings.Fields("backup mount unmount commit fork browse export diff vm expire hold release gc scrub verify points retention key") {
		if w.done[name] < 5 { // or it is no test of anything
			t.Errorf("%s succeeded %d times", name, w.done[name])
		}
	}
	t.Log(w.done)
}

func newPairWorld(t *testing.T, rng *rand.Rand) *pairWorld {
	dir := harness.Dir(t)
	w := &pairWorld{t: t, dir: dir, sources: map[string]string{}, done: map[string]int{}}
	key := filepath.Join(dir, "key")
	store := filepath.Join(dir, "store")
	harness.InitEncrypted(t, store, key)
	w.d = harness.New(t, store, "--key-file", key, "--nfs-listen", "127.0.0.1:0")
	w.d.Start()
	for _, vm := range []string{"web", "db"} {
		v := newVM(t, dir, vm, rng, 1<<20)
		w.sources[vm] = v.sources[0]
		if err := w.backup(vm); err != nil {
			t.Fatal(err)
		}
	}
	w.d.Must(&w.m, "mount", "web@latest", harness.Mkdir(t, dir, "stays"), "--nfs")
	return w
}

// refill keeps some points there.
func (w *pairWorld) refill(rng *rand.Rand) {
	w.t.Helper()
	for len(w.d.Points("web")) < 7 {
		w.touch(rng, "web")
		w.touch(rng, "db")
		if err := errors.Join(w.backup("web"), w.backup("db")); err != nil {
			w.t.Fatal(err)
		}
	}
	w.touch(rng, "web")
}

func (w *pairWorld) touch(rng *rand.Rand, vm string) {
	w.t.Helper()
	f, err := os.OpenFile(w.sources[vm], os.O_RDWR, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	b := make([]byte, 5*harness.PageSize)
	fill(rng, b)
	_, err = f.WriteAt(b, rng.Int64N(200)*harness.PageSize)
	if err := errors.Join(err, f.Close()); err != nil {
		w.t.Fatal(err)
	}
}

// pair runs two operations at once.
func (w *pairWorld) pair(a, b operation) {
	w.t.Helper()
	var list errorList
	var both sync.WaitGroup
	for _, o := range []operation{a, b} {
		both.Go(func() {
			if err := o.do(w); err != nil {
				list.add(fmt.Errorf("%s: %w", o.name, err))
			}
		})
	}
	both.Wait()
	if len(list.list) > 0 {
		w.t.Fatalf("%s beside %s: %v", a.name, b.name, errors.Join(list.list...))
	}
}

// check proves all points, and the last write to the mount.
func (w *pairWorld) check() {
	w.t.Helper()
	var vms api.VMs
	w.d.Must(&vms, "vms")
	for _, vm := range vms.VMs {
		for _, p := range w.d.Points(vm.VM) {
			if r := w.d.Ctl("verify", vm.VM+"@id:"+p.Point); r.Code != 0 {
				w.t.Errorf("%s, point %s: %s%s", vm.VM, p.Point, r.Out, r.Err)
			}
		}
	}
	if st := w.d.Status(); !st.Healthy {
		w.t.Errorf("%+v", st)
	}
	b := make([]byte, len(w.wrote[0]))
	f, err := os.Open(w.m.Disks[0].Path)
	if err == nil {
		_, err = f.ReadAt(b, 0)
		err = errors.Join(err, f.Close())
	}
	if last := slices.MaxFunc(w.wrote, bytes.Compare); err != nil || !bytes.Equal(b, last) {
		w.t.Errorf("the mount shows %q, not %q: %v", b, last, err)
	}
}
