package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"livemount/server/api"
)

const (
	depthBytes      = 2 << 30
	depthIncrements = 1000
	depthExtent     = 64 << 10
	depthChanged    = depthBytes / 200 / depthExtent // 0.5 %
)

// depth makes a chain of a thousand increments, half of each anywhere and half in a tenth of the disk, and
// compares its first with its last point.
func (b *bench) depth(ctx context.Context) error {
	disk, data := b.path("deep.raw"), b.path("deep")
	rng := rand.New(rand.NewPCG(1, 1))
	f, err := os.OpenFile(disk, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	for off := int64(0); off < depthBytes; off += depthExtent {
		if _, err := f.WriteAt(halfRandom(rng), off); err != nil {
			return err
		}
	}
	if err := b.chain(ctx, rng, f, data); err != nil {
		return err
	}
	refs := []string{fmt.Sprintf("vm@-%d", depthIncrements), "vm@latest"}
	mounts, err := b.mountsAtDepth(ctx, data, refs)
	if err != nil {
		return err
	}
	for i, depth := range []int{1, depthIncrements + 1} {
		row := readRow{Name: fmt.Sprintf("depth %d", depth), MountMS: ms(quantile(mounts[i], 0.5))}
		if err := b.measureDepth(ctx, data, refs[i], &row); err != nil {
			return err
		}
		b.report.Depth = append(b.report.Depth, row)
	}
	one, deep := b.report.Depth[0], b.report.Depth[1]
	b.report.atMost("mount at depth 1,000 beside depth 1", deep.MountMS/one.MountMS, 1.2)
	b.report.atLeast("random reads at depth 1,000 beside depth 1, cache empty", deep.Cold16/one.Cold16, 0.85)
	b.report.atLeast("random reads at depth 1,000 beside depth 1, cache warm", deep.Warm16/one.Warm16, 0.85)
	b.report.atLeast("sequential at depth 1,000 beside depth 1", deep.SequentialMB/one.SequentialMB, 0.5)
	return nil
}

func (b *bench) chain(ctx context.Context, rng *rand.Rand, f *os.File, data string) error {
	d, err := b.daemon(ctx, data)
	if err != nil {
		return err
	}
	defer d.stop()
	if _, _, err := d.backup(ctx, "vm", f.Name(), nil); err != nil {
		return err
	}
	for i := range depthIncrements {
		if i%100 == 0 {
			progress("increment %d of %d", i, depthIncrements)
		}
		list, err := overwrite(rng, f)
		if err != nil {
			return err
		}
		if _, _, err := d.backup(ctx, "vm", f.Name(), &list); err != nil {
			return err
		}
	}
	return nil
}

// overwrite changes a part of the disk and returns the extents, ascending.
func overwrite(rng *rand.Rand, f *os.File) ([]api.Range, error) {
	const slots = depthBytes / depthExtent
	chosen := map[int64]bool{}
	for len(chosen) < depthChanged {
		chosen[rng.Int64N([]int64{slots, slots / 10}[len(chosen)%2])] = true
	}
	var list []api.Range
	for s := range chosen {
		list = append(list, api.Range{Offset: s * depthExtent, Length: depthExtent})
		if _, err := f.WriteAt(halfRandom(rng), s*depthExtent); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(list, func(a, b api.Range) int { return int((a.Offset - b.Offset) / depthExtent) })
	return list, nil
}

// halfRandom is an extent of which half compresses.
func halfRandom(rng *rand.Rand) []byte {
	p := make([]byte, depthExtent)
	for i := 0; i < len(p); i += 8 {
		v := rng.Uint64()
		if i%128 >= 64 {
			v = 0x6c69766d6f756e74
		}
		for j := range 8 {
			p[i+j] = byte(v >> (8 * j))
		}
	}
	return p
}

// mountsAtDepth mounts the points in turn, so that a slow moment of the machine meets all of them.
func (b *bench) mountsAtDepth(ctx context.Context, data string, refs []string) ([][]time.Duration, error) {
	d, err := b.daemon(ctx, data)
	if err != nil {
		return nil, err
	}
	defer d.stop()
	times := make([][]time.Duration, len(refs))
	for range b.mounts {
		for i, ref := range refs {
			id, t, err := d.mount(ctx, ref, b.path("mnt"))
			if err == nil {
				err = d.unmount(ctx, id)
			}
			if err != nil {
				return nil, err
			}
			times[i] = append(times[i], t)
		}
	}
	return times, nil
}

func (b *bench) measureDepth(ctx context.Context, data, ref string, row *readRow) error {
	return b.mounted(ctx, data, ref, func(d *daemon, path string, _ time.Duration) error {
		progress("%s", row.Name)
		var err error
		if row.Cold1, err = random(ctx, path, 1, "--size=2g"); err != nil {
			return err
		}
		if row.Cold16, err = random(ctx, path, 16, "--size=2g"); err != nil {
			return err
		}
		if row.Warm16, err = random(ctx, path, 16, "--size=32m", "--offset=1g"); err != nil {
			return err
		}
		before, err := cpu(d.pid())
		if err != nil {
			return err
		}
		if row.SequentialMB, err = sequential(ctx, path, "--size=2g"); err != nil {
			return err
		}
		after, err := cpu(d.pid())
		row.CPUPerGB = (after - before).Seconds() / 2.147
		return err
	})
}
