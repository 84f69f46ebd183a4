package blocktest

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"livemount/blockdev"
	"livemount/internal/errs"
)

// TestDevice checks a writable disk. open returns a new device of size bytes that reads as zeroes; the
// suite closes it. The size should be at least a few pages and at most some MiB.
func TestDevice(t *testing.T, open func() blockdev.Device, size int64) {
	t.Helper()
	t.Run("NewDevice", func(t *testing.T) { TestReader(t, opened(t, open), make([]byte, size)) })
	t.Run("WrittenDevice", func(t *testing.T) { TestReader(t, written(t, open), pattern(size)) })
	t.Run("RefusesRangesOutside", func(t *testing.T) { writeOutside(t, opened(t, open)) })
	t.Run("HonoursCancel", func(t *testing.T) { writeCanceled(t, opened(t, open)) })
	t.Run("KeepsNoBuffer", func(t *testing.T) { keepsNoBuffer(t, opened(t, open)) })
	t.Run("ConcurrentWriters", func(t *testing.T) { concurrentWriters(t, opened(t, open)) })
	t.Run("BehavesLikeBytes", func(t *testing.T) { behavesLikeBytes(t, open, size) })
}

func opened(t *testing.T, open func() blockdev.Device) blockdev.Device {
	d := open()
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return d
}

// pattern has no two equal pages, and a hole in the middle.
func pattern(size int64) []byte {
	p := make([]byte, size)
	for i := range p {
		p[i] = byte(i*7 + i>>8*13 + 1)
	}
	clear(p[size/3 : size/2])
	return p
}

func written(t *testing.T, open func() blockdev.Device) blockdev.Device {
	d := opened(t, open)
	p := pattern(d.Size())
	hole := d.Size() / 3
	if err := d.WriteAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Zero(t.Context(), hole, d.Size()/2-hole); err != nil {
		t.Fatal(err)
	}
	if err := d.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}

func writeOutside(t *testing.T, d blockdev.Device) {
	for _, x := range outside(d.Size()) {
		if err := d.WriteAt(t.Context(), bytes.Repeat([]byte{1}, int(x[1])), x[0]); !errs.Is(err, errs.Invalid) {
			t.Errorf("write %d+%d: got %v, want an Invalid error", x[0], x[1], err)
		}
		if err := d.Zero(t.Context(), x[0], x[1]); !errs.Is(err, errs.Invalid) {
			t.Errorf("zero %d+%d: got %v, want an Invalid error", x[0], x[1], err)
		}
	}
	if err := d.Zero(t.Context(), 0, -1); !errs.Is(err, errs.Invalid) {
		t.Errorf("zero 0+-1: got %v, want an Invalid error", err)
	}
	readRanges(t, d, make([]byte, d.Size()))
}

func writeCanceled(t *testing.T, d blockdev.Device) {
	ctx := canceled(t)
	for name, err := range map[string]error{
		"write": d.WriteAt(ctx, []byte{1}, 0),
		"zero":  d.Zero(ctx, 0, 1),
		"sync":  d.Sync(ctx),
	} {
		if !errs.Is(err, errs.Canceled) {
			t.Errorf("%s: got %v, want a Canceled error", name, err)
		}
	}
}

func keepsNoBuffer(t *testing.T, d blockdev.Device) {
	p := bytes.Repeat([]byte{7}, 4096)
	if err := d.WriteAt(t.Context(), p, 1); err != nil {
		t.Fatal(err)
	}
	clear(p)
	if err := d.ReadAt(t.Context(), p, 1); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, bytes.Repeat([]byte{7}, len(p))) {
		t.Fatal("the device holds the writer's buffer")
	}
}

// concurrentWriters lets writers of neighbouring odd ranges run at once: none may lose another's bytes.
func concurrentWriters(t *testing.T, d blockdev.Device) {
	const writers, rounds = 8, 16
	part := d.Size() / writers
	failed := make([]error, writers)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() { failed[w] = rewrite(t.Context(), d, int64(w)*part, part, byte(w+1), rounds) })
	}
	wg.Wait()
	for w, err := range failed {
		if err == nil {
			err = holds(t.Context(), d, bytes.Repeat([]byte{byte(w + 1)}, int(part)), int64(w)*part)
		}
		if err != nil {
			t.Errorf("writer %d: %v", w, err)
		}
	}
}

func rewrite(ctx context.Context, d blockdev.Device, off, n int64, b byte, rounds int) error {
	p := bytes.Repeat([]byte{b}, int(n))
	for i := range rounds {
		if i%4 == 3 {
			if err := d.Zero(ctx, off, n); err != nil {
				return err
			}
		}
		if err := d.WriteAt(ctx, p, off); err != nil {
			return err
		}
		if err := holds(ctx, d, p, off); err != nil {
			return err
		}
	}
	return d.Sync(ctx)
}

func holds(ctx context.Context, d blockdev.Device, want []byte, off int64) error {
	p := make([]byte, len(want))
	if err := d.ReadAt(ctx, p, off); err != nil {
		return err
	}
	if !bytes.Equal(p, want) {
		return fmt.Errorf("range %d+%d does not hold what was written", off, len(want))
	}
	return nil
}

// behavesLikeBytes runs random operations against the device and a byte array.
func behavesLikeBytes(t *testing.T, open func() blockdev.Device, size int64) {
	rapid.Check(t, func(rt *rapid.T) {
		d := open()
		defer d.Close()
		m := &model{ctx: context.Background(), d: d, want: make([]byte, size)}
		rt.Repeat(map[string]func(*rapid.T){
			"write": m.write, "zero": m.zero, "read": m.read, "sync": m.sync, "extents": m.extents,
		})
		if err := holds(m.ctx, d, m.want, 0); err != nil {
			rt.Fatal(err)
		}
	})
}
