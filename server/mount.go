package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"livemount/blockdev"
	"livemount/blockdev/overlay"
	"livemount/fs"
	"livemount/fs/datastore"
	"livemount/fs/fusefs"
	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/nfsd"
	"livemount/server/api"
	"livemount/snapshotchain"
)

// mount is a point that is served, or kept to be served again.
type mount struct {
	s   *Server
	dir string // of its record and log

	damage  damageList
	fetched atomic.Int64 // bytes read of the point
	nfs     nfsClients
	// returning is set while a mount of an earlier run comes back. Programs may have made files in the bare
	// folder meanwhile; they must not keep it away.
	returning bool
	serving   atomic.Bool        // its folder is taken; set and cleared under mu, and read without it
	pin       *snapshotchain.Pin // of its point; set before others know the mount
	mu        sync.Mutex         // one operation on the mount at a time; guards all below
	rec       *mountRecord
	log       *overlay.Log // nil when read-only or not served
	bases     []*snapshotchain.Disk
	datastore *datastore.Store // nil in a browse mount
	export    *nfsd.Export     // nil when NFS does not serve it
	nbd       bool             // NBD serves its disks
	history   *fs.History      // of a browse mount that is served
	fuse      *fusefs.Server   // nil when not served
	leaving   bool             // an unmount of ours is under way
	failure   error            // why it is not served though it should be
	elapsed   time.Duration    // that serve took, the last time
}

// serve opens the disks and the log and mounts the tree at rec.Path. The caller holds mu.
func (m *mount) serve(ctx context.Context, fresh bool) error {
	began := m.s.clock.Now()
	defer func() { m.elapsed = m.s.clock.Now().Sub(began) }()
	nodes, err := m.openBases(ctx)
	if err == nil {
		err = m.openLog(ctx, nodes, fresh)
	}
	if err == nil && fresh {
		err = m.recordFirst()
	}
	if err == nil && m.datastore != nil {
		err = m.startDatastore(ctx)
	}
	var tree fs.Served
	if err == nil {
		tree, err = m.tree()
	}
	if err == nil && m.rec.NFS {
		err = m.exportNFS()
	}
	if err == nil && m.rec.NBD {
		err = m.exportNBD()
	}
	if err == nil && m.rec.Path != "" {
		err = m.mountTree(ctx, tree)
	}
	if err != nil {
		m.withdrawNBD()
		m.standBack(fresh)
		return errors.Join(err, m.release())
	}
	if !m.rec.NFS {
		m.withdraw() // what held clients of another time
	}
	m.leaving, m.failure = false, nil
	return nil
}

// recordFirst makes the record of a new mount durable. The log is there by now, and nothing can have been
// written to it: whoever finds a record without a log knows that the log was lost.
func (m *mount) recordFirst() error {
	if err := m.rec.write(m.dir); err != nil {
		return err
	}
	return vfs.OS{}.SyncDir(filepath.Dir(m.dir))
}

func (m *mount) openBases(ctx context.Context) ([]overlay.Node, error) {
	var nodes []overlay.Node
	m.bases = nil
	for i := range m.rec.Disks {
		d := &m.rec.Disks[i]
		base, err := m.s.store.OpenDisk(ctx, &d.Disk)
		if err != nil {
			return nil, err
		}
		m.bases = append(m.bases, base)
		nodes = append(nodes, overlay.Node{ID: d.Node, Base: m.metered(i), Size: base.Size(), Grows: true})
	}
	if m.rec.Kind != kindBrowse {
		m.datastore = datastore.New(datastore.Options{Clock: m.s.clock, Space: m.space, Bad: func(id fs.NodeID, err error) {
			m.damage.add("mount %s: file %d: %v", m.rec.ID, id, err)
		}})
	}
	return nodes, nil
}

func (m *mount) openLog(ctx context.Context, nodes []overlay.Node, fresh bool) error {
	if m.rec.ReadOnly {
		return nil
	}
	o := overlay.Options{
		FS: vfs.OS{}, Dir: filepath.Join(m.dir, "log"), Mount: m.s.overlayID(m.rec.ID), Clock: m.s.clock, Note: m.s.gate.Guest, Keys: m.s.store.Keys(),
		Log: m.s.log.With("mount", m.rec.ID.String()), Admit: m.s.guard.AdmitMount, AdmitFreeing: m.s.guard.AdmitFreeing,
		Meta: m.datastore.Replay, Restore: m.datastore.Restore, Snapshot: m.datastore.Snapshot,
	}
	var err error
	if fresh {
		m.log, err = overlay.Create(ctx, o, nodes)
		return err
	}
	var rep overlay.Report
	m.log, rep, err = overlay.Open(ctx, o, nodes)
	if errs.Is(err, errs.NotFound) {
		err = errs.New(errs.Corrupt, "the log is missing, and with it what was written: %w", err)
	}
	for _, n := range rep.Notes {
		m.s.log.Warn("mount log", "mount", m.rec.ID.String(), "what", n)
	}
	for _, d := range rep.Damage {
		m.s.log.Error("mount log is damaged", "mount", m.rec.ID.String(), "node", d.Node, "offset", d.Off, "length", d.Len, "why", d.Why)
		m.damage.add("mount %s: log: node %d, %d bytes at %d: %s", m.rec.ID, d.Node, d.Len, d.Off, d.Why)
	}
	return err
}

