package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"livemount/blockdev/image"
	"livemount/fs/fusefs"
	"livemount/ingest"
	"livemount/internal/errs"
	"livemount/server/api"
	"livemount/snapshotchain"
)

// maxConfig bounds a captured configuration, in bytes.
const maxConfig = 4 << 20

// startBackup checks a request and starts its job. The sources are open when it returns, so that a
// wrong path is said at once.
func (s *Server) startBackup(req *api.BackupRequest) (*job, error) {
	if req.QEMU != nil {
		return s.startQEMU(req)
	}
	r, err := s.backupRequest(req)
	if err != nil {
		return nil, err
	}
	vm, err := s.store.VM(req.VM) // a job may wait, and the VM be renamed meanwhile
	if err != nil && !errs.Is(err, errs.NotFound) {
		closeSources(r)
		return nil, err
	}
	var c ingest.Counters
	began := s.clock.Now()
	j, err := s.jobs.start("backup", req.VM, &c, func(ctx context.Context, j *job, step func(string)) (*api.Backup, error) {
		if vm.ID != 0 {
			now, err := s.store.VMByID(vm.ID)
			if err != nil {
				return nil, err
			}
			r.VM = now.Name
		}
		if !req.SkipSpaceCheck {
			if err := s.checkSpace(ctx, r); err != nil {
				return nil, err
			}
		}
		p, err := ingest.Run(ctx, s.store, *r, &c, step)
		if err != nil {
			return nil, err
		}
		b := backupView(r.VM, &p)
		b.ElapsedSeconds, b.Job = s.clock.Now().Sub(began).Seconds(), j.view.Job
		return b, nil
	}, func() { closeSources(r) })
	if err != nil {
		closeSources(r)
	}
	return j, err
}

func closeSources(r *ingest.Request) {
	for _, d := range r.Disks {
		d.Source.Close() // opened for reading: nothing can be lost
	}
}

func (s *Server) backupRequest(req *api.BackupRequest) (*ingest.Request, error) {
	if err := snapshotchain.CheckVMName(req.VM); err != nil {
		return nil, err
	}
	if len(req.Disks) == 0 {
		return nil, errs.New(errs.Invalid, "backup of %s without a disk", req.VM)
	}
	level, err := snapshotchain.ParseLevel(cmp.Or(req.Compression, s.config.Compression))
	if err != nil {
		return nil, err
	}
	r := &ingest.Request{VM: req.VM, Level: level}
	if c := req.Config; c != nil {
		if len(c.Data) > maxConfig {
			return nil, errs.New(errs.Invalid, "configuration %s of %d bytes; at most %d", c.Name, len(c.Data), maxConfig)
		}
		r.Info.Config, r.Info.ConfigName = append([]byte{}, c.Data...), filepath.Base(c.Name)
	}
	named := map[string]bool{}
	for i := range req.Disks {
		if name := req.Disks[i].Name; named[name] {
			closeSources(r)
			return nil, errs.New(errs.Invalid, "disk %s is named twice", name)
		}
		named[req.Disks[i].Name] = true
		d, err := s.openSource(&req.Disks[i], req.Full)
		if err != nil {
			closeSources(r)
			return nil, errs.WithTry(err, "%s", errs.TryOf(err))
		}
		r.Disks = append(r.Disks, *d)
	}
	return r, nil
}

func (s *Server) openSource(d *api.DiskSource, full bool) (*ingest.Disk, error) {
	if err := snapshotchain.CheckDiskName(d.Name); err != nil {
		return nil, err
	}
	if isNBD(d.Source) && d.Changed == nil {
		disk, err := s.openNBD(d, full)
		if err != nil {
			return nil, errs.New(errs.KindOf(err), "disk %s: %w", d.Name, err)
		}
		return disk, nil
	}
	if d.Bitmap != "" || isNBD(d.Source) {
		return nil, errs.WithTry(errs.New(errs.Invalid, "disk %s: changes of an NBD export are listed by its bitmap, and of nothing else", d.Name), "--changed bitmap:NAME with --disk %s=nbd://…", d.Name)
	}
	if !filepath.IsAbs(d.Source) {
		return nil, errs.New(errs.Invalid, "disk %s: %q is not an absolute path", d.Name, d.Source)
	}
	if err := s.notOurs(d.Source); err != nil {
		return nil, err
	}
	if d.BackingDir != "" && !filepath.IsAbs(d.BackingDir) {
		return nil, errs.New(errs.Invalid, "disk %s: backing folder %q is not an absolute path", d.Name, d.BackingDir)
	}
	src, err := image.Open(d.Source, image.OpenOptions{Format: d.Format, BackingDir: d.BackingDir, Clock: s.clock})
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "disk %s: %w", d.Name, err)
	}
	disk := &ingest.Disk{Name: d.Name, From: d.Source, Source: src, Full: full}
	if q, ok := src.(*image.Qcow2); ok {
		if err := s.noneOurs(q.Files()); err != nil {
			return nil, errors.Join(err, src.Close())
		}
		disk.Layers = layers{q}
	} else {
		disk.Layers = single{src}
	}
	if d.Changed == nil {
		return disk, nil
	}
	disk.Listed = true
	for _, r := range *d.Changed {
		disk.Changed = append(disk.Changed, snapshotchain.ByteRange{Offset: r.Offset, Length: r.Length})
	}
	if err := ingest.CheckRanges(disk.Changed, src.Size()); err != nil {
		return nil, errors.Join(errs.WithTry(errs.New(errs.Invalid, "changed extents of disk %s: %w", d.Name, err), "%s", errs.TryOf(err)), src.Close())
	}
	return disk, nil
}

