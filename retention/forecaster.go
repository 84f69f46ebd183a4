package retention

import (
	"sort"
	"time"
)

// forecaster lets assumed points push the kept ones out. Each new item enters at the newest end of a row of
// stages; the item that a stage has no more place for goes to the next one. The sequential dialect is one row,
// the independent one is a row for each rule. An item costs a few steps, however many are kept.
type forecaster struct {
	rules     Rules
	now       time.Time
	first     time.Time // of the assumed points
	rows      [][]stage
	held      []int       // how many rows hold the point
	goes      []time.Time // when the last row let it go
	left      int         // points that are held by a row
	prev, cur time.Time   // of the items that were fed last
}

func newForecaster(rules Rules, now, first time.Time, points int) *forecaster {
	f := &forecaster{rules: rules, now: now, first: first, held: make([]int, points), goes: make([]time.Time, points)}
	for i := range f.goes {
		f.goes[i] = first
	}
	var stages []stage
	if rules.Within.set() {
		stages = append(stages, stage{rule: ruleWithin})
	}
	for rule, c := range rules.counts() {
		if *c.n > 0 {
			stages = append(stages, stage{rule: rule, places: *c.n})
		}
	}
	f.rows = [][]stage{stages}
	if rules.Dialect == Independent {
		f.rows = nil
		for _, s := range stages {
			f.rows = append(f.rows, []stage{s})
		}
	}
	return f
}

// feed lets the item into each row.
func (f *forecaster) feed(it item) {
	f.prev, f.cur = f.cur, it.at
	if it.of >= 0 {
		f.held[it.of] = len(f.rows)
		f.left++
	}
	for _, row := range f.rows {
		f.enter(row, it, it.at, nil)
	}
}

// enter lets the item into the first stage of the row that does not find its bucket covered by a neighbour: newer,
// the oldest of the stages before, or the newest of a stage that was passed. When no stage takes it, it goes at
// the time given.
func (f *forecaster) enter(row []stage, it item, at time.Time, newer *item) {
	var passed *item
	for len(row) > 0 && (row[0].same(it, newer) || row[0].same(it, passed)) {
		if newest := row[0].newest(); newest != nil {
			passed = newest
		}
		row = row[1:]
	}
	if len(row) == 0 {
		f.leave(it, at)
		return
	}
	f.supersede(row, it)
	s := &row[0]
	s.items = append(s.items, it)
	for f.overfull(s) {
		out := s.items[0]
		s.items = s.items[1:]
		at := f.cur
		if s.rule == ruleWithin {
			at = f.exact(out)
		}
		f.enter(row[1:], out, at, &s.items[0])
	}
}

// supersede drops what is in one bucket of the first stage with the newer item: an item of that stage, or of a
// later one whose buckets begin elsewhere.
func (f *forecaster) supersede(row []stage, it item) {
	for i := range row {
		s := &row[i]
		if row[0].same(it, s.newest()) {
			f.leave(*s.newest(), f.cur)
			s.items = s.items[:len(s.items)-1]
		}
	}
}

// overfull tells whether the stage lets its oldest item go, now that there is a new point. The newest stays.
func (f *forecaster) overfull(s *stage) bool {
	if s.rule == ruleWithin {
		return len(s.items) > 1 && !f.within(s.items[0], f.cur)
	}
	return len(s.items) > s.places
}

// within tells whether the item is covered by Within when a point is made at the time given.
func (f *forecaster) within(it item, made time.Time) bool {
	return it.at.After(f.rules.Within.before(made.In(f.rules.zone())))
}

// leave counts down the rows that hold the item and notes when the last let it go. What leaves while kept points
// are fed stays until there is a new one.
func (f *forecaster) leave(it item, at time.Time) {
	if it.of < 0 {
		return
	}
	f.held[it.of]--
	if f.held[it.of] > 0 {
		return
	}
	f.left--
	if !f.cur.Before(f.first) {
		f.goes[it.of] = at
	}
}

// exact is the time between the last two items at which Within lets the item go, not before now.
func (f *forecaster) exact(it item) time.Time {
	after := sort.Search(int(f.cur.Sub(f.prev)), func(d int) bool { return !f.within(it, f.prev.Add(time.Duration(d))) })
	at := f.prev.Add(time.Duration(after))
	if at.Before(f.now) {
		return f.now
	}
	return at
}

// item is a kept point, or one that is assumed to be made, on its way through the rules.
type item struct {
	at   time.Time
	keys keys
	of   int // index in the judgement's list, -1 when assumed
}

// stage is one rule and the items that it keeps, oldest first.
type stage struct {
	rule   int
	places int // of a rule with a number
	items  []item
}

// newest returns nil for a stage that keeps nothing.
func (s *stage) newest() *item {
	if len(s.items) == 0 {
		return nil
	}
	return &s.items[len(s.items)-1]
}

// same tells whether the two are in one bucket of the stage's rule.
func (s *stage) same(a item, b *item) bool {
	return b != nil && s.rule != ruleWithin && s.rule != ruleLast && a.keys[s.rule] == b.keys[s.rule]
}
