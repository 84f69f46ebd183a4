package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"livemount/server/api"
)

// forget measures what letting points go costs, and what reading a whole store again does: expiring a point of a large
// chain, collecting behind it, scrubbing, and making the metadata again; and one snapshot of a real disk beside borg and
// restic.
func (b *bench) forget(ctx context.Context) error {
	if err := b.forgetReal(ctx); err != nil {
		return err
	}
	if err := b.forgetChain(ctx); err != nil {
		return err
	}
	return b.markShapes(ctx)
}

// made returns the store of a shape, which is kept below build/ because it takes minutes to make.
func (b *bench) made(ctx context.Context, shape string) (string, error) {
	dir := filepath.Join(b.root, "build", "bench-chain-"+shape)
	_, err := b.onStore(ctx, "grow-"+shape, dir)
	return dir, err
}

// forgetChain expires a point in the middle of the chain of 1 TiB, collects, and makes the metadata again.
func (b *bench) forgetChain(ctx context.Context) error {
	dir, err := b.made(ctx, "tebibyte")
	if err != nil {
		return err
	}
	progress("a point of 1 TiB with 1,000 points goes")
	if err := dropCache(); err != nil {
		return err
	}
	w, err := b.onStore(ctx, "forget", dir)
	if err != nil {
		return err
	}
	one, all := w.step("expire"), w.step("collect")
	b.report.addForget("1 TiB, 1,000 points: expire one", forgetRow{}, one.cost)
	b.report.addForget("1 TiB, 1,000 points: collect", forgetRow{Pointers: w.Collection.Pointers, Purged: w.Collection.PurgedKeys}, all.cost)
	b.report.below("expire one point of 1 TiB, 1,000 points: CPU", one.CPU, 2*time.Second)
	b.report.below("the same with the collection behind it", one.CPU+all.CPU, 2*time.Second)
	return b.rebuild(ctx, dir, "1 TiB, 1,000 points")
}

// hundredMillion is what marking is judged by.
const hundredMillion = 100_000_000

// markShapes marks what all points show without taking anything away.
func (b *bench) markShapes(ctx context.Context) error {
	for _, shape := range []string{"wide", "deep"} {
		dir, err := b.made(ctx, shape)
		if err != nil {
			return err
		}
		progress("marking of chain %q", shape)
		if err := dropCache(); err != nil {
			return err
		}
		w, err := b.onStore(ctx, "mark", dir)
		if err != nil {
			return err
		}
		c, n := w.step("collect").cost, w.Collection.Pointers
		b.report.addForget("mark, "+shape, forgetRow{Pointers: n}, c)
		b.report.below("mark 100 million pointers, "+shape+": CPU", time.Duration(float64(c.CPU)*hundredMillion/float64(n)), time.Minute)
	}
	return nil
}

// rebuildRate is how many MB of containers a second metadata is to be made again of.
const rebuildRate = 200

// rebuild removes the metadata of a store and opens it.
func (b *bench) rebuild(ctx context.Context, dir, name string) error {
	progress("metadata of %s is made again", dir)
	for _, sub := range []string{"meta", "dedup"} {
		if err := os.RemoveAll(filepath.Join(dir, sub)); err != nil {
			return err
		}
	}
	size, err := allocated(filepath.Join(dir, "containers"))
	if err == nil {
		err = dropCache()
	}
	if err != nil {
		return err
	}
	w, err := b.onStore(ctx, "open", dir)
	if err != nil {
		return err
	}
	opened, rest := w.step("open").cost, w.step("settle").cost
	all := cost{opened.Wall + rest.Wall, opened.CPU + rest.CPU, max(opened.RSS, rest.RSS)}
	b.report.addForget(name+": metadata made again", forgetRow{Bytes: size}, opened)
	b.report.addForget(name+": and the index of chunks", forgetRow{Bytes: size}, all)
	b.report.atLeast(name+": metadata made again, MB of containers a second", megabytes(size, opened.Wall), rebuildRate)
	b.report.atLeast(name+": the same with the index of chunks", megabytes(size, all.Wall), rebuildRate)
	return nil
}

