package overlay

import (
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"livemount/blockdev"
	"livemount/internal/vfs"
)

// lane is one writer: it writes 1, 2, 3 and so on to a place of its own.
type lane struct {
	off        int64
	start, end []int64 // moments at which write i began and returned
	synced     atomic.Int64
}

const (
	lanes      = 4
	laneWrites = 60
	laneBytes  = 700
)

// cutMoment is what a power cut in the middle of everything would leave.
type cutMoment struct {
	mem    *vfs.Mem
	synced [lanes]int64
}

func lanePayload(v int64) []byte {
	return binary.LittleEndian.AppendUint64(make([]byte, laneBytes-8), uint64(v))
}

func laneValue(t *testing.T, d blockdev.Device, off int64) int64 {
	p := make([]byte, laneBytes)
	must(t, d.ReadAt(bg(), p, off))
	return int64(binary.LittleEndian.Uint64(p[laneBytes-8:]))
}

func (w *lane) run(t *testing.T, d blockdev.Device, moment *atomic.Int64, rng *rand.Rand) {
	for i := int64(1); i <= laneWrites; i++ {
		atomic.StoreInt64(&w.start[i], moment.Add(1))
		if err := d.WriteAt(bg(), lanePayload(i), w.off); err != nil {
			t.Error(err)
			return
		}
		atomic.StoreInt64(&w.end[i], moment.Add(1))
		if rng.IntN(5) == 0 {
			if err := d.Sync(bg()); err != nil {
				t.Error(err)
				return
			}
			w.synced.Store(i)
		}
	}
}

func TestPowerCutUnderConcurrentWritersLeavesPrefix(t *testing.T) {
	from, to := crashSeeds(t, 300/thin)
	for seed := from; seed < to; seed++ {
		concurrentCut(t, seed)
	}
}

func concurrentCut(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 4))
	mem, left := vfs.NewMem(), atomic.Int64{}
	left.Store(1 << 40)
	var ws [lanes]lane
	var cut cutMoment
	o := testOptions(&vfs.Faulty{FS: mem, Fail: func(vfs.Op, string) error {
		if left.Add(-1) == 0 {
			for i := range ws {
				cut.synced[i] = ws[i].synced.Load()
			}
			cut.mem = mem.CrashClone(rand.New(rand.NewPCG(seed, 5)))
		}
		return nil
	}})
	nodes := []Node{{ID: 1, Size: lanes * laneBytes}}
	must(t, mem.MkdirAll("/m"))
	l := mustCreate(t, o, nodes)
	left.Store(1 + rng.Int64N(400))
	d := mustDevice(t, l, 1)
	var moment atomic.Int64
	var wg sync.WaitGroup
	for i := range ws {
		ws[i].off, ws[i].start, ws[i].end = int64(i)*laneBytes, make([]int64, laneWrites+2), make([]int64, laneWrites+2)
		wg.Go(func() { ws[i].run(t, d, &moment, rand.New(rand.NewPCG(seed, uint64(i)))) })
	}
	wg.Go(func() {
		for range 4 {
			if err := l.Clean(bg()); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	if cut.mem != nil {
		checkCut(t, seed, o, nodes, cut, &ws)
	}
	must(t, l.Close())
}

func checkCut(t *testing.T, seed uint64, o Options, nodes []Node, cut cutMoment, ws *[lanes]lane) {
	o.FS = cut.mem
	l, rep := mustOpen(t, o, nodes)
	d := mustDevice(t, l, 1)
	var have [lanes]int64
	for i := range ws {
		have[i] = laneValue(t, d, ws[i].off)
		if have[i] < cut.synced[i] || have[i] > laneWrites || rep.Rotten {
			t.Fatalf("OVERLAY_SEED=%d: lane %d has %d, synced %d: %+v", seed, i, have[i], cut.synced[i], rep)
		}
	}
	for a := range ws {
		missing := ws[a].end[have[a]+1] // 0 when it never returned
		for b := range ws {
			if missing != 0 && missing < ws[b].start[have[b]] {
				t.Fatalf("OVERLAY_SEED=%d: write %d of lane %d is missing, later write %d of lane %d is there",
					seed, have[a]+1, a, have[b], b)
			}
		}
	}
	must(t, l.Close())
}
