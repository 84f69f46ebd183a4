package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Parts of the real disk, in bytes: its data lies there.
const (
	coldPart = "3g" // random reads that no cache of chunks holds
	warmPart = "32m"
	seqPart  = "2g"
)

// read measures reads and writes of mounted disks: Livemount, qcow2 overlays through qemu-storage-daemon's
// FUSE export, and the mounts of borg and restic. What is stored is in the page cache for all of them.
func (b *bench) read(ctx context.Context) error {
	if err := b.readLivemount(ctx); err != nil {
		return err
	}
	for _, levels := range []int{1, 100} {
		if err := b.readQcow2(ctx, levels); err != nil {
			return fmt.Errorf("%d qcow2 overlays: %w", levels, err)
		}
	}
	if err := b.readBorg(ctx); err != nil {
		return fmt.Errorf("borg: %w", err)
	}
	if err := b.readRestic(ctx); err != nil {
		return fmt.Errorf("restic: %w", err)
	}
	b.report.judgeReads()
	return nil
}

func (b *bench) readLivemount(ctx context.Context) error {
	data := b.path("read")
	d, err := b.daemon(ctx, data)
	if err != nil {
		return err
	}
	_, _, err = d.backup(ctx, "vm", b.disk, nil)
	d.stop()
	if err != nil {
		return err
	}
	row := readRow{Name: "livemount"}
	err = b.mounted(ctx, data, "vm@latest", func(d *daemon, path string, mount time.Duration) error {
		row.MountMS = ms(mount)
		return b.measure(ctx, path, &row, d.pid(), true)
	})
	b.report.Reads = append(b.report.Reads, row)
	return err
}

// mounted starts a daemon, whose caches are empty, and mounts a point.
func (b *bench) mounted(ctx context.Context, data, ref string, use func(d *daemon, path string, mount time.Duration) error) error {
	if err := exec.CommandContext(ctx, "sh", "-c", "find "+data+" -type f -name '*.lmc' -exec cat {} + >/dev/null").Run(); err != nil {
		return err
	}
	d, err := b.daemon(ctx, data)
	if err != nil {
		return err
	}
	defer d.stop()
	id, t, err := d.mount(ctx, ref, b.path("mnt"))
	if err != nil {
		return err
	}
	if err := use(d, filepath.Join(b.path("mnt"), "sda.raw"), t); err != nil {
		return err
	}
	return d.unmount(ctx, id)
}

// measure reads, and when it may writes, the disk at path. The server has the pid.
func (b *bench) measure(ctx context.Context, path string, row *readRow, pid int, write bool) (err error) {
	progress("%s", row.Name)
	step := func(into *float64, f func() (float64, error)) {
		if err == nil {
			*into, err = f()
		}
	}
	step(&row.Cold1, func() (float64, error) { return random(ctx, path, 1, "--offset=512m", "--size="+coldPart) })
	step(&row.Cold16, func() (float64, error) { return random(ctx, path, 16, "--offset=512m", "--size="+coldPart) })
	before, cerr := cpu(pid)
	step(&row.SequentialMB, func() (float64, error) { return sequential(ctx, path, "--offset=4g", "--size="+seqPart) })
	after, aerr := cpu(pid)
	if cerr == nil && aerr == nil {
		row.CPUPerGB = (after - before).Seconds() / 2.147
	}
	step(&row.Warm1, func() (float64, error) { return random(ctx, path, 1, "--offset=1g", "--size="+warmPart) })
	step(&row.Warm16, func() (float64, error) { return random(ctx, path, 16, "--offset=1g", "--size="+warmPart) })
	if !write {
		return err
	}
	step(&row.WriteSync, func() (float64, error) {
		r, err := fio(ctx, path, "--rw=randwrite", "--bs=4k", "--ioengine=sync", "--fdatasync=1", "--runtime=6", "--time_based", "--offset=512m", "--size="+coldPart)
		return r.IOPS, err
	})
	step(&row.Write16, func() (float64, error) {
		r, err := fio(ctx, path, append(depthOf(16), "--rw=randwrite", "--offset=512m", "--size="+coldPart)...)
		return r.IOPS, err
	})
	return err
}

