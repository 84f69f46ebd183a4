package retention

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Difference says how two plans differ. Lists are in the order of VMs; within one, what goes is before
// what stays, and the oldest first.
type Difference struct {
	Rules    []RulesChange `json:"rules,omitempty"`    // of VMs that are in both
	GoNow    []Item        `json:"go_now,omitempty"`   // would go, and did not before
	StayNow  []Item        `json:"stay_now,omitempty"` // would have gone, and do not any more
	Appeared []Item        `json:"appeared,omitempty"` // stay, and were not there before
	Vanished []Item        `json:"vanished,omitempty"` // were there before
}

// RulesChange is a VM whose rules are others now; "" keeps everything.
type RulesChange struct {
	VM  string `json:"vm"`
	Old string `json:"old"`
	New string `json:"new"`
}

// Compare says what changed from one plan to the next. It is empty just when their hashes are equal.
func Compare(before, after Plan) Difference {
	var d Difference
	olds, news := byVM(before), byVM(after)
	for _, vm := range slices.Sorted(maps.Keys(merged(olds, news))) {
		d.compareVM(vm, olds[vm], news[vm])
	}
	return d
}

func byVM(p Plan) map[string]*VMPlan {
	m := map[string]*VMPlan{}
	for i := range p.VMs {
		m[p.VMs[i].VM] = &p.VMs[i]
	}
	return m
}

func merged(a, b map[string]*VMPlan) map[string]*VMPlan {
	m := maps.Clone(a)
	maps.Copy(m, b)
	return m
}

// compareVM adds the difference in one VM, which is in one of the plans at least.
func (d *Difference) compareVM(vm string, before, after *VMPlan) {
	if before != nil && after != nil && before.Rules != after.Rules {
		d.Rules = append(d.Rules, RulesChange{vm, before.Rules, after.Rules})
	}
	was, is := stays(before), stays(after)
	for _, id := range after.ids() {
		stayed, known := was[id]
		d.add(Item{vm, id}, known, stayed, is[id])
	}
	for _, id := range before.ids() {
		if _, there := is[id]; !there {
			d.Vanished = append(d.Vanished, Item{vm, id})
		}
	}
}

// ids lists the points of a VM, those that go first; none of a VM that is not in the plan.
func (p *VMPlan) ids() []string {
	if p == nil {
		return nil
	}
	return slices.Concat(p.Go, p.Stay)
}

// add files a point of the newer plan.
func (d *Difference) add(it Item, known, stayed, stays bool) {
	switch {
	case !known && stays:
		d.Appeared = append(d.Appeared, it)
	case !stays && (!known || stayed):
		d.GoNow = append(d.GoNow, it)
	case known && !stayed && stays:
		d.StayNow = append(d.StayNow, it)
	}
}

// stays maps the ids of the points of a plan to whether they stay.
func stays(vm *VMPlan) map[string]bool {
	m := map[string]bool{}
	if vm == nil {
		return m
	}
	for _, id := range vm.Go {
		m[id] = false
	}
	for _, id := range vm.Stay {
		m[id] = true
	}
	return m
}

// Empty tells that nothing changed.
func (d Difference) Empty() bool {
	return len(d.Rules)+len(d.GoNow)+len(d.StayNow)+len(d.Appeared)+len(d.Vanished) == 0
}

// String says it for people, a line for each change; "" when nothing changed.
func (d Difference) String() string {
	var b strings.Builder
	for _, r := range d.Rules {
		fmt.Fprintf(&b, "VM %s: rules were %s, are %s\n", r.VM, cmp.Or(r.Old, "none"), cmp.Or(r.New, "none"))
	}
	for _, part := range []struct {
		what string
		list []Item
	}{
		{"would go now", d.GoNow}, {"stays now", d.StayNow}, {"is new and stays", d.Appeared}, {"is not there any more", d.Vanished},
	} {
		for _, it := range part.list {
			fmt.Fprintf(&b, "VM %s: point %s %s\n", it.VM, it.Point, part.what)
		}
	}
	return b.String()
}
