package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// mount measures the time from asking for a point to its first 4 KiB, with disks of 1 GiB and 1 TiB.
func (b *bench) mount(ctx context.Context) error {
	small, big := b.path("small.raw"), b.path("tebibyte.raw")
	if err := spread(ctx, small, 1<<30, 512<<20); err != nil {
		return err
	}
	if _, err := os.Stat(big); errors.Is(err, fs.ErrNotExist) {
		if err := spread(ctx, big, tebibyte, spreadBytes); err != nil {
			return err
		}
	}
	d, err := b.daemon(ctx, b.path("big"))
	if err != nil {
		return err
	}
	defer d.stop()
	disks := []struct{ vm, size, path string }{{"small", "1 GiB", small}, {"big", "1 TiB", big}}
	for _, disk := range disks {
		if _, _, err := d.backup(ctx, disk.vm, disk.path, nil); err != nil {
			return err
		}
	}
	for _, disk := range disks {
		progress("%d mounts of %s with livemount", b.mounts, disk.size)
		if err := b.mountsOfLivemount(ctx, d, disk.vm, disk.size); err != nil {
			return err
		}
	}
	if err := b.idle(ctx, d); err != nil {
		return err
	}
	for _, disk := range disks {
		progress("%d mounts of %s as qcow2 overlay", b.mounts, disk.size)
		if err := b.mountsOfQemu(ctx, disk.path, disk.size); err != nil {
			return fmt.Errorf("qemu-storage-daemon: %w", err)
		}
	}
	progress("%d times restic mount of 1 GiB", b.mounts)
	if err := b.mountsOfRestic(ctx, small); err != nil {
		return err
	}
	b.report.judgeMounts()
	return nil
}

// idle looks at the memory of a daemon with ten mounts of 1 TiB that nobody uses.
func (b *bench) idle(ctx context.Context, d *daemon) error {
	const mounts = 10
	var ids []string
	for i := range mounts {
		id, _, err := d.mount(ctx, "big@latest", b.path(fmt.Sprintf("idle-%d", i)))
		if err != nil {
			return err
		}
		ids = append(ids, id)
	}
	var err error
	if b.report.IdleBytes, err = resident(d.pid()); err != nil {
		return err
	}
	b.report.judge("memory of the daemon with ten mounts", "< 256 MB", fmt.Sprintf("%d MB", b.report.IdleBytes/1e6), b.report.IdleBytes < 256e6)
	for _, id := range ids {
		if err := d.unmount(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) mountsOfLivemount(ctx context.Context, d *daemon, vm, size string) error {
	before, err := cpu(d.pid())
	if err != nil {
		return err
	}
	var times []time.Duration
	for range b.mounts {
		id, t, err := d.mount(ctx, vm+"@latest", b.path("mnt"))
		if err != nil {
			return err
		}
		times = append(times, t)
		if err := d.unmount(ctx, id); err != nil {
			return err
		}
	}
	after, err := cpu(d.pid())
	b.report.addMounts("livemount", size, times, after-before)
	return err
}

// mountsOfQemu makes a new overlay for each mount and exports it from a daemon that runs already.
func (b *bench) mountsOfQemu(ctx context.Context, base, size string) error {
	q, err := b.qemu(ctx)
	if err != nil {
		return err
	}
	defer q.stop()
	before, err := cpu(q.pid())
	if err != nil {
		return err
	}
	var times []time.Duration
	var images time.Duration
	point := b.path("qcow2.mnt")
	for i := range b.mounts {
		if err := os.WriteFile(point, nil, 0o600); err != nil { // the export is mounted on a file
			return err
		}
		over := b.path(fmt.Sprintf("over-%d.qcow2", i))
		began := time.Now()
		c, err := command(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, over).measure()
		if err == nil {
			err = q.export(over, point)
		}
		if err == nil {
			err = firstBytes(point)
		}
		if err != nil {
			return err
		}
		times, images = append(times, time.Since(began)), images+c.CPU
		if err := q.withdraw(); err != nil {
			return err
		}
		if err := os.Remove(over); err != nil {
			return err
		}
	}
	after, err := cpu(q.pid())
	b.report.addMounts("qcow2 overlay, qemu-storage-daemon", size, times, after-before+images)
	return err
}

// mountsOfRestic starts restic mount each time: it has no daemon. A repository with a disk of 1 TiB is left
// out: restic reads all its zeroes.
func (b *bench) mountsOfRestic(ctx context.Context, disk string) error {
	repo := resticRepo{dir: b.path("restic-small"), cache: b.path("restic-cache")}
	if _, err := repo.restic(ctx, "init").measure(); err != nil {
		return err
	}
	if _, err := repo.backup(ctx, disk); err != nil {
		return err
	}
	dir := b.path("restic.mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	var times []time.Duration
	var used time.Duration
	for range b.mounts {
		began := time.Now()
		r, err := repo.restic(ctx, "mount", dir).start()
		if err != nil {
			return err
		}
		err = waitFor(ctx, filepath.Join(dir, "snapshots/latest", disk))
		times = append(times, time.Since(began))
		if out, e := exec.Command("umount", dir).CombinedOutput(); e != nil && err == nil {
			err = fmt.Errorf("umount %s: %w: %s", dir, e, out)
		}
		r.wait() // it ends when its mount is gone; a signal would make it unmount once more
		used += costOf(r.cmd.ProcessState, 0).CPU
		if err != nil {
			return err
		}
	}
	b.report.addMounts("restic mount", "1 GiB", times, used)
	return nil
}

// waitFor reads the first bytes of a file that is about to appear.
func waitFor(ctx context.Context, path string) error {
	for range 60000 {
		err := firstBytes(path)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("%s did not appear", path)
}

// quantile returns the nearest-rank quantile, q in (0, 1].
func quantile(times []time.Duration, q float64) time.Duration {
	s := slices.Sorted(slices.Values(times))
	return s[max(0, min(len(s)-1, int(q*float64(len(s))+0.5)-1))]
}
