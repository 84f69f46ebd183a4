package retention

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"slices"
	"time"

	"livemount/internal/errs"
)

// VM is what a plan is made of: the rules and all points of one VM.
type VM struct {
	ID     string
	Rules  Rules
	Points []Point
}

// Plan says which points of several VMs may go. Equal inputs in any order make equal plans.
type Plan struct {
	VMs []VMPlan `json:"vms"` // by ID; VMs without points are left out
	// Hash is the SHA-256 over rules, VMs, and the ids of points that go and that stay, 64 lower-case hex digits.
	// Time that passes does not change it, unless it changes what goes; a point that was made or has gone does.
	Hash string `json:"hash"`
}

// VMPlan is the part of a plan for one VM. Points are oldest first.
type VMPlan struct {
	VM    string   `json:"vm"`
	Rules string   `json:"rules"` // Rules.String; "" keeps everything
	Go    []string `json:"go"`
	Stay  []string `json:"stay"`
}

// Item is a point of a VM.
type Item struct {
	VM    string `json:"vm"`
	Point string `json:"point"`
}

// NewPlan decides for all VMs at the time now. It refuses, with errs.Invalid, rules that do not Validate, and a VM or
// a point of a VM that is there twice or has no id.
func NewPlan(vms []VM, now time.Time) (Plan, error) {
	var p Plan
	sorted := slices.SortedStableFunc(slices.Values(vms), func(a, b VM) int { return cmp.Compare(a.ID, b.ID) })
	for i, vm := range sorted {
		if vm.ID == "" || (i > 0 && sorted[i-1].ID == vm.ID) {
			return Plan{}, errs.New(errs.Invalid, "plan: the VM %q is there twice or has no id", vm.ID)
		}
		one, err := planOne(vm, now)
		if err != nil {
			return Plan{}, fmt.Errorf("plan of VM %s: %w", vm.ID, err)
		}
		if len(vm.Points) > 0 {
			p.VMs = append(p.VMs, one)
		}
	}
	p.Hash = p.sum()
	return p, nil
}

func planOne(vm VM, now time.Time) (VMPlan, error) {
	one := VMPlan{VM: vm.ID, Rules: vm.Rules.String(), Go: []string{}, Stay: []string{}}
	if err := vm.Rules.Validate(); err != nil {
		return one, err
	}
	j, seen := judge(vm.Points, vm.Rules, now), map[string]bool{}
	for i, e := range j.list {
		if e.ID == "" || seen[e.ID] {
			return one, errs.New(errs.Invalid, "the point %q is there twice or has no id", e.ID)
		}
		seen[e.ID] = true
		if j.kept(i) {
			one.Stay = append(one.Stay, e.ID)
		} else {
			one.Go = append(one.Go, e.ID)
		}
	}
	return one, nil
}

// Go lists the points that may go, by VM, oldest first.
func (p Plan) Go() []Item {
	var list []Item
	for _, vm := range p.VMs {
		for _, id := range vm.Go {
			list = append(list, Item{vm.VM, id})
		}
	}
	return list
}

// sum hashes the line "livemount retention plan 1\n" and then for each VM, each as its length in bytes, a colon
// and its bytes: id, rules, the number of points that go, their ids in rising order, the same of those that stay.
func (p Plan) sum() string {
	h := sha256.New()
	io.WriteString(h, "livemount retention plan 1\n")
	for _, vm := range p.VMs {
		put(h, vm.VM)
		put(h, vm.Rules)
		for _, ids := range [][]string{vm.Go, vm.Stay} {
			put(h, fmt.Sprint(len(ids)))
			for _, id := range slices.Sorted(slices.Values(ids)) {
				put(h, id)
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

func put(h hash.Hash, text string) { fmt.Fprintf(h, "%d:%s", len(text), text) }
