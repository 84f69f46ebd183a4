package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/server/api"
	"livemount/snapshotchain"
)

// maxMounts bounds the mounts of a daemon.
const maxMounts = 1000

func (s *Server) mountsDir() string { return filepath.Join(s.config.Data, "mounts") }

// createMount mounts a point.
func (s *Server) createMount(ctx context.Context, req *api.MountRequest) (*mount, error) {
	vm, p, err := s.store.Resolve(ctx, req.Ref, s.clock.Now(), time.Local)
	if err != nil {
		return nil, err
	}
	rec := &mountRecord{VM: vm.Name, VMID: vm.ID, Point: p.ID, PointTime: p.Time, ReadOnly: req.ReadOnly}
	if err := rec.place(&req.Place); err != nil {
		return nil, err
	}
	for i, d := range p.Disks {
		rec.Disks = append(rec.Disks, mountDisk{Node: uint64(i) + 2, Disk: d})
	}
	pin, err := s.store.Pin(&p, "it is being mounted") // until the mount has its own
	if err != nil {
		return nil, fmt.Errorf("%s: %w", req.Ref, err)
	}
	defer pin.Release()
	return s.mountAt(ctx, rec, req.Path)
}

// mountAt makes a mount of what rec says at dir, which may be "" when NFS serves it.
func (s *Server) mountAt(ctx context.Context, rec *mountRecord, dir string) (*mount, error) {
	path, made, err := s.preparePlace(dir, rec.NFS || rec.NBD)
	if err != nil {
		return nil, err
	}
	rec.Path, rec.MadeDir = path, made
	m, err := s.newMount(ctx, rec)
	if err != nil && made {
		err = errors.Join(err, os.Remove(path))
	}
	return m, err
}

// mountAbove returns the mount that serves path, or nil. A path on a mount of our own must not even be looked
// at: a daemon that is killed while it waits for itself never ends.
func (s *Server) mountAbove(path string) *mount {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.mounts {
		rel, err := filepath.Rel(m.rec.Path, path)
		if err == nil && rel != ".." && !strings.HasPrefix(rel, "../") && m.served() {
			return m
		}
	}
	return nil
}

func (s *Server) newMount(ctx context.Context, rec *mountRecord) (*mount, error) {
	rec.ID, rec.Created, rec.State = snapshotchain.NewID[ofMount](), s.clock.Now().UTC(), stateMounted
	m := &mount{s: s, dir: filepath.Join(s.mountsDir(), rec.ID.String()), rec: rec}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.serving.Store(true)
	if err := s.addMount(m); err != nil {
		return nil, err
	}
	if err := m.create(ctx); err != nil {
		s.dropMount(m)
		return nil, errors.Join(err, vfs.RemoveAll(vfs.OS{}, m.dir))
	}
	s.log.Info("mounted", "mount", rec.ID.String(), "vm", rec.VM, "point", rec.Point.String(), "path", rec.Path)
	return m, nil
}

// create makes the mount's folder and serves it.
func (m *mount) create(ctx context.Context) error {
	if err := (vfs.OS{}).MkdirAll(m.dir); err != nil {
		return err
	}
	return m.serve(ctx, true)
}

func (s *Server) addMount(m *mount) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mounts) >= maxMounts {
		return errs.WithTry(errs.New(errs.Busy, "there are %d mounts already", len(s.mounts)), "mountctl unmount MOUNT")
	}
	if err := s.checkFreeLocked(m.rec.Path); err != nil {
		return err
	}
	if err := m.pinPoint(); err != nil {
		return err
	}
	s.mounts[m.rec.ID] = m
	return nil
}

// pinPoint keeps what the mount stands on until it is dropped.
func (m *mount) pinPoint() (err error) {
	disks := make([]snapshotchain.PointDisk, 0, len(m.rec.Disks))
	for i := range m.rec.Disks {
		disks = append(disks, m.rec.Disks[i].Disk)
	}
	m.pin, err = m.s.store.PinDisks(disks, "mount "+m.rec.ID.String())
	return err
}

// checkFreeLocked is Busy when a mount is, or is about to be, at path. The caller holds mu.
func (s *Server) checkFreeLocked(path string) error {
	for _, o := range s.mounts {
		if path != "" && o.rec.Path == path && o.served() {
			return errs.WithTry(errs.New(errs.Busy, "%s is in use by mount %s", path, o.rec.ID), "another folder, or mountctl unmount %s", o.rec.ID)
		}
	}
	return nil
}

// claim makes path the place of a mount that is not served, unless another has it.
func (s *Server) claim(m *mount, path string, made bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.checkFreeLocked(path); err != nil {
		return err
	}
	m.rec.Path, m.rec.MadeDir = path, made
	m.serving.Store(true)
	return nil
}

