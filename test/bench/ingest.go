package main

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"livemount/server/api"
)

// ingested is one backup of a disk by one program.
type ingested struct {
	cost
	stored int64 // bytes on disk afterwards
}

// ingester backs a disk up into a new store at dir.
type ingester struct {
	name  string
	fresh func(ctx context.Context, dir, disk string) (ingested, error)
}

func (b *bench) ingesters() []ingester {
	return []ingester{
		{"livemount", b.withLivemount},
		{"livemount, fast", b.withFast},
		{"borg create (fixed,65536, zstd,1)", b.withBorg},
		{"restic backup", b.withRestic},
	}
}

// ingest measures the first backup of the real disk with each program in turn, so that a slow moment of
// the machine meets all of them. The page cache is dropped before each.
func (b *bench) ingest(ctx context.Context) error {
	data, err := allocated(filepath.Dir(b.disk), siblings(b.disk)...)
	if err != nil {
		return err
	}
	b.report.DiskBytes = data
	best := map[string]ingested{}
	for round := range b.rounds {
		for _, in := range b.ingesters() {
			progress("ingest of %s with %s, round %d", gib(data), in.name, round+1)
			if err := dropCache(); err != nil {
				return err
			}
			dir := b.path("ingest")
			got, err := in.fresh(ctx, dir, b.disk)
			if err != nil {
				return err
			}
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
			if old, ok := best[in.name]; !ok || got.Wall < old.Wall {
				best[in.name] = got
			}
		}
	}
	for _, in := range b.ingesters() {
		b.report.addIngest(in.name, data, best[in.name])
	}
	b.report.judgeIngest()
	return nil
}

// siblings names the other files beside a file, so that only it is counted.
func siblings(path string) []string {
	list, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*")) // the pattern is well formed
	var names []string
	for _, p := range list {
		if p != path {
			names = append(names, filepath.Base(p))
		}
	}
	return names
}

func (b *bench) withLivemount(ctx context.Context, dir, disk string) (ingested, error) {
	d, err := b.daemon(ctx, dir)
	if err != nil {
		return ingested{}, err
	}
	_, c, err := d.backup(ctx, "vm", disk, nil)
	d.stop() // so that the tables of the index have their final size
	if err != nil {
		return ingested{}, err
	}
	stored, err := allocated(dir, "ballast") // room kept free, not data
	return ingested{c, stored}, err
}

func (b *bench) withBorg(ctx context.Context, dir, disk string) (ingested, error) {
	repo := borgRepo{dir: dir, home: b.path("borg-home")}
	if _, err := repo.borg(ctx, "init", "-e", "none", dir).measure(); err != nil {
		return ingested{}, err
	}
	c, err := repo.create(ctx, "one", disk)
	if err != nil {
		return ingested{}, err
	}
	stored, err := allocated(dir)
	return ingested{c, stored}, err
}

// withFast stores with the fast compression; what is packed afterwards is told apart.
func (b *bench) withFast(ctx context.Context, dir, disk string) (ingested, error) {
	d, err := b.daemon(ctx, dir)
	if err != nil {
		return ingested{}, err
	}
	defer d.stop()
	d.compression = "fast"
	got, c, err := d.backup(ctx, "vm", disk, nil)
	if err != nil {
		return ingested{}, err
	}
	var s api.Status
	for began := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		if err := d.Do(ctx, "GET", "/v1/status", nil, nil, &s); err != nil {
			return ingested{}, err
		}
		if s.FastBytes == 0 {
			b.report.Packed = packedRow{time.Since(began).Seconds(), s.StoredBytes}
			return ingested{c, got.Disks[0].StoredBytes}, nil
		}
	}
}

type borgRepo struct{ dir, home string }

func (r borgRepo) borg(ctx context.Context, args ...string) program {
	return command(ctx, "borg", args...).env("BORG_BASE_DIR="+r.home, "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes")
}

func (r borgRepo) create(ctx context.Context, name, disk string) (cost, error) {
	return r.borg(ctx, "create", "--chunker-params", "fixed,65536", "--compression", "zstd,1", "--files-cache", "disabled",
		r.dir+"::"+name, disk).measure()
}

func (b *bench) withRestic(ctx context.Context, dir, disk string) (ingested, error) {
	repo := resticRepo{dir: dir, cache: b.path("restic-cache")}
	if _, err := repo.restic(ctx, "init").measure(); err != nil {
		return ingested{}, err
	}
	c, err := repo.backup(ctx, disk)
	if err != nil {
		return ingested{}, err
	}
	stored, err := allocated(dir)
	return ingested{c, stored}, err
}

type resticRepo struct{ dir, cache string }

func (r resticRepo) restic(ctx context.Context, args ...string) program {
	all := append([]string{"--repo", r.dir, "--cache-dir", r.cache, "--quiet"}, args...)
	return command(ctx, "restic", all...).env("RESTIC_PASSWORD=bench", "RESTIC_PROGRESS_FPS=0")
}

func (r resticRepo) backup(ctx context.Context, disk string) (cost, error) {
	return r.restic(ctx, "backup", "--force", disk).measure()
}

func megabytes(n int64, d time.Duration) float64 { return float64(n) / 1e6 / d.Seconds() }
