package snapshotchain

import (
	"cmp"
	"context"
	"sort"
	"strconv"
	"strings"
	"time"

	"livemount/internal/errs"
)

// Resolve finds the point that VM@TIME names: latest, RFC 3339 or a date with optional time (the newest
// point at or before it, in zone), -N (N points before the latest), 2h-ago, or id:PREFIX.
func (s *Store) Resolve(ctx context.Context, ref string, now time.Time, zone *time.Location) (VM, Point, error) {
	name, spec, ok := strings.Cut(ref, "@")
	if !ok || spec == "" || name == "" {
		return VM{}, Point{}, errs.WithTry(errs.New(errs.Invalid, "%q does not name a point", ref), "%s@latest, or a date, -3, 2h-ago, id:PREFIX behind the @", cmp.Or(name, "VM"))
	}
	vm, err := s.VM(name)
	if err != nil {
		return VM{}, Point{}, err
	}
	vm, points, err := s.PointsOf(ctx, vm.ID)
	if err != nil {
		return VM{}, Point{}, err
	}
	p, err := choose(points, spec, now, zone)
	if err != nil {
		return VM{}, Point{}, errs.WithTry(errs.New(errs.KindOf(err), "%s: %w", ref, err), "mountctl points %s", name)
	}
	return vm, *p, nil
}

// choose finds the point among points, oldest first.
func choose(points []Point, spec string, now time.Time, zone *time.Location) (*Point, error) {
	if len(points) == 0 {
		return nil, errs.New(errs.NotFound, "the VM has no points")
	}
	if prefix, ok := strings.CutPrefix(spec, "id:"); ok {
		return byID(points, prefix)
	}
	if spec == "latest" {
		return &points[len(points)-1], nil
	}
	if digits, ok := strings.CutPrefix(spec, "-"); ok {
		return before(points, digits)
	}
	at, err := ParseTime(spec, now, zone)
	if err != nil {
		return nil, err
	}
	i := sort.Search(len(points), func(i int) bool { return points[i].Time.After(at) })
	if i == 0 {
		return nil, errs.New(errs.NotFound, "the oldest point is of %s", points[0].Time.In(zone).Format(time.RFC3339))
	}
	return &points[i-1], nil
}

func byID(points []Point, prefix string) (*Point, error) {
	var found *Point
	for i := range points {
		if !strings.HasPrefix(points[i].ID.String(), strings.ToLower(prefix)) {
			continue
		}
		if found != nil {
			return nil, errs.New(errs.Invalid, "several points begin with %q", prefix)
		}
		found = &points[i]
	}
	if found == nil || prefix == "" {
		return nil, errs.New(errs.NotFound, "no point begins with %q", prefix)
	}
	return found, nil
}

func before(points []Point, digits string) (*Point, error) {
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil {
		return nil, errs.New(errs.Invalid, "-%s is not a number of points", digits)
	}
	if n >= uint64(len(points)) {
		return nil, errs.New(errs.NotFound, "the oldest point is -%d", len(points)-1)
	}
	return &points[uint64(len(points))-1-n], nil
}

// timeLayouts are accepted beside RFC 3339. A date or a minute names its end, so that what was made in it
// is found.
func timeLayouts() []struct {
	layout string
	unit   time.Duration
} {
	return []struct {
		layout string
		unit   time.Duration
	}{
		{"2006-01-02T15:04:05", time.Second}, {"2006-01-02 15:04:05", time.Second},
		{"2006-01-02T15:04", time.Minute}, {"2006-01-02 15:04", time.Minute},
		{"2006-01-02T15", time.Hour}, {"2006-01-02 15", time.Hour},
	}
}

// ParseTime reads RFC 3339, a date with optional time in zone, or DURATION-ago (units s, m, h, d, w).
func ParseTime(spec string, now time.Time, zone *time.Location) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339Nano, spec); err == nil {
		if !strings.Contains(spec, ".") {
			t = t.Add(time.Second - 1) // whole seconds are shown, points have fractions
		}
		return t, nil
	}
	if d, ok := strings.CutSuffix(spec, "-ago"); ok {
		return ago(d, now)
	}
	if t, err := time.ParseInLocation("2006-01-02", spec, zone); err == nil {
		return t.AddDate(0, 0, 1).Add(-1), nil
	}
	for _, l := range timeLayouts() {
		if t, err := time.ParseInLocation(l.layout, spec, zone); err == nil {
			return t.Add(l.unit - 1), nil
		}
	}
	return time.Time{}, errs.New(errs.Invalid, "%q is not a time: use latest, a date, a date with time, RFC 3339, -N, 2h-ago or id:PREFIX", spec)
}

func ago(text string, now time.Time) (time.Time, error) {
	bad := errs.New(errs.Invalid, "%q is not a duration: use a number and s, m, h, d or w, as in 2h-ago", text)
	if text == "" {
		return time.Time{}, bad
	}
	num, unit := text[:len(text)-1], text[len(text)-1]
	n, err := strconv.ParseUint(num, 10, 32)
	if err == nil && unit == 'd' {
		return now.AddDate(0, 0, -int(n)), nil
	}
	if err == nil && unit == 'w' {
		return now.AddDate(0, 0, -7*int(n)), nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return time.Time{}, bad
	}
	return now.Add(-d), nil
}