// giveUp takes a claim back.
func (s *Server) giveUp(m *mount, path string, made bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.rec.Path, m.rec.MadeDir = path, made
	m.serving.Store(false)
}

// served tells, without waiting for an operation on the mount, whether its folder is taken.
func (m *mount) served() bool { return m.serving.Load() }

func (s *Server) dropMount(m *mount) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mounts, m.rec.ID)
	m.pin.Release()
}

// forget removes a mount for good. The caller holds its mu and it is not served.
func (s *Server) forget(m *mount) error {
	if err := m.setState(stateDiscarded); err != nil {
		return err
	}
	s.dropMount(m)
	if m.rec.MadeDir {
		os.Remove(m.rec.Path) // a convenience; it may be in use again
	}
	return vfs.RemoveAll(vfs.OS{}, m.dir)
}

// unmount ends a mount. It keeps or discards what was written.
func (s *Server) unmount(ctx context.Context, m *mount, req *api.UnmountRequest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if req.Keep {
		if err := m.mustBeOfPoint("keep"); err != nil {
			return err
		}
	}
	if req.Keep && m.rec.ReadOnly {
		return errs.New(errs.Invalid, "mount %s is read-only: there is nothing to keep", m.rec.ID)
	}
	if err := m.leave(ctx, req.Force); err != nil {
		return err
	}
	m.nfs.forget(m)
	if err := m.release(); err != nil && req.Keep {
		return err
	}
	if req.Keep {
		return m.setState(stateKept)
	}
	s.log.Info("mount discarded", "mount", m.rec.ID.String())
	return s.forget(m)
}

// resume serves a kept mount again.
func (s *Server) resume(ctx context.Context, m *mount, at *api.Place) error {
	if err := m.mustBeOfPoint("resume"); err != nil {
		return err
	}
	dir, made, err := s.preparePlace(at.Path, at.NFS || at.NBD)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.served() {
		err := errs.New(errs.Busy, "mount %s is mounted at %s", m.rec.ID, cmp.Or(m.rec.Path, "its exports"))
		if made {
			err = errors.Join(err, os.Remove(dir))
		}
		return err
	}
	// The record says where before anything is mounted there: a daemon that is killed in between finds and
	// cleans the dead mount when it starts again.
	old := *m.rec
	if err = s.claim(m, dir, made); err == nil {
		err = m.rec.place(at)
		if err == nil {
			err = m.setState(stateMounted)
		}
		if err == nil {
			err = m.serve(ctx, false)
		}
		if err == nil {
			return nil
		}
		s.giveUp(m, old.Path, old.MadeDir)
		m.rec.Datastore, m.rec.NFS, m.rec.Allow = old.Datastore, old.NFS, old.Allow
		m.rec.NBD, m.rec.NBDAddress = old.NBD, old.NBDAddress
	}
	err = errors.Join(err, m.setState(old.State))
	if made {
		err = errors.Join(err, os.Remove(dir))
	}
	return err
}

// minPrefix is the least of an id that names a mount.
const minPrefix = 4

// findMount finds a mount by a unique prefix of its id, or by its folder.
func (s *Server) findMount(name string) (*mount, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found *mount
	for id, m := range s.mounts {
		if !(m.rec.Path == name && m.served()) && (len(name) < minPrefix || !strings.HasPrefix(id.String(), strings.ToLower(name))) {
			continue
		}
		if found != nil {
			return nil, errs.WithTry(errs.New(errs.Invalid, "%q means several mounts", name), "mountctl mounts")
		}
		found = m
	}
	if found == nil {
		return nil, errs.WithTry(errs.New(errs.NotFound, "no mount is %q", name), "mountctl mounts")
	}
	return found, nil
}

// allMounts returns the mounts, oldest first.
func (s *Server) allMounts() []api.Mount {
	s.mu.Lock()
	list := make([]*mount, 0, len(s.mounts))
	for _, m := range s.mounts {
		list = append(list, m)
	}
	s.mu.Unlock()
	views := make([]api.Mount, 0, len(list))
	for _, m := range list {
		views = append(views, m.view())
	}
	sort.Slice(views, func(i, j int) bool { return views[i].Created.Before(views[j].Created) })
	return views
}

