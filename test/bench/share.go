package main

import (
	"context"
	"path/filepath"

	"livemount/server/api"
)

// share stores two Debian disks with different packages and says how much of the second was known.
func (b *bench) share(ctx context.Context) error {
	d, err := b.daemon(ctx, b.path("share"))
	if err != nil {
		return err
	}
	defer d.stop()
	for _, kind := range []string{"web", "db"} {
		disk := filepath.Join(filepath.Dir(b.disk), "bench-"+kind+".raw")
		if err := command(ctx, filepath.Join(b.root, "test/bench/mkdisk.sh"), disk, kind).toStderr(); err != nil {
			return err
		}
		progress("first backup of %s", disk)
		var before, after api.Status
		if err := d.Do(ctx, "GET", "/v1/status", nil, nil, &before); err != nil {
			return err
		}
		got, _, err := d.backup(ctx, kind, disk, nil)
		if err == nil {
			err = d.Do(ctx, "GET", "/v1/status", nil, nil, &after)
		}
		if err != nil {
			return err
		}
		b.report.Share = append(b.report.Share, shareRow{kind, got.Disks[0].DataBytes, after.UniqueBytes - before.UniqueBytes})
	}
	db := b.report.Share[1]
	b.report.atLeast("share of a Debian disk that another had", 1-ratio(db.NewBytes, db.DataBytes), 0.25)
	return nil
}
