package retention

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// played is when a point went, and when the point before the one that made it go was made.
type played struct{ prev, at time.Time }

// play makes good points at the rhythm that Verdict.Goes names, applies the rules behind each, and notes when the
// others go. It gives up after steps points.
func play(points []Point, r Rules, now time.Time, steps int) map[string]played {
	var goods []time.Time
	for _, p := range points {
		if p.Good {
			goods = append(goods, p.Time)
		}
	}
	slices.SortFunc(goods, func(a, b time.Time) int { return b.Compare(a) })
	goods = goods[:min(9, len(goods))]
	var gaps []time.Duration
	for i := range goods[1:] {
		gaps = append(gaps, goods[i].Sub(goods[i+1]))
	}
	slices.Sort(gaps)
	gap := gaps[len(gaps)/2]
	next := goods[0].Add(gap)
	if next.Before(now) {
		next = now
	}
	went, list, prev := map[string]played{}, slices.Clone(points), goods[0]
	for range steps {
		list = append(list, Point{ID: "new " + next.String(), Time: next, Good: true})
		j, rest := judge(list, r, next), []Point{}
		for i, e := range j.list {
			if j.kept(i) {
				rest = append(rest, e.Point)
			} else {
				went[e.ID] = played{prev, next}
			}
		}
		list, prev, next = rest, next, next.Add(gap)
	}
	return went
}

// TestGoesIsWhenThePointIsLetGo plays the future point by point. Weeks and months, whose buckets do not lie within
// each other, are not in one set of rules: the estimate may be off by a bucket there.
func TestGoesIsWhenThePointIsLetGo(t *testing.T) {
	zones, steps := zonesOf(t), 300
	rapid.Check(t, func(t *rapid.T) {
		r := someRules(t, rapid.SampledFrom(zones).Draw(t, "zone"))
		if rapid.Bool().Draw(t, "weeks") {
			r.Monthly, r.Yearly = 0, 0
		} else {
			r.Weekly = 0
		}
		if r.Empty() {
			r.Daily = 2
		}
		points := somePoints(t, 25, rapid.Bool().Draw(t, "bad points"), rapid.Bool().Draw(t, "pins"))
		now := newest(points).Add(time.Duration(rapid.IntRange(0, 50).Draw(t, "now")) * time.Hour)
		checkGoes(t, points, r, now, steps)
	})
}

func checkGoes(t *rapid.T, points []Point, r Rules, now time.Time, steps int) {
	verdicts := Decide(points, r, now)
	goods := 0
	for _, v := range verdicts {
		if v.Point.Good {
			goods++
		}
	}
	if goods < 2 {
		return
	}
	went := play(points, r, now, steps)
	for _, v := range verdicts {
		w, gone := went[v.Point.ID]
		switch {
		case !v.Kept || v.Point.Pinned != "":
			if !v.Goes.IsZero() {
				t.Fatalf("%s goes %s", v.Point.ID, v.Goes)
			}
		case !gone || v.Goes.Equal(w.at) || (v.Goes.Equal(now) && w.prev.Before(now)):
		case r.Within != Span{} && v.Goes.After(w.prev) && v.Goes.Before(w.at):
			before := v.Goes.Add(-1)
			if v.Point.Time.After(r.Within.before(v.Goes.In(r.Zone))) || !v.Point.Time.After(r.Within.before(before.In(r.Zone))) {
				t.Fatalf("%s: within does not end at %s", v.Point.ID, v.Goes)
			}
		default:
			t.Fatalf("%s of %s: foreseen to go %s, went %s\nrules %s, now %s", v.Point.ID, v.Point.Time, v.Goes, w.at, r, now)
		}
	}
}