// notOurs refuses a disk of one of our own mounts: reading it would wait for ourselves.
// Links, and loop devices on a file of ours, are followed one step at a time, without a look at what is on a
// mount.
func (s *Server) notOurs(path string) error { return s.notOursWithin(path, maxLinks) }

const maxLinks = 40

func (s *Server) notOursWithin(path string, left int) error {
	if err := s.notOnOurs(path); err != nil {
		return err
	}
	info, err := os.Lstat(path)
	if err != nil || left == 0 {
		return nil // opening it says what is wrong
	}
	next := ""
	switch mode := info.Mode(); {
	case mode&os.ModeSymlink != 0:
		if next, err = os.Readlink(path); err == nil && !filepath.IsAbs(next) {
			next = filepath.Join(filepath.Dir(path), next)
		}
	case mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0:
		next = loopFile(info)
	}
	if err != nil || next == "" {
		return nil
	}
	return s.notOursWithin(next, left-1)
}

// loopFile returns the file behind a loop device or a partition of one, "" for other devices (losetup(8)).
func loopFile(info os.FileInfo) string {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	dir := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	for _, name := range []string{dir + "/loop/backing_file", dir + "/../loop/backing_file"} {
		if b, err := os.ReadFile(name); err == nil {
			return strings.TrimSpace(string(b))
		}
	}
	return ""
}

func (s *Server) notOnOurs(path string) error {
	ours := s.mountAbove(path) != nil
	if !ours {
		dir, err := filepath.EvalSymlinks(filepath.Dir(path))
		if err != nil {
			return nil // opening it says what is wrong
		}
		info, err := fusefs.FindMount(dir)
		ours = err == nil && info.Ours()
	}
	if ours {
		return errs.WithTry(errs.New(errs.Invalid, "%s is on a mount of Livemount itself", path), "copy the disk first")
	}
	return nil
}

func (s *Server) noneOurs(paths []string) error {
	for _, path := range paths {
		if err := s.notOurs(path); err != nil {
			return err
		}
	}
	return nil
}

// single is an image that stands on nothing.
type single struct{ image.Source }

// ChangedSince implements ingest.Layers. That a file looks untouched is not enough to leave it unread: it can
// be written through memory maps.
func (single) ChangedSince(context.Context, string) ([]snapshotchain.ByteRange, bool, error) {
	return nil, false, nil
}

// layers is a qcow2 image with what it stands on.
type layers struct{ *image.Qcow2 }

// ChangedSince implements ingest.Layers.
func (l layers) ChangedSince(ctx context.Context, identity string) ([]snapshotchain.ByteRange, bool, error) {
	list, ok, err := l.AllocatedSince(ctx, identity)
	out := make([]snapshotchain.ByteRange, 0, len(list))
	for _, r := range list {
		out = append(out, snapshotchain.ByteRange{Offset: r.Off, Length: r.Len})
	}
	return out, ok, err
}

func backupView(vm string, p *snapshotchain.Point) *api.Backup {
	return &api.Backup{VM: vm, Point: p.ID.String(), Time: p.Time, Disks: diskViews(p), Notes: p.Notes}
}

func diskViews(p *snapshotchain.Point) []api.BackupDisk {
	list := make([]api.BackupDisk, 0, len(p.Disks))
	for _, d := range p.Disks {
		list = append(list, api.BackupDisk{
			Name: d.Name, SizeBytes: d.SizeBytes, ReadBytes: d.ReadBytes, ChangedBytes: d.ChangedBytes,
			StoredBytes: d.StoredBytes, DataBytes: d.DataBytes, Mode: d.Mode, Root: d.Root.String(),
		})
	}
	return list
}
