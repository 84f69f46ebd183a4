package retention

import (
	"fmt"
	"time"
)

// The rules in their order of application. Within has no number; the others are at their place in Rules.counts.
const (
	ruleLast = iota
	ruleHourly
	ruleDaily
	ruleWeekly
	ruleMonthly
	ruleYearly
	ruleCount
	ruleWithin = ruleCount
)

// keys are the buckets of a time: for each rule from hourly on a number that is equal for two times just when
// they are in one bucket, and grows with time but where clocks are set back. The key of last is not used.
type keys [ruleCount]int64

func keysOf(t time.Time, zone *time.Location) keys {
	t = t.In(zone)
	year, month, day := t.Date()
	weekYear, week := t.ISOWeek()
	var k keys
	k[ruleYearly] = int64(year)
	k[ruleMonthly] = int64(year)*100 + int64(month)
	k[ruleWeekly] = int64(weekYear)*100 + int64(week)
	k[ruleDaily] = k[ruleMonthly]*100 + int64(day)
	k[ruleHourly] = k[ruleDaily]*100 + int64(t.Hour())
	return k
}

// bucketText names the bucket of t, whose zone is that of the rules: 2026-11-20T14 (an hour), 2026-11-20,
// 2026-W47, 2026-11, 2026; "" for rules without buckets.
func bucketText(rule int, t time.Time) string {
	switch rule {
	case ruleHourly:
		return t.Format("2006-01-02T15")
	case ruleDaily:
		return t.Format("2006-01-02")
	case ruleWeekly:
		year, week := t.ISOWeek()
		return fmt.Sprintf("%04d-W%02d", year, week)
	case ruleMonthly:
		return t.Format("2006-01")
	case ruleYearly:
		return t.Format("2006")
	default:
		return ""
	}
}
