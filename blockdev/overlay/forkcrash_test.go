package overlay

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"livemount/internal/vfs"
)

func crashed(fsys vfs.FS, seed uint64) *vfs.Mem {
	return memOf(fsys).CrashClone(rand.New(rand.NewPCG(seed, 6)))
}

// forkCut cuts the power at the nth operation of Fork, and again at once, and looks at both logs.
func forkCut(t *testing.T, nth int, seed uint64) (done bool) {
	var cut *vfs.Mem
	mem, left := vfs.NewMem(), 1<<30
	o := testOptions(&vfs.Faulty{FS: mem, Fail: func(vfs.Op, string) error {
		if left--; left < 0 {
			if cut == nil {
				cut = crashed(mem, seed)
			}
			return errPower
		}
		return nil
	}})
	nodes := []Node{{ID: 1, Base: pattern(3000, 1), Size: 60000}, {ID: 2, Size: 5000}}
	must(t, mem.MkdirAll("/m"))
	l := mustCreate(t, o, nodes)
	d := devicesOf(t, l, nodes)
	must(t, d[0].WriteAt(bg(), stamp(50000, 1), 0))
	must(t, d[0].Zero(bg(), 100, 5000))
	must(t, d[1].WriteAt(bg(), stamp(3000, 2), 0))
	must(t, l.Sync(bg()))
	old := [][]byte{readAllOf(t, d[0]), readAllOf(t, d[1])}
	must(t, d[1].WriteAt(bg(), stamp(200, 3), 10)) // not synced
	all := [][]byte{old[0], readAllOf(t, d[1])}
	left = nth
	err := l.Fork(bg(), forkDir, [16]byte{7, 0xf})
	left = 1 << 30
	if done = cut == nil; done {
		must(t, err)
		cut = crashed(mem, seed)
	}
	l.closeFiles()
	o.FS = cut
	f, rep, err := Open(bg(), forkOptions(o, forkDir, 7), nodes)
	if err == nil {
		d := devicesOf(t, f, nodes)
		if rep.Rotten || !bytes.Equal(readAllOf(t, d[0]), all[0]) || !bytes.Equal(readAllOf(t, d[1]), all[1]) {
			t.Fatalf("operation %d, seed %d: the fork shows other bytes: %+v", nth, seed, rep)
		}
		must(t, d[0].WriteAt(bg(), stamp(60000, 4), 0))
		must(t, f.Clean(bg()))
		must(t, f.Close())
	} else if done || !isUnfinished(err) {
		t.Fatalf("operation %d, seed %d: %v", nth, seed, err)
	}
	l, rep = mustOpen(t, o, nodes)
	d = devicesOf(t, l, nodes)
	second := readAllOf(t, d[1])
	if rep.Rotten || !bytes.Equal(readAllOf(t, d[0]), all[0]) || !bytes.Equal(second, old[1]) && !bytes.Equal(second, all[1]) {
		t.Fatalf("operation %d, seed %d: the origin shows other bytes: %+v", nth, seed, rep)
	}
	if done && !bytes.Equal(second, all[1]) {
		t.Fatalf("seed %d: what is in the fork was not synced", seed)
	}
	if err != nil { // what is left can be removed, and the fork made again
		must(t, vfs.RemoveAll(cut, forkDir))
		must(t, l.Fork(bg(), forkDir, [16]byte{7, 0xf}))
	}
	must(t, l.Close())
	return done
}

func TestPowerCutInForkLeavesAWholeForkOrNoneAndTheOrigin(t *testing.T) {
	for nth := 0; ; nth++ {
		done := false
		for seed := range uint64(40 / thin) {
			done = forkCut(t, nth, seed)
		}
		if done {
			t.Logf("%d operations", nth)
			return
		}
	}
}

// pair is an origin and its fork on one disk.
type pair struct {
	origin, fork *crashRun // fork is nil before it is made
	forks        int
}

// act does something to either log; now and then the origin is forked.
func (p *pair) act() error {
	c := p.origin
	switch {
	case p.fork == nil && c.rng.IntN(12) == 0:
		return p.branch()
	case p.fork != nil && c.rng.IntN(2) == 0:
		return p.fork.act()
	}
	return c.act()
}

func (p *pair) branch() error {
	c, n := p.origin, len(p.origin.model)-1
	p.forks++
	p.fork = &crashRun{
		t: c.t, rng: c.rng, nodes: c.nodes, model: [][][]byte{c.model[n]}, mem: c.mem, fail: c.fail, stamp: c.stamp + 1<<40,
		dir: forkDir, mount: [16]byte{byte(p.forks), byte(p.forks >> 8), 0xf},
	}
	err := c.log.Fork(bg(), forkDir, p.fork.mount)
	if err != nil {
		return err
	}
	c.synced = n
	return p.fork.open()
}

func (p *pair) until(n int) {
	left := n
	fail := func(vfs.Op, string) error {
		if left--; left < 0 {
			return errPower
		}
		return nil
	}
	for p.origin.fail = fail; left >= 0; {
		if p.fork != nil {
			p.fork.fail = fail
		}
		if err := p.act(); err != nil && left >= 0 {
			p.origin.t.Fatalf("%v with power on", err)
		}
	}
}

// reopen cuts the power and opens both. A fork that was not finished is removed.
func (p *pair) reopen() error {
	c := p.origin
	c.log.closeFiles()
	c.mem = c.mem.CrashClone(c.rng)
	if p.fork != nil {
		if p.fork.log != nil {
			p.fork.log.closeFiles()
		}
		finished := p.fork.log != nil
		p.fork.mem, p.fork.fail = c.mem, nil
		if err := p.fork.open(); err != nil && (finished || !isUnfinished(err)) {
			return err
		} else if err != nil {
			p.fork = nil
		} else if err := p.fork.check(); err != nil {
			return err
		}
	}
	c.fail = nil
	if err := c.open(); err != nil {
		return err
	}
	if p.fork == nil || c.rng.IntN(4) == 0 {
		if p.fork != nil {
			must(c.t, p.fork.log.Close())
		}
		p.fork = nil
		must(c.t, vfs.RemoveAll(c.mem, forkDir))
	}
	return c.check()
}

func TestPowerCutLeavesOriginAndForkTheirOwnPrefixes(t *testing.T) {
	from, to := crashSeeds(t, 300/thin)
	forks := 0
	for seed := from; seed < to; seed++ {
		p := &pair{origin: newCrashRun(t, seed)}
		for round := range 10 {
			p.until(p.origin.rng.IntN(150))
			if err := p.reopen(); err != nil {
				t.Fatalf("OVERLAY_SEED=%d, round %d: %v", seed, round, err)
			}
		}
		forks += p.forks
		must(t, p.origin.log.Close())
	}
	t.Logf("%d forks", forks)
}
