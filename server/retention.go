package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/retention"
	"livemount/server/api"
	"livemount/snapshotchain"
)

// rulesOf returns the rules of a VM.
func (s *Server) rulesOf(id snapshotchain.VMID) (retention.Rules, error) {
	text, _ := s.store.Rules(id)
	if text == "" {
		return retention.Rules{}, nil
	}
	return retention.Parse(text)
}

func (s *Server) getRules(*http.Request) (int, any, error) {
	out := api.RulesList{VMs: []api.VMRules{}}
	out.Default, _ = s.store.Rules(0)
	for _, vm := range s.store.VMs() {
		text, own := s.store.Rules(vm.ID)
		out.VMs = append(out.VMs, api.VMRules{VM: vm.Name, Rules: text, Own: own})
	}
	return http.StatusOK, out, nil
}

func (s *Server) postRules(r *http.Request) (int, any, error) {
	var req api.RulesRequest
	if err := body(r, &req); err != nil {
		return 0, nil, err
	}
	text := ""
	if req.Rules != "" {
		rules, err := retention.Parse(req.Rules)
		if err != nil {
			return 0, nil, err
		}
		text = rules.String()
	}
	var vm snapshotchain.VM
	if req.VM != "" {
		var err error
		if vm, err = s.store.VM(req.VM); err != nil {
			return 0, nil, err
		}
	}
	if err := s.store.SetRules(r.Context(), vm.ID, text); err != nil {
		return 0, nil, err
	}
	s.log.Info("retention rules set", "vm", vm.Name, "rules", text)
	return s.getRules(r)
}

// clockSlack is how far in the future a point may lie without anybody minding.
const clockSlack = time.Hour

// retained returns what the rules are applied to.
func (s *Server) retained(ctx context.Context, vm *snapshotchain.VM) (retention.VM, error) {
	rules, err := s.rulesOf(vm.ID)
	if err != nil {
		return retention.VM{}, fmt.Errorf("rules of %s: %w", vm.Name, err)
	}
	now, points, err := s.store.PointsOf(ctx, vm.ID)
	if err != nil {
		return retention.VM{}, err
	}
	out := retention.VM{ID: now.ID.String(), Rules: rules}
	for i := range points {
		p := retention.Point{ID: points[i].ID.String(), Time: points[i].Time, Good: !s.store.Damaged(&points[i])}
		if err := s.store.Expirable(&points[i]); err != nil {
			p.Pinned = err.Error()
		} else if points[i].Time.After(s.clock.Now().Add(clockSlack)) {
			p.Pinned = "its time is in the future: a clock was wrong, and rules that count days or hours take the points since for one"
		}
		out.Points = append(out.Points, p)
	}
	return out, nil
}

func (s *Server) getExplain(r *http.Request) (int, any, error) {
	vm, err := s.store.VM(r.URL.Query().Get("vm"))
	if err != nil {
		return 0, nil, err
	}
	if err := s.knowDamage(r.Context()); err != nil {
		return 0, nil, err
	}
	in, err := s.retained(r.Context(), &vm)
	if err != nil {
		return 0, nil, err
	}
	out := api.Explained{VM: vm.Name, Rules: in.Rules.String(), Points: []api.ExplainedPoint{}}
	for _, v := range retention.Decide(in.Points, in.Rules, s.clock.Now()) {
		p := api.ExplainedPoint{Point: v.Point.ID, Time: v.Point.Time, Good: v.Point.Good, Kept: v.Kept, Reasons: []string{}}
		for _, why := range v.Reasons {
			p.Reasons = append(p.Reasons, why.String())
		}
		if !v.Goes.IsZero() {
			p.Goes = &v.Goes
		}
		out.Points = append(out.Points, p)
	}
	return http.StatusOK, out, nil
}

// postApply lets go what the rules do not keep, or shows that as a plan.
func (s *Server) postApply(r *http.Request) (int, any, error) {
	var req api.ApplyRequest
	if err := body(r, &req); err != nil {
		return 0, nil, err
	}
	names := req.VMs
	if len(names) == 0 && req.Plan != "" {
		names = s.keeper.namesOf(req.Plan)
	}
	plan, err := s.planFor(r.Context(), names)
	if err != nil {
		return 0, nil, err
	}
	if req.Plan != "" && req.Plan != plan.Hash {
		return 0, nil, s.keeper.changed(req.Plan, plan)
	}
	out, list, err := s.planned(r.Context(), &plan)
	if err != nil || req.DryRun {
		s.keeper.remember(plan, names)
		return http.StatusOK, out, err
	}
	if err := s.expire(r.Context(), list); err != nil {
		return 0, nil, fmt.Errorf("apply the rules: %w", err)
	}
	out.Applied = true
	return http.StatusOK, out, nil
}

