package snapshotchain_test

import (
	"context"
	"maps"
	"slices"

	"pgregory.net/rapid"

	"livemount/internal/errs"
)

// expire makes a point invisible, whatever stands on it.
func (m *machine) expire(*rapid.T) {
	vm := rapid.SampledFrom(slices.Sorted(maps.Keys(m.disks))).Draw(m.t, "vm")
	if len(m.points[vm]) == 0 {
		return
	}
	i := rapid.IntRange(0, len(m.points[vm])-1).Draw(m.t, "point")
	err := m.store.Expire(context.Background(), vm, m.points[vm][i].id)
	if m.points[vm][i].held {
		if !errs.Is(err, errs.Busy) {
			m.t.Fatalf("expire a held point: %v", err)
		}
		return
	}
	if err != nil {
		m.t.Fatalf("expire: %v", err)
	}
	m.points[vm] = slices.Delete(slices.Clone(m.points[vm]), i, i+1)
	if _, branch := m.from[vm]; !branch {
		return
	}
	for name := range m.disks[vm] { // who commits lists what changed since the newest that is left
		m.dirty[vm][name] = slices.Sorted(maps.Keys(m.everUsed(vm, name)))
	}
}

// hold holds a point, or releases it.
func (m *machine) hold(*rapid.T) {
	vm := rapid.SampledFrom(slices.Sorted(maps.Keys(m.disks))).Draw(m.t, "vm")
	if len(m.points[vm]) == 0 {
		return
	}
	p := &m.points[vm][rapid.IntRange(0, len(m.points[vm])-1).Draw(m.t, "point")]
	v, err := m.store.VM(vm)
	if err != nil {
		m.t.Fatal(err)
	}
	points, err := m.store.Points(context.Background(), &v)
	if err != nil {
		m.t.Fatal(err)
	}
	for i := range points {
		switch {
		case points[i].ID != p.id:
			continue
		case p.held:
			err = m.store.Release(context.Background(), &points[i], "")
		default:
			err = m.store.Hold(context.Background(), &points[i], "model")
		}
		if err != nil {
			m.t.Fatalf("hold: %v", err)
		}
	}
	p.held = !p.held
}

// scrub reads everything again; nothing is bad.
func (m *machine) scrub(*rapid.T) {
	ctx := context.Background()
	done, err := m.store.Scrub(ctx, 0, func(ctx context.Context, _ int64) error { return ctx.Err() }, nil)
	if err != nil || done.Bad > 0 {
		m.t.Fatalf("scrub: %+v: %v", done, err)
	}
}
