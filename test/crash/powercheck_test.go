package crash

import (
	"fmt"
	"net/url"
	"slices"
	"testing"

	"livemount/server/api"
	"livemount/test/harness"
)

// powerCheck compares a store after a power cut with the story.
type powerCheck struct {
	*story
	mount *toldMount
	cut   int64
	d     *harness.Daemon

	looked bool
	points []string // that were there at the first look
	disks  [][]byte // of the mount at the first look
}

// look looks at everything. What was there the first time must be there each time.
func (k *powerCheck) look(t *testing.T) {
	t.Helper()
	if s := k.d.Status(); !s.Healthy {
		t.Errorf("read-only %q, damage %q", s.ReadOnly, s.Damage)
	}
	var points []string
	for _, name := range k.vms() {
		points = append(points, k.lookAtVM(t, name)...)
	}
	if k.looked && !slices.Equal(points, k.points) {
		t.Errorf("points were %v, are %v", k.points, points)
	}
	disks := k.lookAtMount(t)
	if k.looked && !slices.EqualFunc(disks, k.disks, slices.Equal) {
		t.Error("the disks of the mount have changed")
	}
	k.looked, k.points, k.disks = true, points, disks
}

// lookAtVM compares the points of a VM or branch with those that must and can be there, and reads them all.
func (k *powerCheck) lookAtVM(t *testing.T, name string) []string {
	t.Helper()
	told := map[string]*toldPoint{}
	there := false
	for _, p := range k.of(name) {
		told[p.want.id] = p
		there = there || p.at(k.cut) == surely
	}
	var list api.Points
	if err := k.d.Client.Do(t.Context(), "GET", "/v1/points", url.Values{"vm": {name}}, nil, &list); err != nil && there {
		t.Errorf("list points of %s: %v", name, err)
	}
	var ids []string
	for i := range list.Points {
		id := list.Points[i].Point
		p := told[id]
		if p == nil || p.at(k.cut) == never {
			t.Errorf("point %d of %s, %s, should not be there: %s", i, name, id, told[id])
			continue
		}
		ids = append(ids, id)
		delete(told, id)
		checkPoint(t, k.d, name, p.want)
		p.checkGuards(t, k.cut, &list.Points[i])
	}
	for _, p := range told {
		if p.at(k.cut) == surely {
			t.Errorf("it was acknowledged and is gone: %s", p)
		}
	}
	return ids
}

func (p *toldPoint) String() string {
	if p == nil {
		return "it was never made"
	}
	return fmt.Sprintf("%s, made %v, expired %v", p.ref(), p.made, p.gone)
}

// checkGuards compares the holds and the lock of a point with what was acknowledged.
func (p *toldPoint) checkGuards(t *testing.T, cut int64, seen *api.Point) {
	t.Helper()
	held := map[string]bool{}
	for _, h := range seen.Holds {
		held[h.Reason] = true
	}
	for _, h := range p.holds {
		if c := h.at(cut); c == surely && !held[h.reason] || c == never && held[h.reason] {
			t.Errorf("%s: hold %q, %v, released %v: there %v", p.ref(), h.reason, h.made, h.ended, held[h.reason])
		}
		delete(held, h.reason)
	}
	if len(held) > 0 {
		t.Errorf("%s: holds that were never made: %v", p.ref(), held)
	}
	switch c := p.lock.at(cut); {
	case c == surely && (seen.LockedUntil == nil || !seen.LockedUntil.Equal(p.until)):
		t.Errorf("%s was locked until %v, and is until %v", p.ref(), p.until, seen.LockedUntil)
	case c == never && seen.LockedUntil != nil:
		t.Errorf("%s is locked until %v", p.ref(), seen.LockedUntil)
	}
}

// refused tries to let points go that are kept.
func (k *powerCheck) refused(t *testing.T) {
	t.Helper()
	for _, p := range k.story.points {
		held := p.lock.at(k.cut) == surely
		for _, h := range p.holds {
			held = held || h.at(k.cut) == surely
		}
		if !held || p.at(k.cut) != surely {
			continue
		}
		if r := k.d.Ctl("expire", p.ref(), "--yes"); r.Code != 11 && r.Code != 12 {
			t.Errorf("expire %s, which is kept: exit %d: %s", p.ref(), r.Code, r.Err)
		}
	}
}

// lookAtMount compares the disks of the mount with what was written and synced. It returns them.
func (k *powerCheck) lookAtMount(t *testing.T) [][]byte {
	t.Helper()
	list, told := k.d.Mounts(), k.mount.made.at(k.cut)
	if len(list) == 0 && told != surely {
		return nil
	}
	if len(list) != 1 || told == never || list[0].Mount != k.mount.id || list[0].State != "mounted" {
		t.Errorf("mounts are %+v; mount %s, %v", list, k.mount.id, k.mount.made)
		return nil
	}
	seen, err := readDisks(diskPaths(&list[0]))
	if err != nil {
		t.Error(err)
		return nil
	}
	least, most := k.mount.bounds(k.cut)
	found, err := prefixAt(cloned(k.mount.base), seen, newHistory(k.mount.seed, sizesOf(seen)), least, most, least)
	if err != nil {
		t.Errorf("history %d: %v", k.mount.seed, err)
	} else if !k.looked {
		t.Logf("writes: %d acknowledged, %d made, %d found", least, most, found)
	}
	return seen
}
