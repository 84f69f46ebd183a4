package server

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"livemount/internal/errs"
	"livemount/server/api"
	"livemount/snapshotchain"
)

func (s *Server) postRename(r *http.Request) (int, any, error) {
	var req api.RenameRequest
	if err := body(r, &req); err != nil {
		return 0, nil, err
	}
	old := r.PathValue("name")
	if strings.Contains(old, ":") {
		return 0, nil, errs.New(errs.Invalid, "%s is a branch: it keeps its name behind that of its VM", old)
	}
	if err := s.store.Rename(r.Context(), old, req.Name); err != nil {
		return 0, nil, err
	}
	s.log.Info("vm renamed", "vm", old, "name", req.Name)
	return s.getVMs(r)
}

// postRemove makes a VM, or a branch, go with all its points, or tells what would go.
func (s *Server) postRemove(r *http.Request) (int, any, error) {
	var req api.RemoveRequest
	if err := body(r, &req); err != nil {
		return 0, nil, err
	}
	name := r.PathValue("name")
	what, err := s.whatGoes(r.Context(), name)
	if err != nil || req.DryRun {
		return http.StatusOK, what, err
	}
	if len(what.Mounts) > 0 {
		return 0, nil, errs.WithTry(errs.New(errs.Busy, "remove %s: mounts stand on it: %s", name, strings.Join(what.Mounts, ", ")),
			"mountctl unmount %s", what.Mounts[0])
	}
	if err := s.store.Remove(r.Context(), name); err != nil {
		return 0, nil, err
	}
	s.log.Info("vm removed", "vm", name, "points", what.Points)
	what.Removed = true
	s.keeper.wake()
	return http.StatusOK, what, nil
}

func (s *Server) whatGoes(ctx context.Context, name string) (*api.Removed, error) {
	vm, err := s.store.VM(name)
	if err != nil {
		return nil, err
	}
	what := &api.Removed{VM: name, Branches: []string{}, Mounts: []string{}, Guarded: []string{}}
	gone := map[snapshotchain.VMID]bool{}
	for _, v := range s.store.VMs() {
		if v.ID != vm.ID && v.Of != vm.ID {
			continue
		}
		gone[v.ID] = true
		if v.ID != vm.ID {
			what.Branches = append(what.Branches, v.Name)
		}
		_, points, err := s.store.PointsOf(ctx, v.ID)
		if err != nil {
			return nil, err
		}
		addPoints(what, points)
		s.addGuarded(what, v.Name, points)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, m := range s.mounts {
		if gone[m.rec.VMID] {
			what.Mounts = append(what.Mounts, id.String())
		}
	}
	return what, nil
}

// maxGuarded bounds the points whose holds are told.
const maxGuarded = 100

// addGuarded notes which points cannot go, and why.
func (s *Server) addGuarded(what *api.Removed, vm string, points []snapshotchain.Point) {
	for i := range points {
		g := s.store.GuardOf(&points[i])
		if now, _ := s.store.Time(); len(g.Holds) == 0 && !g.Until.After(now) || len(what.Guarded) > maxGuarded {
			continue
		}
		if len(what.Guarded) == maxGuarded {
			what.Guarded = append(what.Guarded, "and more")
			return
		}
		if err := s.store.Expirable(&points[i]); err != nil {
			what.Guarded = append(what.Guarded, fmt.Sprintf("%s@%s: %v", vm, points[i].Time.Format(time.RFC3339), err))
		}
	}
}

func addPoints(what *api.Removed, points []snapshotchain.Point) {
	for i := range points {
		p := &points[i]
		if what.Points == 0 || p.Time.Before(what.Oldest) {
			what.Oldest = p.Time
		}
		if p.Time.After(what.Newest) {
			what.Newest = p.Time
		}
		what.Points++
		for j := range p.Disks {
			what.DataBytes += p.Disks[j].DataBytes
		}
	}
}