// knowDamage finds out which points are damaged: rules must not let a good one go for them.
func (s *Server) knowDamage(ctx context.Context) error {
	if s.store.BadRecords() == 0 {
		return nil
	}
	_, err := s.store.Touched(ctx)
	return err
}

// planFor makes the plan for the named VMs, or for all.
func (s *Server) planFor(ctx context.Context, names []string) (retention.Plan, error) {
	if err := s.knowDamage(ctx); err != nil {
		return retention.Plan{}, err
	}
	for _, name := range names {
		if _, err := s.store.VM(name); err != nil {
			return retention.Plan{}, err
		}
	}
	var in []retention.VM
	for _, vm := range s.store.VMs() {
		if len(names) > 0 && !slices.Contains(names, vm.Name) {
			continue
		}
		one, err := s.retained(ctx, &vm)
		if err != nil {
			return retention.Plan{}, err
		}
		in = append(in, one)
	}
	return retention.NewPlan(in, s.clock.Now())
}

// planned finds the points of a plan.
func (s *Server) planned(ctx context.Context, plan *retention.Plan) (*api.Applied, []named, error) {
	out := &api.Applied{Plan: plan.Hash, Points: []api.ExpiredPoint{}}
	var list []named
	for _, vp := range plan.VMs {
		var id snapshotchain.VMID
		if err := id.UnmarshalText([]byte(vp.VM)); err != nil {
			return nil, nil, err
		}
		vm, points, err := s.store.PointsOf(ctx, id)
		if err != nil {
			return nil, nil, err
		}
		gone := map[string]bool{}
		for _, p := range vp.Go {
			gone[p] = true
		}
		for i := range points {
			p := &points[i]
			if !gone[p.ID.String()] {
				out.Kept++
				continue
			}
			out.Points = append(out.Points, api.ExpiredPoint{VM: vm.Name, Point: p.ID.String(), Time: p.Time})
			list = append(list, named{vm, *p})
		}
	}
	return out, list, nil
}

// maxPlans bounds the plans that are remembered.
const maxPlans = 20

func (k *keeper) remember(p retention.Plan, names []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.plans = append(k.plans, shownPlan{p, names})
	if len(k.plans) > maxPlans {
		k.plans = k.plans[1:]
	}
}

// shownPlan is a plan that somebody was shown, and for which VMs he asked.
type shownPlan struct {
	retention.Plan
	names []string
}

// namesOf returns for which VMs a plan was asked for.
func (k *keeper) namesOf(hash string) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range k.plans {
		if k.plans[i].Hash == hash {
			return k.plans[i].names
		}
	}
	return nil
}

// changed says what is different between a plan that was shown and now.
func (k *keeper) changed(hash string, now retention.Plan) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	what := "that plan is not known any more"
	for i := range k.plans {
		if k.plans[i].Hash == hash {
			what = strings.TrimSpace(retention.Compare(k.plans[i].Plan, now).String())
		}
	}
	for _, vm := range k.s.store.VMs() { // people know names
		what = strings.ReplaceAll(what, "VM "+vm.ID.String(), vm.Name)
	}
	return errs.WithTry(errs.New(errs.Busy, "nothing was done: the plan is %s now, not %s: %s", now.Hash, hash, what), "mountctl retention apply --dry-run")
}

// retentionLoop applies the rules from time to time.
func (k *keeper) retentionLoop(ctx context.Context) {
	each := time.Duration(k.s.config.RetentionMinutes) * time.Minute
	for each > 0 && clock.Sleep(ctx, each) == nil {
		if err := k.applyRules(ctx); err != nil && !errs.Is(err, errs.Canceled) {
			k.s.log.Error("retention rules were not applied", "err", err)
		}
	}
}

// applyRules applies the rules to each VM by itself: one whose points have just come into use does not keep the
// others.
func (k *keeper) applyRules(ctx context.Context) (failed error) {
	for _, vm := range k.s.store.VMs() {
		plan, err := k.s.planFor(ctx, []string{vm.Name})
		if errs.Is(err, errs.NotFound) {
			continue // it was removed or renamed just now
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", vm.Name, err))
			continue
		}
		_, list, err := k.s.planned(ctx, &plan)
		if err == nil && len(list) > 0 {
			err = k.s.expire(ctx, list)
		}
		if errs.Is(err, errs.Busy) || errs.Is(err, errs.NotFound) {
			k.s.log.Warn("retention rules wait", "vm", vm.Name, "err", err)
			continue
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", vm.Name, err))
		}
	}
	return failed
}
