package retention

import (
	"fmt"
	"slices"
	"sort"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The model works with sets of points and texts of buckets, point by point, and knows nothing of keys or order of
// lists.

// bucketOf is the text of the bucket that the point is in, made of what a calendar shows.
func bucketOf(rule string, p Point, z *time.Location) string {
	local := p.Time.In(z)
	switch rule {
	case "last":
		return p.ID
	case "hourly":
		return local.Format("2 Jan 2006, 3 PM")
	case "daily":
		return local.Format("2 Jan 2006")
	case "weekly": // the week is that of its Thursday
		thursday := local.AddDate(0, 0, 3-(int(local.Weekday())+6)%7)
		return fmt.Sprint(thursday.Year(), (thursday.YearDay()-1)/7)
	case "monthly":
		return local.Format("Jan 2006")
	default:
		return local.Format("2006")
	}
}

func isNewer(a, b Point) bool {
	return a.Time.After(b.Time) || (a.Time.Equal(b.Time) && a.ID > b.ID)
}

// modelWithin tells whether the point is within the span before the newest good one that is not after now.
func modelWithin(p Point, all []Point, r Rules, now time.Time) bool {
	var ref time.Time
	for _, q := range all {
		if q.Good && !q.Time.After(now) && q.Time.After(ref) {
			ref = q.Time
		}
	}
	if ref.IsZero() {
		return true
	}
	l, w := ref.In(r.Zone), r.Within
	from := time.Date(l.Year()-w.Years, l.Month()-time.Month(w.Months), l.Day()-w.Days, l.Hour(), l.Minute(), l.Second(), l.Nanosecond(), r.Zone)
	return p.Time.Sub(from) > -time.Duration(w.Hours)*time.Hour
}

// modelIndependent: a point is kept by a rule when none of its bucket is newer, and less buckets than the rule has
// places are newer.
func modelIndependent(counted []Point, r Rules) map[string]string {
	keep := map[string]string{}
	for _, c := range r.counts() {
		for _, p := range counted {
			newerBuckets, first := map[string]bool{}, true
			for _, q := range counted {
				if isNewer(q, p) {
					b := bucketOf(c.name, q, r.Zone)
					newerBuckets[b] = true
					first = first && b != bucketOf(c.name, p, r.Zone)
				}
			}
			if first && len(newerBuckets) < *c.n {
				keep[p.ID] += fmt.Sprintf("%s %d;", c.name, len(newerBuckets)+1)
			}
		}
	}
	return keep
}

// modelSequential: for each rule sort what nobody claimed yet into buckets, throw away buckets that hold a
// kept point, and claim the newest ones.
func modelSequential(counted []Point, r Rules, within func(Point) bool) map[string]string {
	keep, claimed := map[string]string{}, map[string]bool{}
	for _, p := range counted {
		if within(p) {
			keep[p.ID], claimed[p.ID] = "within;", true
		}
	}
	for _, c := range r.counts() {
		buckets := map[string][]Point{}
		for _, p := range counted {
			if !claimed[p.ID] {
				b := bucketOf(c.name, p, r.Zone)
				buckets[b] = append(buckets[b], p)
			}
		}
		for _, p := range counted {
			if keep[p.ID] != "" {
				delete(buckets, bucketOf(c.name, p, r.Zone))
			}
		}
		var order [][]Point
		for _, b := range buckets {
			sort.Slice(b, func(i, k int) bool { return isNewer(b[i], b[k]) })
			order = append(order, b)
		}
		sort.Slice(order, func(i, k int) bool { return isNewer(order[i][0], order[k][0]) })
		for i, b := range order[:min(*c.n, len(order))] {
			keep[b[0].ID] = fmt.Sprintf("%s %d;", c.name, i+1)
			for _, p := range b {
				claimed[p.ID] = true
			}
		}
	}
	return keep
}

// modelRules is what the rules alone keep of those points for which takes is true.
func modelRules(all []Point, r Rules, now time.Time, takes func(Point) bool) map[string]string {
	var counted []Point
	for _, p := range all {
		if takes(p) {
			counted = append(counted, p)
		}
	}
	within := func(p Point) bool { return r.Within != Span{} && modelWithin(p, all, r, now) }
	if r.Dialect == Sequential {
		return modelSequential(counted, r, within)
	}
	keep := modelIndependent(counted, r)
	for _, p := range counted {
		if within(p) {
			keep[p.ID] = "within;" + keep[p.ID]
		}
	}
	return keep
}

// model says what keeps each point.
func model(all []Point, r Rules, now time.Time) map[string]string {
	counts := func(p Point) bool { return p.Pinned == "" || r.Dialect == Independent }
	good := modelRules(all, r, now, func(p Point) bool { return counts(p) && p.Good })
	asIf := modelRules(all, r, now, counts)
	newest, goods := "", 0
	for _, future := range []bool{true, false} {
		var best Point
		for _, p := range all {
			if p.Good && p.Time.After(now) == future && (best.ID == "" || isNewer(p, best)) {
				best, newest = p, p.ID
			}
		}
	}
	keep := map[string]string{}
	for _, p := range all {
		if p.Good {
			goods++
		}
	}
	for _, p := range all {
		text := ""
		if p.Pinned != "" {
			text += "pinned;"
		}
		if goods == 0 {
			text += "no good point;"
		}
		if p.ID == newest {
			text += "newest good point;"
		}
		if good[p.ID] != "" {
			text += good[p.ID]
		} else if asIf[p.ID] != "" {
			text += "as if good: " + asIf[p.ID]
		}
		keep[p.ID] = text
	}
	return keep
}

// short is a verdict as the model writes it.
func short(v Verdict) string {
	text, asIf := "", false
	for _, r := range v.Reasons {
		if r.CountingBad && !asIf {
			text, asIf = text+"as if good: ", true
		}
		text += r.Rule
		if r.Of > 0 {
			text += fmt.Sprint(" ", r.Nth)
		}
		text += ";"
	}
	return text
}

func TestDecideIsAsTheModelReadsTheRules(t *testing.T) {
	zones := zonesOf(t)
	rapid.Check(t, func(t *rapid.T) {
		r := someRules(t, rapid.SampledFrom(zones).Draw(t, "zone"))
		points := somePoints(t, 40, rapid.Bool().Draw(t, "bad points"), rapid.Bool().Draw(t, "pins"))
		now := newest(points).Add(time.Duration(rapid.IntRange(-100, 100).Draw(t, "now")) * time.Hour)
		want := model(points, r, now)
		for _, v := range Decide(points, r, now) {
			if got := short(v); got != want[v.Point.ID] || v.Kept != (got != "") {
				t.Fatalf("%s at %s: kept %v %q, the model says %q\nrules %s", v.Point.ID, v.Point.Time, v.Kept, got, want[v.Point.ID], r)
			}
		}
	})
}

func zonesOf(t *testing.T) []*time.Location {
	var list []*time.Location
	for _, name := range zoneNames() {
		list = append(list, zone(t, name))
	}
	return list
}

// TestWhatStaysWhateverTheRules also finds that deciding again removes nothing more, and that neither the order of
// points nor damage makes any difference for the worse.
func TestWhatStaysWhateverTheRules(t *testing.T) {
	zones := zonesOf(t)
	rapid.Check(t, func(t *rapid.T) {
		r := someRules(t, rapid.SampledFrom(zones).Draw(t, "zone"))
		points := somePoints(t, 40, true, true)
		now := newest(points).Add(time.Duration(rapid.IntRange(-50, 50).Draw(t, "now")) * time.Hour)
		verdicts := Decide(points, r, now)
		var rest []Point
		for _, v := range verdicts {
			if v.Kept {
				rest = append(rest, v.Point)
			} else if v.Point.Pinned != "" || len(v.Reasons) > 0 || !v.Goes.IsZero() {
				t.Fatalf("goes: %+v", v)
			}
		}
		if i := slices.IndexFunc(verdicts, func(v Verdict) bool { return v.Point.Good && !v.Point.Time.After(now) }); i >= 0 && !verdicts[i].Kept {
			t.Fatalf("the newest good point goes: %+v", verdicts[i])
		}
		if again := kept(Decide(rest, r, now)); !slices.Equal(again, kept(verdicts)) {
			t.Fatalf("decided again: %v, first %v", again, kept(verdicts))
		}
		if turned := kept(Decide(rapid.Permutation(points).Draw(t, "another order"), r, now)); !slices.Equal(turned, kept(verdicts)) {
			t.Fatalf("in another order: %v, first %v", turned, kept(verdicts))
		}
	})
}

func TestDamageTakesNoLifeTime(t *testing.T) {
	zones := zonesOf(t)
	rapid.Check(t, func(t *rapid.T) {
		r := someRules(t, rapid.SampledFrom(zones).Draw(t, "zone"))
		points := somePoints(t, 40, true, false)
		now := newest(points)
		whole := slices.Clone(points)
		for i := range whole {
			whole[i].Good = true
		}
		left := kept(Decide(points, r, now))
		for _, id := range kept(Decide(whole, r, now)) {
			if !slices.Contains(left, id) {
				t.Fatalf("%s goes because points are damaged", id)
			}
		}
	})
}

func TestWithoutRulesNothingGoes(t *testing.T) {
	points := history(t, time.UTC, "2020-01-01", "2020-01-02!", "2020-01-02 10:00", "2020-01-02 10:01")
	for _, v := range Decide(points, Rules{Zone: zone(t, "Asia/Kolkata"), Dialect: Independent}, newest(points)) {
		if !v.Kept || v.Reasons[0].String() != "no rules" || !v.Goes.IsZero() {
			t.Errorf("%+v", v)
		}
	}
	if got := Decide(nil, Rules{Last: 1}, time.Time{}); len(got) != 0 {
		t.Errorf("verdicts on no points: %v", got)
	}
}
