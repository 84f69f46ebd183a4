package server

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"

	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/server/api"
	"livemount/snapshotchain"
)

// fork makes a second writable mount at a place, with the state that the first has at this moment. Both go on.
func (s *Server) fork(ctx context.Context, m *mount, at *api.Place) (*mount, error) {
	path, made, err := s.preparePlace(at.Path, at.NFS || at.NBD)
	if err != nil {
		return nil, err
	}
	f, err := s.forkTo(ctx, m, at, path, made)
	if err != nil && made {
		err = errors.Join(err, os.Remove(path))
	}
	return f, err
}

func (s *Server) forkTo(ctx context.Context, m *mount, at *api.Place, path string, made bool) (*mount, error) {
	id := snapshotchain.NewID[ofMount]()
	f := &mount{s: s, dir: filepath.Join(s.mountsDir(), id.String())}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.mustHaveLog("fork"); err != nil {
		return nil, err
	}
	f.rec = &mountRecord{
		ID: id, VM: m.rec.VM, VMID: m.rec.VMID, Point: m.rec.Point, PointTime: m.rec.PointTime, Created: s.clock.Now().UTC(),
		Path: path, MadeDir: made, State: stateForking, Disks: m.rec.Disks, Origin: m.rec.ID, Laid: m.rec.Laid,
	}
	if err := f.rec.place(at); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.serving.Store(true)
	if err := s.addMount(f); err != nil {
		return nil, err
	}
	if err := f.createFork(ctx, m); err != nil {
		s.dropMount(f)
		return nil, errors.Join(err, vfs.RemoveAll(vfs.OS{}, f.dir))
	}
	s.log.Info("forked", "mount", id.String(), "origin", m.rec.ID.String(), "path", path)
	return f, nil
}

// createFork makes the fork's folder and serves it. Until the record says that it is mounted, a crash leaves
// what the next start removes.
func (f *mount) createFork(ctx context.Context, origin *mount) error {
	if err := (vfs.OS{}).MkdirAll(f.dir); err != nil {
		return err
	}
	if err := f.recordFirst(); err != nil {
		return err
	}
	if err := origin.log.Fork(ctx, filepath.Join(f.dir, "log"), f.s.overlayID(f.rec.ID)); err != nil {
		return err
	}
	if err := (vfs.OS{}).SyncDir(f.dir); err != nil {
		return err
	}
	if err := f.setState(stateMounted); err != nil {
		return err
	}
	return f.serve(ctx, false)
}

func (s *Server) postFork(r *http.Request) (int, any, error) {
	began := s.clock.Now()
	var req api.ForkRequest
	if err := body(r, &req); err != nil {
		return 0, nil, err
	}
	m, err := s.findMount(r.PathValue("id"))
	if err != nil {
		return 0, nil, err
	}
	f, err := s.fork(r.Context(), m, &req.Place)
	if errs.Is(err, errs.NotFound) && errs.TryOf(err) == "" {
		err = errs.WithTry(err, "mountctl mounts")
	}
	if err != nil {
		return 0, nil, err
	}
	v := f.view()
	v.ElapsedSeconds = s.clock.Now().Sub(began).Seconds()
	return http.StatusCreated, v, nil
}
