package mountctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"livemount/internal/errs"
	"livemount/server/api"
)

type backupFlags struct {
	disks, changed []string
	qmp, agent     string // of a running QEMU
	scratch        string
	full, detach   bool
	noSpaceCheck   bool
	config         string
	compression    string
	formats        []string
	backingDir     string
}

func (a *app) backupCmd() *cobra.Command {
	var f backupFlags
	c := &cobra.Command{
		Use:   "backup VM {--disk NAME=SOURCE… | --qmp SOCKET}",
		Short: "Take in the disks of a VM as a new point in time",
		Long: `backup reads the disks of a VM and keeps them as a new point in time: all of them,
or none. A source is an image file or a block device on livemountd's machine, or an
NBD URI; take a snapshot of a disk in use first. The first backup reads everything; later ones
compare with the newest point and keep what changed, in pages of 4 KiB.

An image called .qcow2 is read as qcow2, anything else as raw, unless --format says
otherwise: what is inside is the guest's and never decides. Backing files are
followed only inside --backing-dir. When the newest point was made of an image that
a qcow2 stands on, only the clusters above that are read.

With --qmp the disks of a running QEMU are taken in as they are at one moment, while the
guest goes on. A dirty bitmap is begun at that moment, so that the next backup reads
what changed; without one it compares. The socket must be free: QMP serves one.

With --changed nothing but the listed extents is read. The file is a JSON list, in
ascending order: [{"offset": 0, "length": 65536}, …], in bytes; - is standard input.
With several disks it is given for each: --changed sda=FILE.`,
		Example: `  mountctl backup web --disk sda=/images/web.raw
  mountctl backup db --disk sda=/dev/vg0/db-snap --disk sdb=data.img --config db.xml
  mountctl backup vm --disk sda=/images/vm-snap1.qcow2 --backing-dir /images
  mountctl backup web --disk sda=/images/web.raw --changed extents.json --output json
  mountctl backup web --qmp /run/web.qmp --agent /run/web.qga
  mountctl backup web --disk 'sda=nbd+unix:///sda?socket=/run/web.sock' --changed bitmap:since-monday`,
		Args: args(1, 1),
	}
	c.Flags().StringArrayVar(&f.disks, "disk", nil, "NAME=SOURCE, once for each disk")
	c.Flags().StringArrayVar(&f.changed, "changed", nil, "[NAME=]FILE with the extents that may have changed, or [NAME=]bitmap:BITMAP of an NBD export")
	c.Flags().StringVar(&f.qmp, "qmp", "", "QMP socket of a running QEMU, whose disks are taken in (all, or those that --disk NAME=DEVICE names)")
	c.Flags().StringVar(&f.agent, "agent", "", "socket of the guest agent: the guest's file systems are frozen for the moment")
	c.Flags().StringVar(&f.scratch, "scratch-dir", "", "folder where QEMU keeps what the guest overwrites meanwhile (default that of the QMP socket)")
	c.Flags().BoolVar(&f.full, "full", false, "read everything and compare with nothing")
	c.Flags().StringVar(&f.config, "config", "", "a configuration to keep with the point (.vmx, libvirt XML, anything)")
	c.Flags().StringArrayVar(&f.formats, "format", nil, "[NAME=]raw|qcow2 (default: by the name, .qcow2 is qcow2)")
	c.Flags().StringVar(&f.backingDir, "backing-dir", "", "follow backing files of qcow2 images inside this folder")
	c.Flags().StringVar(&f.compression, "compression", "", "fast, default or best (default: livemountd's setting)")
	c.Flags().BoolVar(&f.noSpaceCheck, "no-space-check", false, "begin a first backup also when there seems to be too little room")
	c.Flags().BoolVar(&f.detach, "detach", false, "do not wait; print the job")
	c.RunE = func(c *cobra.Command, list []string) error { return a.backup(c.Context(), list[0], &f) }
	return c
}

