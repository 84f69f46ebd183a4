package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"livemount/blockdev"
	"livemount/internal/vfs"
)

// crashRun is one seeded history: it works on a log, and at random file operations takes what a power
// cut would leave, together with what the log must still hold.
type crashRun struct {
	t       *testing.T
	rng     *rand.Rand
	nodes   []Node
	model   [][][]byte // after each number of records
	synced, // number of records known to be on disk
	started int // number of records that may be on disk

	mem     *vfs.Mem
	fail    func(vfs.Op, string) error
	log     *Log
	devs    []blockdev.Device
	stamp   uint64
	recover int // cuts that happened during recovery

	dir   string // other than the usual, in a fork
	mount [16]byte
}

func (c *crashRun) options() Options {
	o := testOptions(&vfs.Faulty{FS: c.mem, Fail: func(op vfs.Op, name string) error {
		if c.fail != nil {
			return c.fail(op, name)
		}
		return nil
	}})
	o.PrewriteBytes = []int64{-1, 1 << 10, 8 << 10}[c.rng.IntN(3)]
	if c.dir != "" {
		o.Dir, o.Mount = c.dir, c.mount
	}
	return o
}

func (c *crashRun) open() error {
	l, rep, err := Open(bg(), c.options(), c.nodes)
	if err != nil {
		return fmt.Errorf("%w, report %+v", err, rep)
	}
	if rep.Rotten || rep.LostRecords > 0 {
		return fmt.Errorf("a power cut was taken for rot: %+v", rep)
	}
	c.log, c.devs = l, devicesOf(c.t, l, c.nodes)
	return nil
}

var errPower = errors.New("the power is gone")

func newCrashRun(t *testing.T, seed uint64) *crashRun {
	c := &crashRun{t: t, rng: rand.New(rand.NewPCG(seed, 1)), mem: vfs.NewMem()}
	c.nodes = []Node{{ID: 1, Base: pattern(9000, seed), Size: 20000}, {ID: 2, Size: 9000}}
	c.model = [][][]byte{modelOf(t, c.nodes)}
	must(t, c.mem.MkdirAll("/m"))
	must(t, c.mem.SyncDir("/"))
	c.log = mustCreate(t, c.options(), c.nodes)
	c.devs = devicesOf(t, c.log, c.nodes)
	return c
}

// random makes a step of exactly one record.
func (c *crashRun) random() step {
	s := step{node: c.rng.IntN(2)}
	size := c.nodes[s.node].Size
	s.off = c.rng.Int64N(size)
	s.n = 1 + c.rng.Int64N(min(size-s.off, []int64{100, 600, 5000, 12288}[c.rng.IntN(4)]))
	if s.op = c.rng.IntN(6); s.op != 1 {
		s.op = 0
		c.stamp++
		s.payload = stamp(int(s.n), c.stamp)
	}
	return s
}

func (c *crashRun) act() error {
	switch k := c.rng.IntN(20); {
	case k == 0:
		return c.log.Clean(bg())
	case k < 4:
		n := len(c.model) - 1
		err := c.log.Sync(bg())
		if err == nil {
			c.synced = n
		}
		return err
	case k == 4:
		return c.freeze()
	default:
		return c.write()
	}
}

// freeze looks at a view, which must be durable, after some more writes.
func (c *crashRun) freeze() error {
	n := len(c.model) - 1
	f, err := c.log.Freeze(bg())
	if err != nil {
		return err
	}
	c.synced = n
	defer f.Close()
	for range c.rng.IntN(4) {
		if err := c.write(); err != nil {
			return err
		}
	}
	for i, node := range c.nodes {
		r, err := f.Reader(node.ID)
		must(c.t, err)
		p := make([]byte, r.Size())
		if err := r.ReadAt(bg(), p, 0); err != nil {
			return err
		}
		if !bytes.Equal(p, c.model[n][i]) {
			c.t.Fatalf("node %d: the view shows other bytes", i)
		}
	}
	return nil
}

func (c *crashRun) write() error {
	s := c.random()
	next := [][]byte{bytes.Clone(c.model[len(c.model)-1][0]), bytes.Clone(c.model[len(c.model)-1][1])}
	s.apply(next)
	c.started = len(c.model)
	c.model = append(c.model, next)
	err := s.run(c.devs)
	return err
}

// until runs actions until the power fails at the nth file operation from now.
func (c *crashRun) until(n int) {
	left := n
	c.fail = func(vfs.Op, string) error {
		if left--; left < 0 {
			return errPower
		}
		return nil
	}
	for left >= 0 {
		if err := c.act(); err != nil && left >= 0 {
			c.t.Fatalf("%v with power on", err)
		}
	}
}

// reopen cuts the power, perhaps again during recovery, and checks what is there.
func (c *crashRun) reopen() error {
	c.log.closeFiles()
	killed := c.rng.IntN(4) == 0 // only the process ends: the kernel still has what was written
	for again := c.rng.IntN(3); ; again-- {
		if !killed {
			c.mem = c.mem.CrashClone(c.rng)
		}
		killed, c.fail = false, nil
		if again > 0 {
			left := c.rng.IntN(30)
			c.fail = func(vfs.Op, string) error {
				if left--; left < 0 {
					return errPower
				}
				return nil
			}
		}
		err := c.open()
		if err != nil && again > 0 && errors.Is(err, errPower) {
			c.recover++
			continue
		}
		if err != nil {
			return err
		}
		c.fail = nil
		return c.check()
	}
}

// check finds the record count whose state the log shows, and goes on from there.
func (c *crashRun) check() error {
	now := [][]byte{readAllOf(c.t, c.devs[0]), readAllOf(c.t, c.devs[1])}
	for k := len(c.model) - 1; k >= c.synced; k-- {
		if bytes.Equal(now[0], c.model[k][0]) && bytes.Equal(now[1], c.model[k][1]) {
			// The records are durable now, unless the last recovery was itself cut.
			c.model, c.synced = c.model[:k+1], k
			return nil
		}
	}
	return fmt.Errorf("the state is no prefix between %d and %d", c.synced, len(c.model)-1)
}

// crashSeeds are the seeds of a test: all, or the one in OVERLAY_SEED.
func crashSeeds(t *testing.T, n uint64) (from, to uint64) {
	if s := os.Getenv("OVERLAY_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		must(t, err)
		return seed, seed + 1
	}
	return 0, n
}

func TestPowerCutLeavesPrefixWithEverythingSynced(t *testing.T) {
	cuts, inRecovery := 0, 0
	from, to := crashSeeds(t, 600/thin)
	for seed := from; seed < to; seed++ {
		c := newCrashRun(t, seed)
		for round := range 8 {
			c.until(c.rng.IntN(120))
			if err := c.reopen(); err != nil {
				t.Fatalf("OVERLAY_SEED=%d, round %d: %v", seed, round, err)
			}
			cuts++
		}
		inRecovery += c.recover
		must(t, c.log.Close())
	}
	t.Logf("%d power cuts, %d more during recovery", cuts, inRecovery)
}
