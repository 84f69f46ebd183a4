// Package blocktest is the conformance suite of blockdev: whatever implements Reader or Device, and every
// decorator and fake, passes it. A test calls TestReader with a reader and the bytes it must hold, or
// TestDevice with a way to make new devices.
//
// The suite holds an implementation to what package blockdev writes down and to nothing else.
package blocktest

import (
	"bytes"
	"context"
	"testing"

	"livemount/blockdev"
	"livemount/internal/errs"
)

// TestReader checks that r is an immutable disk that holds exactly want. It does not close r.
func TestReader(t *testing.T, r blockdev.Reader, want []byte) {
	t.Helper()
	t.Run("Size", func(t *testing.T) {
		if r.Size() != int64(len(want)) {
			t.Fatalf("size %d, want %d", r.Size(), len(want))
		}
	})
	t.Run("ReadsEveryRange", func(t *testing.T) { readRanges(t, r, want) })
	t.Run("RefusesRangesOutside", func(t *testing.T) { readOutside(t, r) })
	t.Run("HonoursCancel", func(t *testing.T) { readCanceled(t, r) })
	t.Run("ExtentsCoverExactly", func(t *testing.T) { extentRanges(t, r, want) })
	t.Run("ExtentsStop", func(t *testing.T) { extentsStop(t, r) })
}

// edges are offsets where implementations go wrong: around sectors, pages, chunks and the end.
func edges(size int64) []int64 {
	var list []int64
	for _, base := range []int64{0, 512, blockdev.PageSize, 64 << 10, size / 2, size} {
		for _, d := range []int64{-1, 0, 1} {
			if at := base + d; at >= 0 && at <= size {
				list = append(list, at)
			}
		}
	}
	return list
}

// eachRange calls f for every pair of edges.
func eachRange(size int64, f func(off, n int64)) {
	for _, from := range edges(size) {
		for _, to := range edges(size) {
			if to >= from {
				f(from, to-from)
			}
		}
	}
}

func readRanges(t *testing.T, r blockdev.Reader, want []byte) {
	eachRange(int64(len(want)), func(off, n int64) {
		p := bytes.Repeat([]byte{0xa5}, int(n)+1)
		if err := r.ReadAt(t.Context(), p[:n], off); err != nil {
			t.Fatalf("read %d+%d: %v", off, n, err)
		}
		if !bytes.Equal(p[:n], want[off:off+n]) {
			t.Fatalf("read %d+%d: wrong bytes", off, n)
		}
		if p[n] != 0xa5 {
			t.Fatalf("read %d+%d: wrote behind the buffer", off, n)
		}
	})
}

// outside lists ranges that no device of this size has.
func outside(size int64) [][2]int64 {
	const last = 1<<63 - 1
	return [][2]int64{{-1, 1}, {size, 1}, {size + 1, 0}, {max(0, size-1), 2}, {last, 1}, {-last - 1, 1}}
}

func readOutside(t *testing.T, r blockdev.Reader) {
	for _, x := range outside(r.Size()) {
		if err := r.ReadAt(t.Context(), make([]byte, x[1]), x[0]); !errs.Is(err, errs.Invalid) {
			t.Errorf("read %d+%d: got %v, want an Invalid error", x[0], x[1], err)
		}
		if _, err := collect(t.Context(), r, x[0], x[1]); !errs.Is(err, errs.Invalid) {
			t.Errorf("extents %d+%d: got %v, want an Invalid error", x[0], x[1], err)
		}
	}
}

func canceled(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

func readCanceled(t *testing.T, r blockdev.Reader) {
	n := min(r.Size(), 512)
	if err := r.ReadAt(canceled(t), make([]byte, n), 0); !errs.Is(err, errs.Canceled) {
		t.Errorf("read: got %v, want a Canceled error", err)
	}
	// What needs no I/O may still answer; then the answer is a full one.
	list, err := collect(canceled(t), r, 0, r.Size())
	if err == nil {
		err = covers(list, 0, r.Size())
		if err != nil {
			t.Errorf("extents: %v", err)
		}
	} else if !errs.Is(err, errs.Canceled) {
		t.Errorf("extents: got %v, want a Canceled error", err)
	}
}
