package main

import (
	"context"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"github.com/klauspost/compress/zstd"

	"livemount/server/api"
)

const (
	extentBytes = 64 << 10 // what changed block tracking of hypervisors reports at the least
	extents     = 1000
)

// increment changes 1000 extents of 64 KiB of a copy of the real disk and backs it up with their list, then
// changes them again and backs it up compared as a whole. borg and restic have no such list and compare.
func (b *bench) increment(ctx context.Context) error {
	disk := b.path("increment.raw")
	progress("copy of the disk, and its first backups")
	if _, err := command(ctx, "cp", "--sparse=always", b.disk, disk).measure(); err != nil {
		return err
	}
	data, err := allocated(filepath.Dir(disk), siblings(disk)...)
	if err != nil {
		return err
	}
	d, err := b.daemon(ctx, b.path("increment"))
	if err != nil {
		return err
	}
	defer d.stop()
	borg, restic, err := b.firstOfPeers(ctx, d, disk)
	if err != nil {
		return err
	}
	list, err := scatter(disk, 1)
	if err != nil {
		return err
	}
	progress("increments")
	for _, step := range []struct {
		name    string
		changed *[]api.Range
	}{{"livemount, list of extents", &list}, {"livemount, compared", nil}} {
		if step.changed == nil {
			if _, err := scatter(disk, 2); err != nil {
				return err
			}
		}
		if err := dropCache(); err != nil {
			return err
		}
		got, c, err := d.backup(ctx, "vm", disk, step.changed)
		if err != nil {
			return err
		}
		b.report.addIncrement(step.name, int64(len(list))*extentBytes, got.Disks[0].ReadBytes, got.Disks[0].StoredBytes, c)
	}
	b.report.judgeIncrement()
	if err := b.incrementsOfPeers(ctx, borg, restic, disk, data); err != nil {
		return err
	}
	return b.database(ctx, d, borg, disk, data)
}

const databaseWrites = 4000

// database changes a few bytes in pages of 8 KiB all over a gigabyte, as a database does, and backs that up
// with the list of 64 KiB cells that hypervisors report.
func (b *bench) database(ctx context.Context, d *daemon, borg borgRepo, disk string, data int64) error {
	progress("a database's increment")
	list, cells, err := update(disk)
	if err != nil {
		return err
	}
	got, c, err := d.backup(ctx, "vm", disk, &list)
	if err != nil {
		return err
	}
	changed := int64(len(list)) * extentBytes
	b.report.addIncrement("livemount, database", changed, got.Disks[0].ReadBytes, got.Disks[0].StoredBytes, c)
	b.report.atMost("a database's increment beside its 64 KiB cells compressed", ratio(got.Disks[0].StoredBytes, cells), 0.65)
	before, err := allocated(borg.dir)
	if err == nil {
		c, err = borg.create(ctx, "three", disk)
	}
	if err != nil {
		return err
	}
	after, err := allocated(borg.dir)
	b.report.addIncrement("borg create, database", changed, data, after-before, c)
	b.report.atMost("a database's increment beside borg", ratio(got.Disks[0].StoredBytes, after-before), 1)
	return err
}

// update writes, and returns the 64 KiB cells that hold a change and what they take when each is compressed whole.
func update(disk string) (list []api.Range, compressed int64, err error) {
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	rng := rand.New(rand.NewPCG(7, 7))
	changed := map[int64]bool{}
	for range databaseWrites {
		off := 1<<30 + rng.Int64N(1<<17)*8192
		row := make([]byte, 64)
		for i := range row {
			row[i] = byte('a' + rng.IntN(16))
		}
		if _, err := f.WriteAt(row, off+rng.Int64N(8192-64)); err != nil {
			return nil, 0, err
		}
		changed[off/extentBytes] = true
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, 0, err
	}
	cell := make([]byte, extentBytes)
	for _, c := range slices.Sorted(maps.Keys(changed)) {
		list = append(list, api.Range{Offset: c * extentBytes, Length: extentBytes})
		if _, err := f.ReadAt(cell, c*extentBytes); err != nil {
			return nil, 0, err
		}
		compressed += int64(len(enc.EncodeAll(cell, nil)))
	}
	return list, compressed, f.Sync()
}

func (b *bench) firstOfPeers(ctx context.Context, d *daemon, disk string) (borgRepo, resticRepo, error) {
	borg := borgRepo{dir: b.path("borg"), home: b.path("borg-home")}
	restic := resticRepo{dir: b.path("restic"), cache: b.path("restic-cache")}
	_, _, err := d.backup(ctx, "vm", disk, nil)
	if err == nil {
		_, err = borg.borg(ctx, "init", "-e", "none", borg.dir).measure()
	}
	if err == nil {
		_, err = borg.create(ctx, "one", disk)
	}
	if err == nil {
		_, err = restic.restic(ctx, "init").measure()
	}
	if err == nil {
		_, err = restic.backup(ctx, disk)
	}
	return borg, restic, err
}

func (b *bench) incrementsOfPeers(ctx context.Context, borg borgRepo, restic resticRepo, disk string, data int64) error {
	peers := []struct {
		name, dir string
		again     func() (cost, error)
	}{
		{"borg create", borg.dir, func() (cost, error) { return borg.create(ctx, "two", disk) }},
		{"restic backup", restic.dir, func() (cost, error) { return restic.backup(ctx, disk) }},
	}
	for _, p := range peers {
		before, err := allocated(p.dir)
		if err == nil {
			err = dropCache()
		}
		if err != nil {
			return err
		}
		c, err := p.again()
		if err != nil {
			return err
		}
		after, err := allocated(p.dir)
		if err != nil {
			return err
		}
		// They see the second change only: it is of the same extents. All of the disk's data is read.
		b.report.addIncrement(p.name, extents*extentBytes, data, after-before, c)
	}
	return nil
}

// scatter overwrites extents of the disk with random bytes, evenly spread, and returns them.
func scatter(disk string, seed uint64) ([]api.Range, error) {
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	stride := info.Size() / extents / extentBytes * extentBytes
	random := rand.NewChaCha8([32]byte{byte(seed)})
	buf := make([]byte, extentBytes)
	list := make([]api.Range, 0, extents)
	for i := range int64(extents) {
		random.Read(buf) // never fails
		if _, err := f.WriteAt(buf, i*stride); err != nil {
			return nil, err
		}
		list = append(list, api.Range{Offset: i * stride, Length: extentBytes})
	}
	return list, f.Sync()
}
