package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"livemount/server/api"
)

// daemon is a livemountd with a store of its own.
type daemon struct {
	*background
	*api.Client
	data        string
	compression string // of backups
}

func (b *bench) daemon(ctx context.Context, data string, flags ...string) (*daemon, error) {
	socket := "unix:" + filepath.Join(data, "livemountd.sock")
	args := append([]string{"--data", data, "--log-level", "warn"}, flags...)
	r, err := command(ctx, filepath.Join(b.root, "bin/livemountd"), args...).start()
	if err != nil {
		return nil, err
	}
	d := &daemon{background: r, data: data}
	if d.Client, err = api.NewClient(socket); err == nil {
		err = d.ready(ctx)
	}
	if err != nil {
		r.stop()
		return nil, err
	}
	return d, nil
}

func (d *daemon) ready(ctx context.Context) error {
	for range 200 {
		if err := d.Do(ctx, "GET", "/v1/status", nil, nil, nil); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("livemountd did not start")
}

// backup takes a disk in and waits until it is sealed.
func (d *daemon) backup(ctx context.Context, vm, disk string, changed *[]api.Range) (*api.Backup, cost, error) {
	before, err := cpu(d.pid())
	if err != nil {
		return nil, cost{}, err
	}
	began := time.Now()
	var j api.Job
	req := api.BackupRequest{VM: vm, Compression: d.compression, Disks: []api.DiskSource{{Name: "sda", Source: disk, Changed: changed}}}
	if err := d.Do(ctx, "POST", "/v1/backups", nil, req, &j); err != nil {
		return nil, cost{}, err
	}
	for !j.Finished() {
		if err := d.Do(ctx, "GET", "/v1/jobs/"+j.Job, url.Values{"wait": {"30"}}, nil, &j); err != nil {
			return nil, cost{}, err
		}
	}
	c := cost{Wall: time.Since(began)}
	if j.Error != nil {
		return nil, c, j.Error.Err()
	}
	after, err := cpu(d.pid())
	if err != nil {
		return nil, c, err
	}
	c.CPU = after - before
	c.RSS, err = peak(d.pid())
	return j.Result, c, err
}

// mount mounts a point, reads its first bytes and says how long that took from the call on.
func (d *daemon) mount(ctx context.Context, ref, dir string) (string, time.Duration, error) {
	began := time.Now()
	var m api.Mount
	if err := d.Do(ctx, "POST", "/v1/mounts", nil, api.MountRequest{Ref: ref, Place: api.Place{Path: dir}}, &m); err != nil {
		return "", 0, err
	}
	err := firstBytes(filepath.Join(dir, "sda.raw"))
	return m.Mount, time.Since(began), err
}

func (d *daemon) unmount(ctx context.Context, id string) error {
	return d.Do(ctx, "POST", "/v1/mounts/"+id+"/unmount", nil, api.UnmountRequest{}, nil)
}

// firstBytes reads the first 4 KiB of a disk.
func firstBytes(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.ReadAt(make([]byte, 4096), 0)
	return err
}