func (a *app) backup(ctx context.Context, vm string, f *backupFlags) error {
	req, err := a.backupRequest(vm, f)
	if err != nil {
		return err
	}
	var j api.Job
	if err := a.call(ctx, "POST", "/v1/backups", nil, req, &j); err != nil {
		return err
	}
	return a.followBackup(ctx, &j, f.detach)
}

// followBackup waits for a job that makes a point, and shows that.
func (a *app) followBackup(ctx context.Context, j *api.Job, detach bool) error {
	if detach {
		return a.show(j, func(w io.Writer) { fmt.Fprintf(w, "job %s\n", j.Job) })
	}
	if err := a.follow(ctx, j); err != nil {
		return err
	}
	return a.show(j.Result, func(w io.Writer) { backupTable(w, j.Result) })
}

func backupTable(w io.Writer, b *api.Backup) {
	rows := [][]string{{"DISK", "SIZE", "READ", "CHANGED", "STORED", "MODE"}}
	for _, d := range b.Disks {
		rows = append(rows, []string{d.Name, size(d.SizeBytes), size(d.ReadBytes), size(d.ChangedBytes), size(d.StoredBytes), d.Mode})
	}
	fmt.Fprintf(w, "point %s of %s, %s, in %s\n", short(b.Point), b.VM, when(b.Time), seconds(b.ElapsedSeconds))
	table(w, rows)
	for _, n := range b.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
}

func (a *app) backupRequest(vm string, f *backupFlags) (*api.BackupRequest, error) {
	if len(f.disks) == 0 && f.qmp == "" {
		return nil, errs.WithTry(errs.New(errs.Invalid, "no disk was named"), "mountctl backup %s --disk sda=/images/%s.raw", vm, vm)
	}
	req := &api.BackupRequest{VM: vm, Full: f.full, Compression: f.compression, SkipSpaceCheck: f.noSpaceCheck}
	if err := addQEMU(req, f); err != nil {
		return nil, err
	}
	for _, d := range f.disks {
		name, source, ok := strings.Cut(d, "=")
		if !ok || name == "" || source == "" {
			return nil, errs.WithTry(errs.New(errs.Invalid, "--disk %q is not NAME=SOURCE", d), "--disk sda=%s", d)
		}
		if !strings.Contains(source, "://") && f.qmp == "" { // else a URI, or a device of QEMU
			var err error
			if source, err = filepath.Abs(source); err != nil {
				return nil, err
			}
		}
		req.Disks = append(req.Disks, api.DiskSource{Name: name, Source: source})
	}
	if err := addFormats(req, f); err != nil {
		return nil, err
	}
	if f.full && len(f.changed) > 0 {
		return nil, errs.New(errs.Invalid, "--full reads everything: --changed makes no sense with it")
	}
	for _, c := range f.changed {
		if err := a.addChanged(req, c); err != nil {
			return nil, err
		}
	}
	if f.config != "" {
		b, err := readLimited(f.config, maxConfig)
		if err != nil {
			return nil, err
		}
		req.Config = &api.ConfigFile{Name: filepath.Base(f.config), Data: b}
	}
	return req, nil
}

// addQEMU says how a running QEMU is reached.
func addQEMU(req *api.BackupRequest, f *backupFlags) error {
	if f.qmp == "" {
		if f.agent != "" || f.scratch != "" {
			return errs.WithTry(errs.New(errs.Invalid, "--agent and --scratch-dir are for a running QEMU"), "--qmp SOCKET")
		}
		return nil
	}
	if len(f.changed)+len(f.formats) > 0 || f.backingDir != "" {
		return errs.New(errs.Invalid, "a running QEMU says itself what its disks are and what changed: no --changed, --format or --backing-dir with --qmp")
	}
	q := &api.QEMU{}
	for path, into := range map[*string]*string{&f.qmp: &q.QMP, &f.agent: &q.Agent, &f.scratch: &q.Scratch} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		*into = abs
	}
	req.QEMU = q
	return nil
}

