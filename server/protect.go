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

// named is a point that a request names.
type named struct {
	vm    snapshotchain.VM
	point snapshotchain.Point
}

func (s *Server) resolve(ctx context.Context, ref string) (named, error) {
	vm, p, err := s.store.Resolve(ctx, ref, s.clock.Now(), time.Local)
	return named{vm, p}, err
}

// maxRefs bounds the points of one request.
const maxRefs = 10000

// postExpire makes points go, or tells which would and what keeps others. Of each VM all go that are named, or none.
func (s *Server) postExpire(r *http.Request) (int, any, error) {
	var req api.ExpireRequest
	if err := body(r, &req); err != nil {
		return 0, nil, err
	}
	list, err := s.resolveAll(r.Context(), req.Refs)
	if err != nil {
		return 0, nil, err
	}
	out := &api.Expired{Points: []api.ExpiredPoint{}}
	for i := range list {
		n := &list[i]
		e := api.ExpiredPoint{VM: n.vm.Name, Point: n.point.ID.String(), Time: n.point.Time}
		if err := s.store.Expirable(&n.point); err != nil {
			if !req.DryRun {
				return 0, nil, fmt.Errorf("expire %s@id:%s: %w", n.vm.Name, n.point.ID, err)
			}
			e.Reason = err.Error()
		}
		out.Points = append(out.Points, e)
	}
	if req.DryRun {
		return http.StatusOK, out, nil
	}
	if err := s.expire(r.Context(), list); err != nil {
		return 0, nil, err
	}
	out.Expired = true
	return http.StatusOK, out, nil
}

// resolveAll finds the points that are named, each once.
func (s *Server) resolveAll(ctx context.Context, refs []string) ([]named, error) {
	if len(refs) == 0 || len(refs) > maxRefs {
		return nil, errs.New(errs.Invalid, "%d points are named; between 1 and %d can be expired at once", len(refs), maxRefs)
	}
	var list []named
	seen := map[snapshotchain.PointID]bool{}
	for _, ref := range refs {
		n, err := s.resolve(ctx, ref)
		if err != nil {
			return nil, err
		}
		if !seen[n.point.ID] {
			list = append(list, n)
		}
		seen[n.point.ID] = true
	}
	return list, nil
}

// expire makes points go, VM by VM in the order in which they are named.
func (s *Server) expire(ctx context.Context, list []named) error {
	var order []snapshotchain.VMID
	byVM := map[snapshotchain.VMID][]snapshotchain.PointID{}
	names := map[snapshotchain.VMID]string{}
	for i := range list {
		id := list[i].vm.ID
		if byVM[id] == nil {
			order = append(order, id)
		}
		names[id] = list[i].vm.Name
		byVM[id] = append(byVM[id], list[i].point.ID)
	}
	for _, id := range order {
		if err := s.store.Expire(ctx, names[id], byVM[id]...); err != nil {
			return err
		}
		s.log.Info("points expired", "vm", names[id], "points", len(byVM[id]))
	}
	s.keeper.wake()
	return nil
}

func (s *Server) postHold(r *http.Request) (int, any, error) {
	var req api.HoldRequest
	if err := body(r, &req); err != nil {
		return 0, nil, err
	}
	return s.keepPoint(r.Context(), req.Ref, func(p *snapshotchain.Point) error { return s.store.Hold(r.Context(), p, req.Reason) })
}

func (s *Server) postRelease(r *http.Request) (int, any, error) {
	var req api.HoldRequest
	if err := body(r, &req); err != nil {
		return 0, nil, err
	}
	return s.keepPoint(r.Context(), req.Ref, func(p *snapshotchain.Point) error { return s.store.Release(r.Context(), p, req.Reason) })
}

func (s *Server) postLock(r *http.Request) (int, any, error) {
	var req api.LockRequest
	if err := body(r, &req); err != nil {
		return 0, nil, err
	}
	until, err := s.lockTime(req.Until)
	if err != nil {
		return 0, nil, err
	}
	return s.keepPoint(r.Context(), req.Ref, func(p *snapshotchain.Point) error { return s.store.Lock(r.Context(), p, until) })
}

// lockTime reads the end of a lock: a time as in VM@TIME, or a duration from now by the store's clock.
func (s *Server) lockTime(text string) (time.Time, error) {
	now, _ := s.store.Time()
	if t, err := snapshotchain.ParseTime(text+"-ago", now, time.Local); err == nil {
		return now.Add(now.Sub(t)), nil
	}
	t, err := snapshotchain.ParseTime(text, s.clock.Now(), time.Local)
	if err != nil || strings.HasSuffix(text, "-ago") {
		return t, errs.WithTry(errs.New(errs.Invalid, "%q is not the end of a lock", text), "--until 2030-01-31, or --until 30d")
	}
	return t, nil
}

// keepPoint changes what keeps a point, and shows it.
func (s *Server) keepPoint(ctx context.Context, ref string, change func(*snapshotchain.Point) error) (int, any, error) {
	n, err := s.resolve(ctx, ref)
	if err == nil {
		err = change(&n.point)
	}
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, s.pointView(n.vm.Name, &n.point, s.mountsByPoint()), nil
}