// restoreMounts brings back the mounts of an earlier run. One that cannot come back is listed as failed,
// with what was written to it safe.
func (s *Server) restoreMounts(ctx context.Context) error {
	fsys := vfs.OS{}
	if err := fsys.MkdirAll(s.mountsDir()); err != nil {
		return err
	}
	names, err := fsys.List(s.mountsDir())
	if err != nil {
		return err
	}
	for _, name := range names {
		err := s.restoreDir(ctx, name)
		if errs.Is(err, errs.Corrupt) || errs.Is(err, errs.Newer) {
			s.addDamage(err)
			s.unknown = append(s.unknown, filepath.Join(s.mountsDir(), name))
			s.holdUnknown(name)
			continue
		}
		if err != nil {
			return err
		}
	}
	s.checkKey()
	s.nfs.allThere()
	s.nbd.allThere()
	return nil
}

// checkKey tells when mounts were exported under a key that is lost: their clients must mount again.
func (s *Server) checkKey() {
	s.mu.Lock()
	lost := false
	for _, m := range s.mounts {
		lost = lost || s.nfs.newKey && m.rec.NFS
	}
	s.mu.Unlock()
	if lost {
		s.addDamage(errs.New(errs.Corrupt, "the key of NFS handles (%s, nfs.key2) was lost; there is a new one: clients must mount again",
			filepath.Join(s.config.Data, "nfs.key")))
	}
}

// restoreDir restores the mount in one folder. It removes nothing that somebody may have written to.
func (s *Server) restoreDir(ctx context.Context, name string) error {
	dir := filepath.Join(s.mountsDir(), name)
	rec, bad, err := readMountRecord(dir)
	if errs.Is(err, errs.NotFound) {
		return s.removeUnborn(ctx, dir, name)
	}
	if err != nil {
		return err
	}
	if rec.ID.String() != name {
		return errs.New(errs.Corrupt, "mount record in %s is that of mount %s; the folder is left alone", dir, rec.ID)
	}
	if rec.State == stateDiscarded || rec.State == stateForking {
		return vfs.RemoveAll(vfs.OS{}, dir)
	}
	if bad != nil {
		s.addDamage(fmt.Errorf("mount %s: one copy of its record was bad and is written again: %w", rec.ID, bad))
	}
	if rec.alone { // a crash, or a spoiled copy
		if err := rec.write(dir); err != nil && !errs.Is(err, errs.NoSpace) {
			return err
		}
	}
	s.restoreMount(ctx, dir, rec)
	return nil
}

// removeUnborn removes the folder of a mount that a crash caught before it had a record.
func (s *Server) removeUnborn(ctx context.Context, dir, name string) error {
	var id mountID
	if err := id.UnmarshalText([]byte(name)); err != nil {
		return errs.New(errs.Corrupt, "%s holds no mount and is left alone", dir)
	}
	written, err := s.wasServed(ctx, dir, id)
	if err != nil {
		return err
	}
	if written {
		return errs.New(errs.Corrupt, "mount record in %s is missing; its log is there and is kept", dir)
	}
	s.log.Warn("mount that was never served was removed", "mount", name)
	return vfs.RemoveAll(vfs.OS{}, dir)
}

func (s *Server) addDamage(err error) {
	s.log.Error("damage found", "what", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.damage = append(s.damage, err.Error())
}

// knownDamage is what is bad in mounts and their records.
func (s *Server) knownDamage() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := append([]string(nil), s.damage...)
	if err := s.nfs.problem(); err != nil {
		list = append(list, "mounts are not served through NFS as they should be: "+err.Error())
	}
	for _, m := range s.mounts {
		list = append(list, m.damage.get()...)
	}
	return list
}

func (s *Server) restoreMount(ctx context.Context, dir string, rec *mountRecord) {
	m := &mount{s: s, dir: dir, rec: rec}
	if err := m.pinPoint(); err != nil { // nothing was collected yet
		s.addDamage(fmt.Errorf("mount %s: %w", rec.ID, err))
	}
	s.mu.Lock()
	s.mounts[rec.ID] = m
	s.mu.Unlock()
	if rec.State != stateMounted {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.serving.Store(true)
	m.returning = true
	defer func() { m.returning = false }()
	if rec.Path != "" {
		s.remakeDir(rec.Path)
	}
	m.nfs.load(m)
	if err := m.serve(ctx, false); err != nil {
		m.failure = err
		m.holdNFS()
		s.log.Error("mount did not come back", "mount", rec.ID.String(), "path", rec.Path, "err", err)
	}
}

// stopMounts unmounts everything; the records stay, so that the next start brings it back.
func (s *Server) stopMounts(ctx context.Context) error {
	s.mu.Lock()
	list := make([]*mount, 0, len(s.mounts))
	for _, m := range s.mounts {
		list = append(list, m)
	}
	s.mu.Unlock()
	var all error
	for _, m := range list {
		m.mu.Lock()
		all = errors.Join(all, m.leave(ctx, true), m.release())
		m.mu.Unlock()
	}
	return all
}
