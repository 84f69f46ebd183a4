package main

import (
	"context"
	"math/rand/v2"
	"os"
)

const (
	tebibyte    = 1 << 40
	spreadBytes = 4 << 30
)

// memory takes in a disk of 1 TiB with 4 GiB of random data spread over it, and reads the daemon's peak
// memory. The store is kept for the mounts.
func (b *bench) memory(ctx context.Context) error {
	disk := b.path("tebibyte.raw")
	progress("a disk of 1 TiB with %s spread over it", gib(spreadBytes))
	if err := spread(ctx, disk, tebibyte, spreadBytes); err != nil {
		return err
	}
	if err := dropCache(); err != nil {
		return err
	}
	d, err := b.daemon(ctx, b.path("big"))
	if err != nil {
		return err
	}
	defer d.stop()
	got, c, err := d.backup(ctx, "big", disk, nil)
	if err != nil {
		return err
	}
	b.report.addMemory("1 TiB sparse, 4 GiB in 65536 places", got.Disks[0].ReadBytes, c)
	b.report.judgeMemory()
	return nil
}

// spread makes a sparse file with random data in pieces of 64 KiB at even distances.
func spread(ctx context.Context, path string, size, data int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	random := rand.NewChaCha8([32]byte{9})
	buf := make([]byte, extentBytes)
	n := data / extentBytes
	for i := range n {
		random.Read(buf) // never fails
		if _, err := f.WriteAt(buf, i*(size/n)/extentBytes*extentBytes); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return f.Sync()
}