// addFormats says of the disks how they are read.
func addFormats(req *api.BackupRequest, f *backupFlags) error {
	for _, arg := range f.formats {
		name, format, ok := strings.Cut(arg, "=")
		if !ok {
			name, format = "", arg
		}
		if format != "raw" && format != "qcow2" {
			return errs.New(errs.Invalid, "--format %q: use raw or qcow2", arg)
		}
		disk := findDisk(req, name)
		if name != "" && disk == nil {
			return errs.New(errs.Invalid, "--format %q: no disk of this backup is named %s", arg, name)
		}
		for i := range req.Disks {
			if d := &req.Disks[i]; name == "" || d == disk {
				d.Format = format
			}
		}
	}
	if f.backingDir == "" {
		return nil
	}
	abs, err := filepath.Abs(f.backingDir)
	for i := range req.Disks {
		req.Disks[i].BackingDir = abs
	}
	return err
}

const maxConfig = 4 << 20

func readLimited(path string, limit int64) ([]byte, error) {
	r, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = errs.New(errs.Invalid, "%s has more than %d MiB", path, limit>>20)
	}
	return b, err
}

// openRegular opens a file for reading; anything else could hang.
func openRegular(path string) (*os.File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errs.New(errs.Invalid, "%s is not a regular file", path)
	}
	return os.Open(path)
}

// addChanged reads a list of extents for the disk that it is meant for.
func (a *app) addChanged(req *api.BackupRequest, arg string) error {
	disk, path := &req.Disks[0], arg
	if name, rest, ok := strings.Cut(arg, "="); ok && findDisk(req, name) != nil {
		disk, path = findDisk(req, name), rest
	} else if len(req.Disks) > 1 {
		return errs.WithTry(errs.New(errs.Invalid, "--changed %q does not say which disk it is for", arg), "--changed %s=%s", disk.Name, arg)
	}
	if disk.Changed != nil || disk.Bitmap != "" {
		return errs.New(errs.Invalid, "disk %s has two lists of changed extents", disk.Name)
	}
	if bitmap, ok := strings.CutPrefix(path, "bitmap:"); ok && bitmap != "" {
		disk.Bitmap = bitmap
		return nil
	}
	var r io.Reader = a.in
	if path != "-" {
		f, err := openRegular(path)
		if err != nil {
			err = errs.New(errs.KindOf(err), "changed extents: %w", err)
			if name, _, ok := strings.Cut(arg, "="); ok {
				err = errs.WithTry(err, "name a disk of this backup: %q is none", name)
			}
			return err
		}
		defer f.Close()
		r = f
	}
	list, err := ReadExtents(r)
	if err != nil {
		return errs.WithTry(errs.New(errs.KindOf(err), "changed extents %s: %w", path, err), "%s", errs.TryOf(err))
	}
	disk.Changed = &list
	return nil
}

func findDisk(req *api.BackupRequest, name string) *api.DiskSource {
	for i := range req.Disks {
		if req.Disks[i].Name == name {
			return &req.Disks[i]
		}
	}
	return nil
}

// follow waits for a job, showing its progress. When the caller gives up, the job is canceled.
func (a *app) follow(ctx context.Context, j *api.Job) error {
	p := newProgress(a.err)
	defer p.end()
	for !j.Finished() {
		p.show(j)
		err := a.call(ctx, "GET", "/v1/jobs/"+j.Job, url.Values{"wait": {p.interval()}}, nil, j)
		if ctx.Err() != nil {
			return a.cancel(context.WithoutCancel(ctx), j)
		}
		if err != nil {
			return err
		}
	}
	if j.Error != nil {
		return j.Error.Err()
	}
	return nil
}

// cancel ends the job and waits until nothing of it is left.
func (a *app) cancel(ctx context.Context, j *api.Job) error {
	err := a.call(ctx, "DELETE", "/v1/jobs/"+j.Job, nil, nil, j)
	if err == nil {
		err = a.call(ctx, "GET", "/v1/jobs/"+j.Job, url.Values{"wait": {"30"}}, nil, j)
	}
	if err == nil && j.State == "done" {
		return errs.New(errs.Canceled, "canceled too late: job %s was done", j.Job)
	}
	return errors.Join(errs.New(errs.Canceled, "job %s was canceled; nothing of it is left", j.Job), err)
}
