package crash

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"livemount/test/harness"
)

// loss is what a power cut does to the writes that were not flushed.
type loss int

const (
	lossNone    loss = iota // all are there, as if the disk had no cache
	lossDropped             // any are missing
	lossTorn                // any are missing, and any sectors of the others
)

func (l loss) String() string { return [...]string{"whole", "dropped", "torn"}[l] }

// replayer makes images of a disk as power cuts leave it, in ascending order of the cuts.
type replayer struct {
	log   *blockLog
	data  io.ReaderAt // the log
	base  string      // an image with all entries before done
	image *os.File    // base
	done  int64
}

func newReplayer(t *testing.T, l *blockLog, data io.ReaderAt, base string) *replayer {
	t.Helper()
	f, err := os.OpenFile(base, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return &replayer{log: l, data: data, base: base, image: f}
}

// cutAt makes the image after a cut behind so many entries. It returns how many writes were hurt.
func (r *replayer) cutAt(t *testing.T, rng *rand.Rand, at int64, how loss, image string) (hurt int) {
	t.Helper()
	safe := r.flushedBefore(at)
	if safe < r.done || at > int64(len(r.log.entries)) {
		t.Fatalf("cut at %d of %d entries, safe to %d, of which %d are in the image", at, len(r.log.entries), safe, r.done)
	}
	for ; r.done < safe; r.done++ {
		if err := r.apply(r.image, &r.log.entries[r.done], nil); err != nil {
			t.Fatal(err)
		}
	}
	copySparse(t, r.base, image)
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	percent := []int{25, 50, 90}[rng.IntN(3)]
	for i := safe; i < at; i++ {
		e := &r.log.entries[i]
		var keep func(int64) bool
		if e.n > 0 && !e.has(entryFUA) {
			keep = r.kept(rng, e, how, percent)
		}
		if keep != nil {
			hurt++
		}
		if err := r.apply(f, e, keep); err != nil {
			t.Fatal(err)
		}
	}
	return hurt
}

// flushedBefore returns how many entries a cut cannot hurt.
func (r *replayer) flushedBefore(at int64) int64 {
	for ; at > 0; at-- {
		if r.log.entries[at-1].has(entryFlush) {
			return at
		}
	}
	return 0
}

// kept says which sectors of a write are there; nil is all. ext4 relies on one thing: its superblock, in the
// first 4 KiB, is written whole or not at all.
func (r *replayer) kept(rng *rand.Rand, e *blockEntry, how loss, percent int) func(sector int64) bool {
	none := func(int64) bool { return false }
	switch {
	case how == lossNone:
		return nil
	case rng.IntN(100) < percent:
		return none
	case how == lossDropped || e.off < 4096 || rng.IntN(2) == 0:
		return nil
	}
	sectors := e.n / r.log.sectorSize
	edge := rng.Int64N(sectors + 1)
	switch rng.IntN(3) {
	case 0:
		return func(s int64) bool { return s < edge }
	case 1:
		return func(s int64) bool { return s >= edge }
	}
	some := make([]bool, sectors)
	for i := range some {
		some[i] = rng.IntN(2) == 0
	}
	return func(s int64) bool { return some[s] }
}

// apply makes one entry happen, or the sectors of it that are kept.
func (r *replayer) apply(f *os.File, e *blockEntry, keep func(sector int64) bool) error {
	if e.n == 0 {
		return nil
	}
	size := r.log.sectorSize
	var b []byte
	if !e.has(entryDiscard) {
		b = make([]byte, e.n)
		if _, err := r.data.ReadAt(b, e.data); err != nil {
			return fmt.Errorf("read data at %d of the log: %w", e.data, err)
		}
	}
	for from := int64(0); from < e.n; {
		to := from
		for to < e.n && (keep == nil || keep(to/size)) {
			to += size
		}
		if to > from {
			if err := change(f, b, e.off, from, to); err != nil {
				return err
			}
		}
		from = max(to, from+size)
	}
	return nil
}

// change writes b[from:to], or discards that; then it reads as zeroes.
func change(f *os.File, b []byte, off, from, to int64) error {
	if b == nil {
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off+from, to-from)
	}
	_, err := f.WriteAt(b[from:to], off+from)
	return err
}

// TestPowerLossSparesWhatWasFlushed cuts a log anywhere: what was flushed is there, what comes later is not,
// and what is between is there in whole, in part or not at all, as asked for.
func TestPowerLossSparesWhatWasFlushed(t *testing.T) {
	const sector, sectors = 512, 64
	dir := harness.Dir(t)
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	var list [][4]uint64
	for range 60 {
		e := [4]uint64{8 + uint64(rng.IntN(40)), 1 + uint64(rng.IntN(16)), 0, 0}
		switch rng.IntN(8) {
		case 0, 1:
			e = [4]uint64{0, 0, entryFlush, 0}
		case 2:
			e[2] = entryDiscard
		case 3:
			e[2] = entryFUA
		}
		list = append(list, e)
	}
	b := blockLogBytes(uint64(len(list)), sector, list...)
	l, err := readBlockLog(bytes.NewReader(b), int64(len(b)), sectors*sector)
	if err != nil {
		t.Fatal(err)
	}
	base, image := filepath.Join(dir, "base"), filepath.Join(dir, "image")
	harness.WriteSparse(t, base, sectors*sector)
	r := newReplayer(t, l, bytes.NewReader(b), base)
	for at := range int64(len(list) + 1) {
		for how := lossNone; how <= lossTorn; how++ {
			hurt := r.cutAt(t, rng, at, how, image)
			can := possible(list[:at], r.flushedBefore(at), how)
			seen, err := os.ReadFile(image)
			if err != nil || how == lossNone && hurt > 0 {
				t.Fatal(err, hurt)
			}
			for s := range sectors {
				if v := seen[s*sector]; !can[s][v] || !bytes.Equal(seen[s*sector:(s+1)*sector], bytes.Repeat([]byte{v}, sector)) {
					t.Fatalf("cut at %d, %s: sector %d holds %d, not one of %v", at, how, s, v, can[s])
				}
			}
		}
	}
}

// possible returns what each sector can hold when the writes behind the first safe ones may be hurt.
func possible(list [][4]uint64, safe int64, how loss) [64]map[byte]bool {
	var can [64]map[byte]bool
	for s := range can {
		can[s] = map[byte]bool{0: true}
	}
	for i, e := range list {
		for s := e[0]; s < e[0]+e[1]; s++ {
			v := byte(e[0])
			if e[2] == entryDiscard {
				v = 0
			}
			if how == lossNone || int64(i) < safe || e[2] == entryFUA {
				can[s] = map[byte]bool{}
			}
			can[s][v] = true
		}
	}
	return can
}