// forgetReal backs the real disk up three times with each program and lets the snapshot in the middle go; ours is also
// scrubbed, and its metadata made again. One program comes after the other, so that the disk has room for all.
func (b *bench) forgetReal(ctx context.Context) error {
	disk := b.path("forget.raw")
	progress("a copy of the disk, and three backups of it with each program")
	if _, err := command(ctx, "cp", "--sparse=always", b.disk, disk).measure(); err != nil {
		return err
	}
	defer os.Remove(disk) // the folder goes at the end; this makes room
	if err := b.forgetOurs(ctx, disk); err != nil {
		return err
	}
	borg := borgRepo{dir: b.path("borg"), home: b.path("borg-home")}
	restic := resticRepo{dir: b.path("restic"), cache: b.path("restic-cache")}
	if err := b.forgetBorg(ctx, borg, disk); err != nil {
		return err
	}
	return b.forgetRestic(ctx, restic, disk)
}

// three makes three backups of the disk, of which some extents are overwritten in between.
func three(disk string, seed uint64, backup func(i int, changed *[]api.Range) error) error {
	for i := range 3 {
		if i == 0 {
			if err := backup(i, nil); err != nil {
				return err
			}
			continue
		}
		list, err := scatter(disk, seed+uint64(i))
		if err == nil {
			err = backup(i, &list)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) forgetOurs(ctx context.Context, disk string) error {
	data := b.path("forget")
	defer os.RemoveAll(data) // as above
	d, err := b.daemon(ctx, data)
	if err != nil {
		return err
	}
	err = three(disk, 100, func(_ int, changed *[]api.Range) error {
		_, _, err := d.backup(ctx, "vm", disk, changed)
		return err
	})
	d.stop()
	if err != nil {
		return err
	}
	if err := b.scrubs(ctx, data); err != nil {
		return err
	}
	if err := b.rebuild(ctx, data, "real disk"); err != nil {
		return err
	}
	return b.forgetByDaemon(ctx, data)
}

func (b *bench) forgetBorg(ctx context.Context, r borgRepo, disk string) error {
	defer os.RemoveAll(r.dir) // as above
	if _, err := r.borg(ctx, "init", "-e", "none", r.dir).measure(); err != nil {
		return err
	}
	err := three(disk, 110, func(i int, _ *[]api.Range) error {
		_, err := r.create(ctx, fmt.Sprint(i), disk)
		return err
	})
	if err != nil {
		return err
	}
	return b.forgetPeer("borg delete, compact", r.dir, r.borg(ctx, "delete", r.dir+"::1"), r.borg(ctx, "compact", r.dir))
}

func (b *bench) forgetRestic(ctx context.Context, r resticRepo, disk string) error {
	defer os.RemoveAll(r.dir) // as above
	if _, err := r.restic(ctx, "init").measure(); err != nil {
		return err
	}
	err := three(disk, 120, func(int, *[]api.Range) error {
		_, err := r.backup(ctx, disk)
		return err
	})
	if err != nil {
		return err
	}
	ids, err := r.snapshots(ctx)
	if err == nil && len(ids) != 3 {
		err = fmt.Errorf("restic has %d snapshots, not 3", len(ids))
	}
	if err != nil {
		return err
	}
	return b.forgetPeer("restic forget --prune", r.dir, r.restic(ctx, "forget", "--prune", ids[1]))
}

// forgetPeer measures programs that let a snapshot go, together.
func (b *bench) forgetPeer(name, dir string, programs ...program) error {
	progress("%s", name)
	before, err := allocated(dir)
	if err == nil {
		err = dropCache()
	}
	if err != nil {
		return err
	}
	var sum cost
	for _, p := range programs {
		c, err := p.measure()
		if err != nil {
			return err
		}
		sum.Wall, sum.CPU, sum.RSS = sum.Wall+c.Wall, sum.CPU+c.CPU, max(sum.RSS, c.RSS)
	}
	after, err := allocated(dir)
	b.report.addForget("real disk: "+name, forgetRow{Freed: before - after}, sum)
	return err
}

// scrubs reads the containers again in turn with fio, which reads the same files past the page cache.
func (b *bench) scrubs(ctx context.Context, data string) error {
	size, err := allocated(filepath.Join(data, "containers")) // what was read twice, where pieces overlap, counts once
	if err != nil {
		return err
	}
	var best work
	var disk, deep float64
	for range 3 {
		progress("scrub, beside fio")
		for _, depth := range []int{1, 4} {
			if err := dropCache(); err != nil {
				return err
			}
			got, err := readFolder(ctx, filepath.Join(data, "containers"), depth)
			if err != nil {
				return err
			}
			if depth == 1 {
				disk = max(disk, got)
			} else {
				deep = max(deep, got)
			}
		}
		if err := dropCache(); err != nil {
			return err
		}
		w, err := b.onStore(ctx, "scrub", data)
		if err != nil {
			return err
		}
		if w.Bad > 0 {
			return fmt.Errorf("%d records are bad", w.Bad)
		}
		if best.Steps == nil || w.step("scrub").Wall < best.step("scrub").Wall {
			best = *w
		}
	}
	c := best.step("scrub").cost
	b.report.addForget("real disk: scrub", forgetRow{Bytes: size}, c)
	b.report.Disk = diskRow{disk, deep}
	b.report.atLeast("scrub beside the disk, read in order by 1 MiB", megabytes(size, c.Wall)/disk, 0.8)
	return nil
}

// readFolder reads all files of a folder past the page cache, so many pieces of 1 MiB at a time, in MB a second.
func readFolder(ctx context.Context, dir string, depth int) (float64, error) {
	args := []string{
		"--output-format=json", "--name=x", "--opendir=" + filepath.Join(dir, "data"), "--rw=read", "--bs=1m", "--direct=1",
		"--file_service_type=sequential", "--ioengine=libaio", fmt.Sprintf("--iodepth=%d", depth),
	}
	out, err := exec.CommandContext(ctx, "fio", args...).Output()
	if err != nil {
		return 0, fmt.Errorf("fio %v: %w: %s", args, err, out)
	}
	var v struct {
		Jobs []struct {
			Read struct {
				BW float64 `json:"bw_bytes"`
			}
		}
	}
	if i := bytes.IndexByte(out, '{'); i > 0 { // how many files it found
		out = out[i:]
	}
	if err := json.Unmarshal(out, &v); err != nil || len(v.Jobs) != 1 {
		return 0, fmt.Errorf("fio of %s: %d jobs: %w", dir, len(v.Jobs), err)
	}
	return v.Jobs[0].Read.BW / 1e6, nil
}

// forgetByDaemon expires the point in the middle and collects, with the daemon, whose CPU time is taken.
func (b *bench) forgetByDaemon(ctx context.Context, data string) error {
	before, err := allocated(filepath.Join(data, "containers"))
	if err == nil {
		err = dropCache()
	}
	if err != nil {
		return err
	}
	d, err := b.daemon(ctx, data)
	if err != nil {
		return err
	}
	defer d.stop()
	had, err := cpu(d.pid())
	if err != nil {
		return err
	}
	progress("livemount forgets")
	began := time.Now()
	if err := d.Do(ctx, "POST", "/v1/points/expire", nil, api.ExpireRequest{Refs: []string{"vm@-1"}}, nil); err != nil {
		return err
	}
	if err := d.Do(ctx, "POST", "/v1/gc", nil, api.CollectRequest{}, nil); err != nil { // answers at its end
		return err
	}
	c := cost{Wall: time.Since(began)}
	now, err := cpu(d.pid())
	if err != nil {
		return err
	}
	c.CPU = now - had
	if c.RSS, err = peak(d.pid()); err != nil {
		return err
	}
	after, err := allocated(filepath.Join(data, "containers"))
	b.report.addForget("real disk: livemount, expire and collect", forgetRow{Freed: before - after}, c)
	return err
}

// snapshots lists the ids of a repository, oldest first.
func (r resticRepo) snapshots(ctx context.Context) ([]string, error) {
	p := r.restic(ctx, "snapshots", "--json")
	out, err := p.cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.cmd, err)
	}
	var list []struct{ ID string }
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, err
	}
	var ids []string
	for _, s := range list {
		ids = append(ids, s.ID)
	}
	return ids, nil
}
