package retention

import (
	"slices"
	"time"
)

const (
	rhythmPoints  = 9       // so many good points tell the rhythm
	maxAssumed    = 300_000 // points that are assumed: 34 years of one each hour
	maxYearsAhead = 1000
)

// forecast estimates when each point of the list goes, if it is kept and not pinned; see Verdict.Goes.
func (j *judgement) forecast() []time.Time {
	next, gap := j.rhythm()
	if gap <= 0 || j.rules.Empty() {
		return make([]time.Time, len(j.list))
	}
	goes := j.run(j.good, next, gap)
	if &j.all[0] == &j.good[0] {
		return goes
	}
	for i, at := range j.run(j.all, next, gap) {
		if at.IsZero() || (!goes[i].IsZero() && at.After(goes[i])) {
			goes[i] = at
		}
	}
	return goes
}

// rhythm returns when the next point is assumed to be made, and the time between two; 0 when there is none.
func (j *judgement) rhythm() (next time.Time, gap time.Duration) {
	var times []time.Time
	for i := len(j.list) - 1; i >= 0 && len(times) < rhythmPoints; i-- {
		if j.list[i].Good {
			times = append(times, j.list[i].Time)
		}
	}
	if len(times) < 2 || times[0].After(j.now) {
		return time.Time{}, 0
	}
	gaps := make([]time.Duration, 0, len(times))
	for i := range times[1:] {
		gaps = append(gaps, times[i].Sub(times[i+1]))
	}
	slices.Sort(gaps)
	gap = gaps[len(gaps)/2]
	next = times[0].Add(gap)
	if next.Before(j.now) {
		next = j.now
	}
	return next, gap
}

// run feeds what the grades keep, then assumed points until none of it is left. What they do not keep goes with
// the next point: nothing but the lack of a newer good point keeps it.
func (j *judgement) run(grades []grade, next time.Time, gap time.Duration) []time.Time {
	f := newForecaster(j.rules, j.now, next, len(j.list))
	for i := range j.list {
		if grades[i].kept() {
			f.feed(item{j.list[i].Time, j.list[i].keys, i})
		}
	}
	for n := 0; f.left > 0 && n < maxAssumed && next.Year() < j.now.Year()+maxYearsAhead; n++ {
		f.feed(item{next, keysOf(next, j.rules.zone()), -1})
		next = next.Add(gap)
	}
	for i := range f.goes {
		if f.held[i] > 0 {
			f.goes[i] = time.Time{}
		}
	}
	return f.goes
}