func TestGoesOfDailyPoints(t *testing.T) {
	z := zone(t, "Europe/Berlin")
	points := history(t, z, "2026-11-16 02:00", "2026-11-17 02:00", "2026-11-18 02:00", "2026-11-19 02:00", "2026-11-20 02:00")
	now := at(t, "2026-11-20 10:00", z)
	for _, test := range []struct{ rules, want string }{
		{"last=3", "2026-11-23 2026-11-22 2026-11-21"},
		{"daily=7", "2026-11-27 2026-11-26 2026-11-25 2026-11-24 2026-11-23"},
		{"daily=1,weekly=1", "2026-11-21"},                        // a Friday: the 21st is the newest of its week
		{"last=1,within=36h", "2026-11-23 2026-11-22 2026-11-21"}, // last takes what within lets go
		{"last=1,within=36h,dialect=independent", "2026-11-21 2026-11-20"},
		{"weekly=2,dialect=independent", "2026-11-21"},
	} {
		got := ""
		for _, v := range Decide(points, parse(t, test.rules+",zone=Europe/Berlin"), now) {
			if v.Kept {
				got += " " + v.Goes.In(z).Format("2006-01-02")
			}
		}
		if got != " "+test.want {
			t.Errorf("%s: got%s, want %s", test.rules, got, test.want)
		}
	}
}

func TestWithinEndsAtTheMoment(t *testing.T) {
	points := history(t, time.UTC, "2026-11-18 02:00:07", "2026-11-19 02:00", "2026-11-20 02:00")
	v := Decide(points, Rules{Within: Span{Days: 14, Hours: 1}}, newest(points))
	if want := at(t, "2026-12-02 03:00:07", time.UTC); !v[2].Goes.Equal(want) {
		t.Errorf("goes %s, want %s", v[2].Goes, want)
	}
}

func TestNothingIsForeseenWithoutRhythm(t *testing.T) {
	for name, points := range map[string][]Point{
		"one point":       history(t, time.UTC, "2026-11-20 02:00", "2026-11-19 02:00!"),
		"one time":        {{ID: "a", Good: true}, {ID: "b", Good: true}},
		"from the future": history(t, time.UTC, "2026-11-20 02:00", "2027-11-19 02:00"),
	} {
		for _, v := range Decide(points, Rules{Last: 2}, at(t, "2026-11-20 03:00", time.UTC)) {
			if !v.Kept || !v.Goes.IsZero() {
				t.Errorf("%s: %+v", name, v)
			}
		}
	}
}

// TestForecastIsBounded: points each second, and a rule of a hundred years.
func TestForecastIsBounded(t *testing.T) {
	points := history(t, time.UTC, "2026-11-20 02:00:00", "2026-11-20 02:00:01", "2026-11-20 02:00:02")
	for _, v := range Decide(points, Rules{Last: 2, Yearly: 100}, newest(points))[:2] {
		if v.Goes.IsZero() {
			t.Errorf("a point that is replaced is not foreseen: %+v", v)
		}
	}
	points = append(points, history(t, time.UTC, "2025-11-20 02:00:00")...)
	if v := Decide(points, Rules{Yearly: 100, Dialect: Independent}, newest(points)); !v[3].Kept || !v[3].Goes.IsZero() {
		t.Errorf("a hundred years from now is foreseen: %+v", v[3])
	}
}

func BenchmarkDecide(b *testing.B) {
	r := Rules{Last: 3, Hourly: 24, Daily: 7, Weekly: 5, Monthly: 12, Yearly: 3}
	var points []Point
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range 1000 {
		at := start.Add(time.Duration(i) * time.Hour)
		points = append(points, Point{ID: at.String(), Time: at, Good: true})
	}
	now := newest(points)
	for _, d := range []Dialect{Sequential, Independent} {
		r.Dialect = d
		b.Run(d.String(), func(b *testing.B) {
			for b.Loop() {
				Decide(points, r, now)
			}
		})
		b.Run(d.String()+"/plan", func(b *testing.B) {
			for b.Loop() {
				if _, err := NewPlan([]VM{{"a", r, points}}, now); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
