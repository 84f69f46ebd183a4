package crash

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"testing"

	"livemount/server/api"
	"livemount/test/harness"
)

// powerCheck compares a store after a power cut with the story.
type powerCheck struct {
	*story
	cut int64
	d   *harness.Daemon

	looked bool
	points []string            // that were there at the first look
	disks  map[string][][]byte // of the mounts at the first look
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
	disks := k.lookAtMounts(t)
	same := func(a, b [][]byte) bool { return slices.EqualFunc(a, b, slices.Equal) }
	if k.looked && !maps.EqualFunc(disks, k.disks, same) {
		t.Error("the disks of the mounts have changed")
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

// lookAtMounts compares the mounts with those that must and can be there. It returns what their disks hold.
func (k *powerCheck) lookAtMounts(t *testing.T) map[string][][]byte {
	t.Helper()
	told := map[string]*toldMount{}
	for _, m := range k.mounts {
		told[m.id] = m
	}
	disks := map[string][][]byte{}
	for _, seen := range k.d.Mounts() {
		m := told[seen.Mount]
		delete(told, seen.Mount)
		if m == nil || m.made.at(k.cut) == never || m.gone.at(k.cut) == surely {
			t.Errorf("mount %+v should not be there; it was told %+v", seen, m)
			continue
		}
		if kept := m.kept.at(k.cut); seen.State == "failed" || kept == never && m.gone.at(k.cut) == never && seen.State != "mounted" ||
			kept == surely && seen.State != "kept" {
			t.Errorf("mount %s, made %v, kept %v, unmounted %v, is %s: %s", m.id, m.made, m.kept, m.gone, seen.State, seen.Reason)
			continue
		}
		disks[m.id] = k.readMount(t, m, seen)
	}
	for _, m := range told {
		if m.made.at(k.cut) == surely && m.gone.at(k.cut) == never {
			t.Errorf("mount %s, made %v, is gone", m.id, m.made)
		}
	}
	return disks
}

// readMount compares the disks of a mount with what was written and synced. One that is kept is resumed for that.
func (k *powerCheck) readMount(t *testing.T, m *toldMount, seen api.Mount) [][]byte {
	t.Helper()
	if seen.State == "kept" {
		req := api.ResumeRequest{Place: api.Place{Path: m.path}}
		if err := k.d.Client.Do(t.Context(), "POST", "/v1/mounts/"+m.id+"/resume", nil, req, &seen); err != nil {
			t.Errorf("resume %s: %v", m.id, err)
			return nil
		}
		defer unmount(t, k.d, m.id, api.UnmountRequest{Keep: true})
	}
	disks, err := readDisks(diskPaths(&seen))
	if err != nil {
		t.Error(err)
		return nil
	}
	least, most := m.bounds(k.cut)
	found, err := prefixAt(cloned(m.base), disks, newHistory(m.seed, sizesOf(disks)), least, most, least)
	if err != nil {
		t.Errorf("mount %s, made %v, history %d: %v", m.id, m.made, m.seed, err)
	} else if !k.looked {
		t.Logf("mount %s: %d writes acknowledged, %d made, %d found", m.id, least, most, found)
	}
	return disks
}
