package crash

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"livemount/test/harness"
)

// op is one change of a disk: the history of a mount is a row of them, the same for the same seed.
type op struct {
	seq   uint64 // from 1
	disk  int
	off   int64
	n     int64
	punch bool // punch a hole; else write
}

// history makes the changes one after the other.
type history struct {
	seed  uint64
	rng   *rand.Rand
	sizes []int64
	seq   uint64
}

func newHistory(seed uint64, sizes []int64) *history {
	return &history{seed: seed, rng: rand.New(rand.NewPCG(seed, 1)), sizes: sizes}
}

// maxWrite is below what the kernel sends in one request: each op is one record of the log.
const maxWrite = 96 << 10

func (h *history) next() op {
	h.seq++
	o := op{seq: h.seq, disk: h.rng.IntN(len(h.sizes)), punch: h.rng.IntN(12) == 0}
	unit := []int64{1, 512, 4096, 4096}[h.rng.IntN(4)]
	if o.punch {
		unit = 4096
	}
	size := h.sizes[o.disk]
	o.n = max(unit, h.rng.Int64N(maxWrite)/unit*unit)
	if h.rng.IntN(2) == 0 {
		o.n = min(o.n, 4096)
	}
	o.off = h.rng.Int64N(size-o.n) / unit * unit
	return o
}

// data is what the op writes. Each 64 bytes begin with a stamp that is found nowhere else.
func (h *history) data(o op) []byte {
	b := make([]byte, o.n)
	if o.punch {
		return b
	}
	for at := 0; at < len(b); at += 64 {
		var s [64]byte
		binary.LittleEndian.PutUint64(s[:], h.seed)
		binary.LittleEndian.PutUint64(s[8:], o.seq)
		binary.LittleEndian.PutUint64(s[16:], uint64(o.disk)<<56|uint64(o.off+int64(at)))
		for i := 24; i < 64; i += 8 {
			binary.LittleEndian.PutUint64(s[i:], (h.seed^o.seq^uint64(at+i))*0x9e3779b97f4a7c15)
		}
		copy(b[at:], s[:])
	}
	return b
}

// prefix finds which prefix of the history turned disks into seen. It holds at least least ops and at most
// most, of which the last one never returned: the kernel may have sent it in several requests, cut at pages.
// It leaves disks as seen.
func prefix(disks, seen [][]byte, h *history, least, most uint64) (uint64, error) {
	return prefixAt(disks, seen, h, least, most, most-1)
}

// prefixAt is prefix for a moment in the middle of a history: any op from the one numbered torn on, counted
// from 0, can have been under way.
func prefixAt(disks, seen [][]byte, h *history, least, most, torn uint64) (uint64, error) {
	wrong := 0
	bad := make([][]bool, len(disks))
	look := func(d int, from, to int64) {
		for p := from / harness.PageSize; p*harness.PageSize < to; p++ {
			a := p * harness.PageSize
			e := min(a+harness.PageSize, int64(len(disks[d])))
			now := string(disks[d][a:e]) != string(seen[d][a:e])
			if now != bad[d][p] {
				bad[d][p] = now
				wrong += map[bool]int{true: 1, false: -1}[now]
			}
		}
	}
	for d := range disks {
		bad[d] = make([]bool, len(disks[d])/harness.PageSize+1)
		look(d, 0, int64(len(disks[d])))
	}
	fewest, at := wrong, uint64(0)
	for k := uint64(0); ; k++ {
		if wrong == 0 && k >= least {
			return k, nil
		}
		if wrong < fewest {
			fewest, at = wrong, k
		}
		if k == most {
			return 0, fmt.Errorf("the disks are at no prefix of %d to %d writes; nearest after %d, with %d pages that differ", least, most, at, fewest)
		}
		o := h.next()
		for at := o.off; at < o.off+o.n; {
			end := min(o.off+o.n, (at/harness.PageSize+1)*harness.PageSize)
			copy(disks[o.disk][at:end], h.data(o)[at-o.off:])
			look(o.disk, at, end)
			if at = end; wrong == 0 && k >= torn && at < o.off+o.n {
				return k, nil
			}
		}
	}
}
