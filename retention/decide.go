package retention

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Point is a point of one VM.
type Point struct {
	ID   string // unique within the VM
	Time time.Time
	// Good says that the point can be relied on. One that is not is damaged, or was not consistent when it was made.
	Good bool
	// Pinned is the reason why the point cannot go, such as a mount; "" when it can.
	Pinned string
}

// Verdict is what the rules say of one point.
type Verdict struct {
	Point   Point
	Kept    bool
	Reasons []Reason // all that keeps the point; none for one that may go
	// Goes estimates when the point will no longer be kept; the zero time when that is not to be foreseen, and
	// for points that may go now. It assumes that good points go on being made at the rhythm of the last nine
	// (the median of the times between them, the greater of two in the middle), the next one now if it is late, that
	// rules are applied whenever one was made, and that pins stay. What the next 300,000 points do not push out
	// is not foreseen, nor is anything while a good point is dated in the future.
	// A point that Within keeps to the last goes at the exact time at which it is older than that; the next point,
	// without which it stays, may come a little later. Months do not begin where weeks do: where weekly and
	// monthly rules meet the estimate can be off by a bucket.
	Goes time.Time
}

// Names of reasons. The others are the names of rules: last, hourly, daily, weekly, monthly, yearly, within.
const (
	ReasonNoRules    = "no rules"
	ReasonNoGood     = "no good point"
	ReasonNewestGood = "newest good point"
	ReasonPinned     = "pinned"
)

// Reason is one cause to keep a point.
type Reason struct {
	Rule    string
	Nth, Of int // of a rule with a number: this is the Nth newest of its Of places; else zero
	// Detail is the bucket (2026-11-20T14, 2026-11-20, 2026-W47, 2026-11, 2026), the length of within, or why the
	// point is pinned.
	Detail string
	// CountingBad says that the rule keeps the point when those that are not good are counted as if they were.
	CountingBad bool
}

// String is the reason for people, as "daily 3 of 7 (2026-11-20)".
func (r Reason) String() string {
	text := r.Rule
	switch {
	case r.Of > 0 && r.Detail != "":
		text += fmt.Sprintf(" %d of %d (%s)", r.Nth, r.Of, r.Detail)
	case r.Of > 0:
		text += fmt.Sprintf(" %d of %d", r.Nth, r.Of)
	case r.Rule == ReasonPinned:
		text += ": " + r.Detail
	case r.Detail != "":
		text += " " + r.Detail
	}
	if r.CountingBad {
		text += ", counting points that are not good"
	}
	return text
}

// Decide says for each point whether the rules keep it, newest first; points of one time are in falling order of
// their ids, and the first of them counts as the newest. The order of points makes no difference, and they are
// not changed.
// A rule with a number below zero is no rule: call Rules.Validate before.
//
// The newest good point is kept whatever the rules say: the newest that is not after now, or the newest of
// all when each is.
//
// Points that are not good take no place: the rules are applied to the good ones alone. They are applied once
// more to all points as if all were good, and what that keeps stays as well. So a point that is found damaged
// stays as long as it would have otherwise, as somebody may want to save files from it, and the nearest good one
// stays beside it. While no point is good nothing goes.
func Decide(points []Point, rules Rules, now time.Time) []Verdict {
	j := judge(points, rules, now)
	verdicts := make([]Verdict, 0, len(points))
	goes := j.forecast()
	for i := len(j.list) - 1; i >= 0; i-- {
		v := Verdict{Point: j.list[i].Point, Kept: j.kept(i), Reasons: j.reasons(i)}
		if v.Kept && v.Point.Pinned == "" {
			v.Goes = goes[i]
		}
		verdicts = append(verdicts, v)
	}
	return verdicts
}

// judgement is what is known of the points of a VM, oldest first.
type judgement struct {
	rules  Rules
	now    time.Time
	list   []entry
	good   []grade // with good points only
	all    []grade // as if all points were good; good when all are
	newest int     // the newest good point, -1 when no point is good
}

func judge(points []Point, rules Rules, now time.Time) *judgement {
	j := &judgement{rules: rules, now: now, list: entriesOf(points, rules.zone())}
	j.newest = newestGood(j.list, now)
	j.good = make([]grade, len(j.list))
	j.all = j.good
	c := newChooser(rules)
	if j.newest >= 0 && !j.list[j.newest].Time.After(now) {
		c.cut = rules.Within.before(j.list[j.newest].Time.In(rules.zone()))
	}
	c.grade(j.list, j.good, j.takesGood)
	if slices.ContainsFunc(points, func(p Point) bool { return !p.Good }) {
		j.all = make([]grade, len(j.list))
		c.grade(j.list, j.all, j.takesAll)
	}
	return j
}

func entriesOf(points []Point, zone *time.Location) []entry {
	list := make([]entry, len(points))
	for i, p := range points {
		list[i] = entry{Point: p, keys: keysOf(p.Time, zone)}
	}
	slices.SortStableFunc(list, func(a, b entry) int {
		return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.ID, b.ID))
	})
	return list
}

// newestGood finds the newest good entry that is not in the future, else the newest good one, else -1.
func newestGood(list []entry, now time.Time) int {
	found := -1
	for i := len(list) - 1; i >= 0; i-- {
		if !list[i].Good {
			continue
		}
		if !list[i].Time.After(now) {
			return i
		}
		if found < 0 {
			found = i
		}
	}
	return found
}

// takesAll tells whether rules count the point if it is good: the sequential dialect does not count pinned ones.
func (j *judgement) takesAll(e *entry) bool {
	return e.Pinned == "" || j.rules.Dialect == Independent
}

func (j *judgement) takesGood(e *entry) bool { return e.Good && j.takesAll(e) }

func (j *judgement) kept(i int) bool {
	return j.rules.Empty() || j.newest < 0 || i == j.newest || j.list[i].Pinned != "" || j.good[i].kept() || j.all[i].kept()
}

// reasons lists all that keeps entry i.
func (j *judgement) reasons(i int) []Reason {
	var list []Reason
	e := &j.list[i]
	if e.Pinned != "" {
		list = append(list, Reason{Rule: ReasonPinned, Detail: e.Pinned})
	}
	if j.rules.Empty() {
		list = append(list, Reason{Rule: ReasonNoRules})
	}
	if j.newest < 0 {
		list = append(list, Reason{Rule: ReasonNoGood})
	}
	if i == j.newest {
		list = append(list, Reason{Rule: ReasonNewestGood})
	}
	if j.good[i].kept() {
		return append(list, j.ruleReasons(e, &j.good[i], false)...)
	}
	return append(list, j.ruleReasons(e, &j.all[i], true)...)
}

func (j *judgement) ruleReasons(e *entry, g *grade, countingBad bool) []Reason {
	var list []Reason
	if g.by[ruleWithin] {
		list = append(list, Reason{Rule: "within", Detail: j.rules.Within.String(), CountingBad: countingBad})
	}
	local := e.Time.In(j.rules.zone())
	for rule, c := range j.rules.counts() {
		if g.by[rule] {
			list = append(list, Reason{c.name, g.nth[rule], *c.n, bucketText(rule, local), countingBad})
		}
	}
	return list
}
