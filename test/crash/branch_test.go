package crash

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"livemount/server/api"
	"livemount/test/harness"
)

// TestKilledForksAndCommitsKeepWhatWasAcknowledged kills the daemon while a mount and a fork of it are
// written to, forked and committed. Each fork and each point of the branch must be a prefix of what was
// written, with all that was acknowledged before it was asked for.
func TestKilledForksAndCommitsKeepWhatWasAcknowledged(t *testing.T) {
	harness.NeedRoot(t)
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	for left := harness.Soak(12, 1000); left > 0; left -= 6 {
		b := newBranched(t, rng)
		for n := range 6 {
			b.round(t, n)
		}
		b.d.Stop()
	}
}

// branched is a store with a mount and a fork of it that are written to.
type branched struct {
	rng    *rand.Rand
	d      *harness.Daemon
	dir    string
	n      int
	sides  []*side
	points int // of the branch that were checked
}

// side is a mount that is written to, with what its disks held at the start of the round.
type side struct {
	mount api.Mount
	disks [][]byte
	w     *writerProcess
	seed  uint64
}

// attempt is a fork or a commit of side 0 that was asked for.
type attempt struct {
	least uint64 // writes that were acknowledged before
	ok    bool
	path  string // of a fork
	point string // of a commit
}

func newBranched(t *testing.T, rng *rand.Rand) *branched {
	t.Helper()
	dir := harness.Dir(t)
	b := &branched{rng: rng, dir: dir, d: harness.New(t, filepath.Join(dir, "store"))}
	b.d.Start()
	v := newVM(t, dir, "vm", rng, 3<<20, 2<<20+512)
	if ok, err := v.backup(b.d); !ok {
		t.Fatal(err)
	}
	b.addSide(t, b.d.Mount("vm@latest", filepath.Join(dir, "first")))
	var f api.Mount
	b.d.Must(&f, "fork", b.sides[0].mount.Mount, filepath.Join(dir, "second"))
	b.addSide(t, f)
	return b
}

func (b *branched) addSide(t *testing.T, m api.Mount) {
	t.Helper()
	disks, err := readDisks(diskPaths(&m))
	if err != nil {
		t.Fatal(err)
	}
	b.sides = append(b.sides, &side{mount: m, disks: disks})
}

func (b *branched) round(t *testing.T, n int) {
	t.Helper()
	for _, s := range b.sides {
		s.seed = b.rng.Uint64()
		s.w = startWriter(t, s.seed, "run", diskPaths(&s.mount)...)
	}
	var forks, commits []attempt
	var errs errorList
	var actors sync.WaitGroup
	actors.Go(func() { errs.add(b.attempts(&forks, b.fork)) })
	actors.Go(func() { errs.add(b.attempts(&commits, b.commit)) })
	k := &killed{rng: b.rng, d: b.d}
	k.killAt(t, time.Duration(b.rng.IntN(600_000))*time.Microsecond, b.rng.IntN(5) == 0)
	actors.Wait()
	errs.report(t)
	k.restart(t)
	if s := b.d.Status(); !s.Healthy {
		t.Errorf("after the kill: read-only %q, damage %q", s.ReadOnly, s.Damage)
	}
	start := cloned(b.sides[0].disks)
	for i, s := range b.sides {
		least, most := s.w.bounds()
		if err := s.settle(least, most); err != nil {
			t.Fatalf("round %d, side %d: %v", n, i, err)
		}
	}
	t.Logf("%d forks, %d commits", len(forks), len(commits))
	b.checkForks(t, start, forks)
	b.checkCommits(t, start, commits)
	if t.Failed() {
		t.Fatalf("in round %d", n)
	}
}

func cloned(disks [][]byte) [][]byte {
	out := make([][]byte, len(disks))
	for i := range disks {
		out[i] = bytes.Clone(disks[i])
	}
	return out
}

// settle finds what a side holds now.
func (s *side) settle(least, most uint64) error {
	seen, err := readDisks(diskPaths(&s.mount))
	if err != nil {
		return err
	}
	_, err = prefix(s.disks, seen, newHistory(s.seed, sizesOf(seen)), least, most)
	return err
}

func sizesOf(disks [][]byte) []int64 {
	sizes := make([]int64, len(disks))
	for i := range disks {
		sizes[i] = int64(len(disks[i]))
	}
	return sizes
}

// attempts does something again and again until the daemon is gone.
func (b *branched) attempts(list *[]attempt, one func(*attempt) (bool, error)) error {
	for range 40 {
		a := attempt{}
		a.least, _, _ = b.sides[0].w.state()
		ok, err := one(&a)
		a.ok = ok
		*list = append(*list, a)
		if !ok {
			return err
		}
	}
	return nil
}

func (b *branched) fork(a *attempt) (bool, error) {
	b.n++
	a.path = filepath.Join(b.dir, fmt.Sprintf("fork-%d", b.n))
	return decoded(b.d, b.d.Ctl("fork", b.sides[0].mount.Mount, a.path, "--output", "json"), nil)
}

func (b *branched) commit(a *attempt) (bool, error) {
	var p api.Backup
	ok, err := decoded(b.d, b.d.Ctl("commit", b.sides[0].mount.Mount, "--branch", "b", "--output", "json"), &p)
	a.point = p.Point
	return ok, err
}

// checkForks compares every fork with the history, and ends it.
func (b *branched) checkForks(t *testing.T, start [][]byte, forks []attempt) {
	t.Helper()
	there := map[string]api.Mount{}
	for _, m := range b.d.Mounts() {
		there[m.Path] = m
	}
	for _, a := range forks {
		m, ok := there[a.path]
		switch {
		case a.ok && !ok:
			t.Errorf("fork %s was acknowledged and is gone", a.path)
		case ok:
			b.isPrefix(t, start, &m, a.least)
			b.d.Must(nil, "unmount", m.Mount, "--yes")
		}
	}
	if n := len(b.d.Mounts()); n != len(b.sides) {
		t.Errorf("%d mounts are left", n)
	}
}

// isPrefix checks that a mount shows a prefix of this round's writes to side 0.
func (b *branched) isPrefix(t *testing.T, start [][]byte, m *api.Mount, least uint64) {
	t.Helper()
	seen, err := readDisks(diskPaths(m))
	if err != nil {
		t.Fatal(err)
	}
	_, most := b.sides[0].w.bounds()
	if _, err := prefixAt(cloned(start), seen, newHistory(b.sides[0].seed, sizesOf(seen)), least, most, least); err != nil {
		t.Errorf("%s: %v", m.Path, err)
	}
}

// checkCommits compares every new point of the branch with the history.
func (b *branched) checkCommits(t *testing.T, start [][]byte, commits []attempt) {
	t.Helper()
	if r := b.d.Ctl("points", "vm:b"); r.Code == 10 && b.points == 0 {
		for _, a := range commits {
			if a.ok {
				t.Errorf("commit %s was acknowledged and is gone", a.point)
			}
		}
		return
	}
	points := b.d.Points("vm:b")
	least := map[string]uint64{}
	for _, a := range commits {
		if a.ok {
			least[a.point] = a.least
		}
	}
	for i := b.points; i < len(points); i++ {
		id := points[i].Point
		b.n++
		m := b.d.Mount("vm:b@id:"+id, filepath.Join(b.dir, fmt.Sprintf("point-%d", b.n)), "--read-only")
		b.isPrefix(t, start, &m, least[id])
		b.d.Must(nil, "unmount", m.Mount)
		delete(least, id)
	}
	for id := range least {
		t.Errorf("commit %s was acknowledged and is gone", id)
	}
	b.points = len(points)
}