// readQcow2 reads through a chain of overlays over the raw disk, which is not compressed: QEMU's best case.
func (b *bench) readQcow2(ctx context.Context, levels int) error {
	base, format := b.disk, "raw"
	for i := range levels {
		over := b.path(fmt.Sprintf("level-%d.qcow2", i))
		if _, err := command(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", format, "-b", base, over).measure(); err != nil {
			return err
		}
		base, format = over, "qcow2"
	}
	q, err := b.qemu(ctx)
	if err != nil {
		return err
	}
	defer q.stop()
	point := b.path("read.mnt")
	if err := os.WriteFile(point, nil, 0o600); err != nil {
		return err
	}
	began := time.Now()
	if err := q.export(base, point); err != nil {
		return err
	}
	row := readRow{Name: fmt.Sprintf("qcow2, %d overlays", levels), MountMS: ms(time.Since(began))}
	if err := b.measure(ctx, point, &row, q.pid(), levels == 1); err != nil {
		return err
	}
	b.report.Reads = append(b.report.Reads, row)
	return q.withdraw()
}

// slow measures the random reads of a mount that is known to be slow, for a peer.
func (b *bench) slow(ctx context.Context, name, path string) error {
	progress("%s", name)
	row := readRow{Name: name}
	var err error
	if row.Cold1, err = b.buffered(ctx, path, 1); err != nil {
		return err
	}
	row.Cold16, err = b.buffered(ctx, path, 16)
	b.report.Reads = append(b.report.Reads, row)
	return err
}

// buffered reads through the page cache: these mounts know no direct I/O. Each page is read once.
func (b *bench) buffered(ctx context.Context, path string, jobs int) (float64, error) {
	r, err := fio(ctx, path, "--rw=randread", "--bs=4k", "--ioengine=psync", "--runtime=6", "--time_based", "--randrepeat=0", "--fadvise_hint=random",
		fmt.Sprintf("--numjobs=%d", jobs), "--group_reporting", "--offset=512m", "--size="+coldPart)
	return r.IOPS, err
}

func (b *bench) readBorg(ctx context.Context) error {
	repo := borgRepo{dir: b.path("read-borg"), home: b.path("borg-home")}
	if _, err := repo.borg(ctx, "init", "-e", "none", repo.dir).measure(); err != nil {
		return err
	}
	if _, err := repo.create(ctx, "one", b.disk); err != nil {
		return err
	}
	dir := b.path("borg.mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	r, err := repo.borg(ctx, "mount", "-f", repo.dir+"::one", dir).start()
	if err != nil {
		return err
	}
	defer r.stop()
	path := filepath.Join(dir, b.disk)
	if err := waitFor(ctx, path); err != nil {
		return err
	}
	return b.slow(ctx, "borg mount", path)
}

func (b *bench) readRestic(ctx context.Context) error {
	repo := resticRepo{dir: b.path("read-restic"), cache: b.path("restic-cache")}
	if _, err := repo.restic(ctx, "init").measure(); err != nil {
		return err
	}
	if _, err := repo.backup(ctx, b.disk); err != nil {
		return err
	}
	dir := b.path("read-restic.mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	r, err := repo.restic(ctx, "mount", dir).start()
	if err != nil {
		return err
	}
	defer r.stop()
	path := filepath.Join(dir, "snapshots/latest", b.disk)
	if err := waitFor(ctx, path); err != nil {
		return err
	}
	return b.slow(ctx, "restic mount", path)
}

func (r *report) judgeReads() {
	ours, overlay, deep, borg, restic := r.Reads[0], r.Reads[1], r.Reads[2], r.Reads[3], r.Reads[4]
	best := max(borg.Cold1, borg.Cold16, restic.Cold1, restic.Cold16)
	r.atLeast("random reads, chunk cache empty, beside the best backup mount", ours.Cold16/best, 10)
	r.atLeast("random reads, cache warm, one at a time, beside a qcow2 overlay", ours.Warm1/overlay.Warm1, 1)
	r.atLeast("random reads, cache warm, 16 at a time, beside a qcow2 overlay", ours.Warm16/overlay.Warm16, 0.7)
	r.atLeast("random reads, cache warm, 16 at a time, beside 100 overlays", ours.Warm16/deep.Warm16, 3)
	r.atLeast("sequential reads beside a qcow2 overlay", ours.SequentialMB/overlay.SequentialMB, 1.5)
	r.atLeast("writes with fdatasync beside a qcow2 overlay", ours.WriteSync/overlay.WriteSync, 2)
	r.atLeast("writes, 16 at a time, beside a qcow2 overlay", ours.Write16/overlay.Write16, 0.7)
}
