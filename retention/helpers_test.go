package retention

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	z, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

func parse(t testing.TB, text string) Rules {
	t.Helper()
	r, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// at reads a time of the zone, with or without seconds, or RFC 3339.
func at(t testing.TB, text string, z *time.Location) time.Time {
	t.Helper()
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if got, err := time.ParseInLocation(layout, text, z); err == nil {
			return got
		}
	}
	t.Fatalf("%q is not a time", text)
	return time.Time{}
}

// history makes good points that are named by their times. A name that ends with ! is not good, one with # is pinned.
func history(t testing.TB, z *time.Location, times ...string) []Point {
	t.Helper()
	var list []Point
	for _, text := range times {
		p := Point{ID: text, Good: !strings.HasSuffix(text, "!")}
		if strings.HasSuffix(text, "#") {
			p.Pinned = "mounted"
		}
		p.Time = at(t, strings.TrimRight(text, "!#"), z)
		list = append(list, p)
	}
	return list
}

// newest returns the time of the newest point.
func newest(points []Point) time.Time {
	var last time.Time
	for _, p := range points {
		if p.Time.After(last) {
			last = p.Time
		}
	}
	return last
}

// kept returns the ids of kept points, newest first.
func kept(verdicts []Verdict) []string {
	var ids []string
	for _, v := range verdicts {
		if v.Kept {
			ids = append(ids, v.Point.ID)
		}
	}
	return ids
}

// texts returns each kept point with its reasons, newest first, as "ID: reason; reason".
func texts(verdicts []Verdict) []string {
	var list []string
	for _, v := range verdicts {
		if !v.Kept {
			continue
		}
		var reasons []string
		for _, r := range v.Reasons {
			reasons = append(reasons, r.String())
		}
		list = append(list, v.Point.ID+": "+strings.Join(reasons, "; "))
	}
	return list
}

func same(t testing.TB, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %s\nwant %s", what, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
	}
}

func zoneNames() []string {
	return []string{"UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Auckland", "Australia/Lord_Howe"}
}

// someRules draws rules with small numbers, and at least one.
func someRules(t *rapid.T, z *time.Location) Rules {
	r := Rules{Zone: z, Dialect: rapid.SampledFrom([]Dialect{Sequential, Independent}).Draw(t, "dialect")}
	for _, c := range r.counts() {
		if rapid.Bool().Draw(t, c.name+"?") {
			*c.n = rapid.IntRange(1, 5).Draw(t, c.name)
		}
	}
	if r.Empty() || rapid.IntRange(0, 3).Draw(t, "within?") == 0 {
		r.Within = rapid.SampledFrom([]Span{{Hours: 5}, {Days: 3}, {Months: 1}, {Years: 1, Days: 2}, {Months: 2, Hours: 30}}).Draw(t, "within")
	}
	return r
}

// someTimes draws times that are some seconds to some months apart, oldest first, from 2019 on.
func someTimes(t *rapid.T, most int) []time.Time {
	steps := []time.Duration{time.Second, 20 * time.Minute, time.Hour, 9 * time.Hour, 26 * time.Hour, 100 * time.Hour, 900 * time.Hour}
	now := time.Date(2019, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(rapid.IntRange(0, 3*366*24*3600).Draw(t, "start")) * time.Second)
	pace := rapid.IntRange(0, len(steps)-1).Draw(t, "pace")
	var list []time.Time
	for range rapid.IntRange(0, most).Draw(t, "points") {
		step := steps[max(0, min(len(steps)-1, pace+rapid.IntRange(-2, 1).Draw(t, "step")))]
		now = now.Add(step + time.Duration(rapid.IntRange(0, int(step/time.Second)).Draw(t, "more"))*time.Second)
		list = append(list, now)
	}
	return list
}

// somePoints names points by their number, in any order.
func somePoints(t *rapid.T, most int, bad, pinned bool) []Point {
	var list []Point
	for i, at := range someTimes(t, most) {
		p := Point{ID: string(rune('A'+i/26)) + string(rune('a'+i%26)), Time: at, Good: true}
		if bad {
			p.Good = rapid.IntRange(0, 3).Draw(t, "good") > 0
		}
		if pinned && rapid.IntRange(0, 5).Draw(t, "pinned") == 0 {
			p.Pinned = "mounted"
		}
		list = append(list, p)
	}
	if len(list) == 0 {
		return nil
	}
	return rapid.Permutation(list).Draw(t, "order")
}