// wasServed says whether the folder of a mount without a record has a log that somebody may have written to.
func (s *Server) wasServed(ctx context.Context, dir string, id mountID) (bool, error) {
	segments, err := filepath.Glob(filepath.Join(dir, "log", "*.seg"))
	if err != nil || len(segments) == 0 {
		return false, err
	}
	l, rep, err := overlay.Open(ctx, overlay.Options{
		FS: vfs.OS{}, Dir: filepath.Join(dir, "log"), Mount: s.overlayID(id), Clock: s.clock, NoBackground: true, Keys: s.store.Keys(),
	}, nil) // records of a datastore make it fail: it was served
	if err != nil {
		return true, nil // it cannot be told: it is kept
	}
	written := l.Stats().LastSeq > 0 || len(rep.Damage) > 0
	return written, l.Close()
}

// overlayID ties the log to the store and to the mount.
func (s *Server) overlayID(id mountID) (out [16]byte) {
	store := s.store.ID()
	copy(out[:8], store[:8])
	binary.BigEndian.PutUint64(out[8:], uint64(id))
	return out
}

// tree returns what the mount shows.
func (m *mount) tree() (fs.Served, error) {
	switch {
	case m.rec.Kind == kindBrowse:
		m.history = fs.NewHistory(&catalogue{store: m.s.store, mount: m}, fs.HistoryOptions{Space: m.space})
		return m.history, nil
	case m.rec.Datastore:
		return m.datastore, nil
	}
	t := fs.New(fs.Options{Clock: m.s.clock, Space: m.space})
	for i := range m.rec.Disks {
		d := &m.rec.Disks[i]
		data, err := m.diskData(i)
		if err != nil {
			return nil, err
		}
		_, err = t.AddDisk(fs.Disk{
			ID: fs.NodeID(d.Node), Name: diskFile(d.Disk.Name), Data: data,
			Allocated: m.allocated(m.log, &d.Disk), Modified: m.rec.PointTime,
		})
		if err != nil {
			return nil, err
		}
	}
	return t, nil
}

// space is what mounts may still write.
func (m *mount) space(context.Context) (vfs.Space, error) { return m.s.guard.Space() }

func diskFile(disk string) string { return disk + ".raw" }

// allocated tells the bytes that a disk takes up: its point's data, and, not told apart by disk, what the
// mount wrote.
func (m *mount) allocated(log *overlay.Log, d *snapshotchain.PointDisk) func() int64 {
	return func() int64 {
		n := d.DataBytes
		if log != nil {
			n += log.Stats().LiveBytes
		}
		return min(n, (d.SizeBytes+blockdev.PageSize-1)/blockdev.PageSize*blockdev.PageSize)
	}
}

func (m *mount) mountTree(ctx context.Context, tree fs.Served) error {
	// A dead mount of an earlier run goes as late as can be: until the new one is there, programs meet the
	// bare folder.
	if _, err := fusefs.CleanDead(ctx, m.rec.Path); err != nil {
		return err
	}
	f, err := fusefs.Mount(ctx, tree, fusefs.Options{
		Dir: m.rec.Path, ReadOnly: m.rec.ReadOnly, AllowOther: os.Geteuid() == 0,
		FsName: "livemount:" + m.rec.ID.String(), Log: m.s.log, OverFiles: m.returning,
		Changing: m.rec.Kind == kindBrowse, DirectIO: m.rec.NFS || m.rec.NBD, // others write it too
	})
	if err != nil {
		return err
	}
	m.fuse = f
	m.s.watchers.Go(func() {
		<-f.Done()
		m.ended(f)
	})
	return nil
}

