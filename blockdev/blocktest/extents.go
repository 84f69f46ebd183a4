package blocktest

import (
	"context"
	"fmt"
	"testing"

	"livemount/blockdev"
)

func collect(ctx context.Context, r blockdev.Reader, off, n int64) ([]blockdev.Extent, error) {
	var list []blockdev.Extent
	for e, err := range r.Extents(ctx, off, n) {
		if err != nil {
			return list, err
		}
		list = append(list, e)
	}
	return list, nil
}

// covers checks order, adjacency and exact cover of [off, off+n).
func covers(list []blockdev.Extent, off, n int64) error {
	at := off
	for _, e := range list {
		if e.Off != at || e.Len <= 0 {
			return fmt.Errorf("extents of %d+%d: got %+v at %d", off, n, e, at)
		}
		at = e.End()
	}
	if at != off+n {
		return fmt.Errorf("extents of %d+%d: they end at %d", off, n, at)
	}
	return nil
}

// truthful checks that what is called zero or hole reads as zeroes. Data may hold anything.
func truthful(list []blockdev.Extent, want []byte) error {
	for _, e := range list {
		if e.Kind > blockdev.Hole {
			return fmt.Errorf("extent %+v: unknown kind", e)
		}
		if e.Kind != blockdev.Data && !blockdev.IsZero(want[e.Off:e.End()]) {
			return fmt.Errorf("extent %+v: the bytes are not zero", e)
		}
	}
	return nil
}

// checkExtents is cover and truth of one range.
func checkExtents(ctx context.Context, r blockdev.Reader, want []byte, off, n int64) error {
	list, err := collect(ctx, r, off, n)
	if err != nil {
		return fmt.Errorf("extents of %d+%d: %w", off, n, err)
	}
	if err := covers(list, off, n); err != nil {
		return err
	}
	return truthful(list, want)
}

func extentRanges(t *testing.T, r blockdev.Reader, want []byte) {
	eachRange(int64(len(want)), func(off, n int64) {
		if err := checkExtents(t.Context(), r, want, off, n); err != nil {
			t.Fatal(err)
		}
	})
}

// extentsStop checks that the sequence ends when its reader has seen enough, and starts anew each time.
func extentsStop(t *testing.T, r blockdev.Reader) {
	seq := r.Extents(t.Context(), 0, r.Size())
	for range 2 {
		for e, err := range seq {
			if err != nil || e.Off != 0 {
				t.Fatalf("first extent %+v, %v", e, err)
			}
			break
		}
	}
}
