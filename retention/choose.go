package retention

import "time"

// entry is a point with what choosing needs. Lists of entries are sorted oldest first, so that one can be
// appended; points of one time are in the order of their ids.
type entry struct {
	Point
	keys keys
}

// grade is what the rules say of an entry: which keep it, and as which of how many.
type grade struct {
	by  [ruleCount + 1]bool
	nth [ruleCount]int // 1 is the newest bucket
}

func (g *grade) kept() bool { return g.by != [ruleCount + 1]bool{} }

// chooser grades lists by one set of rules. It holds the memory that it works in.
type chooser struct {
	rules  Rules
	counts [ruleCount]int
	// cut is the time that within reaches back to; every point is behind it when there is none to count from.
	cut time.Time

	dropped           []bool
	covered, included map[int64]bool
}

func newChooser(rules Rules) *chooser {
	c := &chooser{rules: rules, covered: map[int64]bool{}, included: map[int64]bool{}}
	for i, count := range rules.counts() {
		c.counts[i] = *count.n
	}
	return c
}

// grade writes what the rules say of those entries for which takes is true; grades has the length of list.
func (c *chooser) grade(list []entry, grades []grade, takes func(*entry) bool) {
	clear(grades)
	if c.rules.Within.set() {
		for i := range list {
			grades[i].by[ruleWithin] = takes(&list[i]) && list[i].Time.After(c.cut)
		}
	}
	if c.rules.Dialect == Independent {
		c.independent(list, grades, takes)
	} else {
		c.sequential(list, grades, takes)
	}
}

// independent gives each rule the newest points of its newest buckets. A bucket ends where the next point has
// another key.
func (c *chooser) independent(list []entry, grades []grade, takes func(*entry) bool) {
	for rule, places := range c.counts {
		used, last := 0, int64(-1)
		for i := len(list) - 1; i >= 0 && used < places; i-- {
			if !takes(&list[i]) || (rule != ruleLast && list[i].keys[rule] == last) {
				continue
			}
			used++
			last = list[i].keys[rule]
			grades[i].by[rule], grades[i].nth[rule] = true, used
		}
	}
}

// sequential gives each rule what the rules before it left.
func (c *chooser) sequential(list []entry, grades []grade, takes func(*entry) bool) {
	c.dropped = append(c.dropped[:0], make([]bool, len(list))...)
	for rule, places := range c.counts {
		if places <= 0 {
			continue
		}
		clear(c.covered)
		for i := range list {
			if rule != ruleLast && grades[i].kept() {
				c.covered[list[i].keys[rule]] = true
			}
		}
		c.next(rule, list, grades, takes)
	}
}

// next applies one rule: the newest point of each bucket that is not covered is kept, the others of the bucket
// are dropped, which takes them from the rules behind as well.
func (c *chooser) next(rule int, list []entry, grades []grade, takes func(*entry) bool) {
	clear(c.included)
	used := 0
	for i := len(list) - 1; i >= 0; i-- {
		key := list[i].keys[rule]
		if rule == ruleLast {
			key = int64(i) // each point is a bucket
		}
		switch {
		case !takes(&list[i]) || grades[i].kept() || c.dropped[i] || c.covered[key]:
		case c.included[key]:
			c.dropped[i] = true
		case used == c.counts[rule]:
			return
		default:
			used++
			c.included[key] = true
			grades[i].by[rule], grades[i].nth[rule] = true, used
		}
	}
}
