package retention

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"livemount/internal/errs"
)

// MaxCount is the largest number that a rule may have: eleven years of hours.
const MaxCount = 100_000

// Dialect says how the rules of a set work together.
type Dialect uint8

const (
	// Sequential applies the rules one behind the other, as Proxmox Backup's prune: within, last, hourly, daily,
	// weekly, monthly, yearly. A rule keeps the newest point of each bucket, for as many buckets as it says, but
	// a bucket that has a point kept by a rule before it is passed over and not counted; nor can a rule have a
	// point back that an earlier one left as not the newest of its bucket. daily=7,weekly=4 is the last seven days and
	// four weeks before them. Proxmox has no within; it is the first rule here, and what it keeps is covered, so
	// that within=14d,daily=7 is fourteen days of everything and then seven days. Pinned points take no part: they
	// stay and are not counted, as Proxmox's protected snapshots.
	// Source: proxmox-backup, pbs-datastore/src/prune.rs (mark_selections, compute_prune_info).
	Sequential Dialect = iota
	// Independent lets each rule look at all points, as restic's forget; a point stays when any rule keeps it.
	// daily=7,weekly=4 is the last seven days, and the newest points of this week and the three before it.
	// Pinned points are counted as others are, as snapshots with restic's --keep-tag. It follows restic 0.14: since
	// 0.16 restic also keeps the oldest snapshot while a rule has places left, which is not done here.
	// Source: restic, internal/restic/snapshot_policy.go (ApplyPolicy).
	Independent
)

// String is the name of the dialect in rules.
func (d Dialect) String() string {
	switch d {
	case Sequential:
		return "sequential"
	case Independent:
		return "independent"
	default:
		return "dialect " + strconv.Itoa(int(d))
	}
}

// ParseDialect is the reverse of String. The error is errs.Invalid.
func ParseDialect(text string) (Dialect, error) {
	for _, d := range []Dialect{Sequential, Independent} {
		if d.String() == text {
			return d, nil
		}
	}
	return 0, errs.WithTry(errs.New(errs.Invalid, "%s is not a dialect", quote(text)), "write dialect=sequential or dialect=independent")
}

// Rules say what is kept of one VM. A count of zero is no such rule; the zero Rules keep everything.
//
// Buckets without a point are not counted: daily=7 is seven days that have points.
// An hour is what clocks in the zone show: the hour that occurs twice when daylight saving time ends is one
// bucket two hours long, and the one that is left out in spring is none. Both restic and Proxmox Backup do this,
// as they compare year, month, day and hour of the local time.
// Rules are compared by String, not with ==.
type Rules struct {
	Last    int // newest points
	Hourly  int // hours, the newest point of each; so on
	Daily   int
	Weekly  int // weeks of ISO 8601, Monday to Sunday
	Monthly int
	Yearly  int
	// Within keeps all points that are less than this older than the newest good point that is not in the
	// future. It does not run on when no points are made any more.
	Within  Span
	Zone    *time.Location // where days begin; from time.LoadLocation, nil is UTC
	Dialect Dialect
}

// count is a rule with a number.
type count struct {
	name string
	n    *int
}

// counts lists the rules with a number in their order of application.
func (r *Rules) counts() [ruleCount]count {
	return [ruleCount]count{
		{"last", &r.Last}, {"hourly", &r.Hourly}, {"daily", &r.Daily},
		{"weekly", &r.Weekly}, {"monthly", &r.Monthly}, {"yearly", &r.Yearly},
	}
}

// Empty tells that there is no rule: everything is kept.
func (r Rules) Empty() bool {
	for _, c := range r.counts() {
		if *c.n > 0 {
			return false
		}
	}
	return !r.Within.set()
}

// Validate refuses, with errs.Invalid, what Parse could not have made. The zero Rules are valid.
func (r Rules) Validate() error {
	for _, c := range r.counts() {
		if *c.n < 0 || *c.n > MaxCount {
			return badCount(c.name, strconv.Itoa(*c.n))
		}
	}
	if r.Within != (Span{}) && (!r.Within.set() || !r.Within.bounded()) {
		return badSpan(fmt.Sprintf("%+v", r.Within))
	}
	if r.Dialect > Independent {
		_, err := ParseDialect(r.Dialect.String())
		return err
	}
	if r.zone() == time.Local || r.zone().String() == "" {
		return badZone(r.zone().String())
	}
	return nil
}

func (r Rules) zone() *time.Location {
	if r.Zone == nil {
		return time.UTC
	}
	return r.Zone
}

// String is the canonical text, which Parse reads: rules in their order of application, then zone and dialect,
// which are always named. It is "" when there is no rule.
func (r Rules) String() string {
	if r.Empty() {
		return ""
	}
	var list []string
	for _, f := range r.fields() {
		list = append(list, f.name+"="+f.text)
	}
	return strings.Join(list, ",")
}

// fields lists what is set, and zone and dialect, as text.
func (r Rules) fields() []field {
	var list []field
	for _, c := range r.counts() {
		if *c.n != 0 {
			list = append(list, field{c.name, strconv.Itoa(*c.n), true})
		}
	}
	if r.Within.set() {
		list = append(list, field{"within", r.Within.String(), false})
	}
	return append(list, field{"zone", r.zone().String(), false}, field{"dialect", r.Dialect.String(), false})
}