// ended is called when a FUSE mount is gone. When we did not unmount it, somebody else did: what was
// written is kept.
func (m *mount) ended(f *fusefs.Server) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fuse != f || m.leaving {
		return
	}
	m.fuse = nil
	if m.export != nil || m.nbd {
		m.s.log.Info("mount was unmounted from outside, and stays exported", "mount", m.rec.ID.String(), "path", m.rec.Path)
		m.s.mu.Lock() // others look for what is at a path under it
		m.rec.Path, m.rec.MadeDir, m.rec.Datastore = "", false, false
		m.s.mu.Unlock()
		if err := m.setState(stateMounted); err != nil {
			m.s.log.Error("mount was not recorded", "mount", m.rec.ID.String(), "err", err)
		}
		return
	}
	m.s.log.Info("mount was unmounted from outside, kept", "mount", m.rec.ID.String(), "path", m.rec.Path)
	if err := errors.Join(m.release(), m.setState(stateKept)); err != nil {
		m.s.log.Error("mount was not closed cleanly", "mount", m.rec.ID.String(), "err", err)
	}
	if m.rec.ReadOnly {
		if err := m.s.forget(m); err != nil {
			m.s.log.Error("mount was not removed", "mount", m.rec.ID.String(), "err", err)
		}
	}
}

// release closes the log and the disks. The caller holds mu and the tree is not mounted any more.
func (m *mount) release() error {
	var err error
	if m.log != nil {
		err = m.datastore.Close(context.Background())
		st := m.log.Stats()
		m.rec.Overlay, m.rec.Written, m.rec.Modified = st.LogBytes, m.rec.written(st), m.rec.modified(st)
		err = errors.Join(err, m.log.Close())
		m.log = nil
	}
	m.datastore = nil
	for _, b := range m.bases {
		err = errors.Join(err, b.Close())
	}
	m.bases = nil
	if m.history != nil {
		err = errors.Join(err, m.history.Close())
		m.history = nil
	}
	m.serving.Store(false)
	return err
}

func (m *mount) setState(state string) error {
	m.rec.State = state
	return m.rec.write(m.dir)
}

// leave takes the tree away: Busy when files are open there or NFS clients have it mounted, unless force takes it away all
// the same.
func (m *mount) leave(ctx context.Context, force bool) error {
	if err := errors.Join(m.mustHaveNoClients(), m.mustHaveNoNBDClients()); err != nil && !force {
		return err
	}
	if err := m.leaveFUSE(ctx, force); err != nil {
		return err
	}
	m.withdrawNBD()
	m.withdraw()
	return nil
}

func (m *mount) leaveFUSE(ctx context.Context, force bool) error {
	if m.fuse == nil {
		return nil
	}
	m.leaving = true
	err := m.fuse.Unmount(ctx)
	if errs.Is(err, errs.Busy) && force {
		err = m.fuse.Detach(ctx)
	}
	if err != nil {
		m.leaving = false
		if errs.Is(err, errs.Busy) {
			err = errs.WithTry(err, "stop the programs that have files open there (fuser -vm %s), or add --force", m.rec.Path)
		}
		return fmt.Errorf("unmount %s: %w", m.rec.ID, err)
	}
	m.fuse = nil
	return nil
}

// view describes the mount.
func (m *mount) view() api.Mount {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := api.Mount{
		Mount: m.rec.ID.String(), VM: m.s.nameOf(m.rec), Point: m.rec.Point.String(), PointTime: m.rec.PointTime,
		Path: m.rec.Path, State: m.rec.State, ReadOnly: m.rec.ReadOnly, Created: m.rec.Created, Disks: []api.MountDisk{},
		ElapsedSeconds: m.elapsed.Seconds(), OverlayBytes: m.rec.Overlay, WrittenBytes: m.rec.Written, Modified: m.rec.Modified,
	}
	if m.rec.Kind == kindBrowse {
		v.Kind, v.Point = m.rec.Kind, ""
	}
	v.Datastore, v.FetchedBytes = m.rec.Datastore, m.fetched.Load()
	if m.rec.Origin != 0 {
		v.ForkedFrom = m.rec.Origin.String()
	}
	for _, d := range m.rec.Disks {
		v.Disks = append(v.Disks, api.MountDisk{Name: d.Disk.Name, Path: m.diskPath(&d), SizeBytes: d.Disk.SizeBytes})
	}
	m.viewNFS(&v)
	m.viewNBD(&v)
	if m.failure != nil {
		v.State, v.Reason = "failed", m.failure.Error()
	}
	if m.log != nil {
		st := m.log.Stats()
		v.OverlayBytes, v.WrittenBytes, v.Modified = st.LogBytes+st.CheckpointSize, m.rec.written(st), m.rec.modified(st)
		if err := m.log.Err(); err != nil {
			v.State, v.Reason = "failed", err.Error()
		} else if err := m.log.CleanErr(); err != nil {
			v.Reason = err.Error()
		}
	}
	return v
}
