package retention

import (
	"strconv"
	"strings"
	"time"

	"livemount/internal/errs"
)

const (
	maxText = 1000 // bytes of rules as text
	example = "last=3,daily=7,weekly=5,monthly=12,yearly=3,within=14d,zone=Europe/Berlin,dialect=independent"
)

// field is one name and value of rules, from text, JSON or YAML.
type field struct {
	name, text string
	number     bool // the value is a number, not a text, where the form tells them apart
}

// Parse reads rules such as
//
//	last=3,daily=7,weekly=5,monthly=12,yearly=3,within=14d,zone=Europe/Berlin,dialect=independent
//
// in any order, each name at most once, spaces around them allowed. Numbers are 1 to MaxCount; within is read by
// ParseSpan; zone is an IANA name, UTC when it is left out; dialect is sequential when it is left out. At least
// one rule must be there. Errors are errs.Invalid, and their advice (errs.TryOf) says what to write.
func Parse(text string) (Rules, error) {
	if len(text) > maxText {
		return Rules{}, errs.WithTry(errs.New(errs.Invalid, "rules are longer than %d bytes", maxText), "write for example %s", example)
	}
	if strings.TrimSpace(text) == "" {
		return build(nil)
	}
	var list []field
	for item := range strings.SplitSeq(text, ",") {
		name, value, ok := strings.Cut(item, "=")
		if !ok {
			return Rules{}, errs.WithTry(errs.New(errs.Invalid, "%s is not a rule", quote(item)), "write NAME=VALUE with commas between, for example %s", example)
		}
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		list = append(list, field{name, value, isCount(name)})
	}
	return build(list)
}

// build makes rules of fields.
func build(list []field) (Rules, error) {
	var r Rules
	seen := map[string]bool{}
	for _, f := range list {
		if seen[f.name] {
			return Rules{}, errs.WithTry(errs.New(errs.Invalid, "%s is there twice", quote(f.name)), "write it once")
		}
		seen[f.name] = true
		if err := r.put(f); err != nil {
			return Rules{}, err
		}
	}
	if r.Empty() {
		return Rules{}, errs.WithTry(errs.New(errs.Invalid, "there is no rule: nothing would be kept for a reason"),
			"write at least one of last, hourly, daily, weekly, monthly, yearly, within; leave the rules out to keep everything")
	}
	return r, nil
}

// put sets what the field names.
func (r *Rules) put(f field) (err error) {
	if f.number != isCount(f.name) && known(f.name) {
		return errs.WithTry(errs.New(errs.Invalid, "%s: %s has the wrong type", f.name, quote(f.text)),
			"write a number for last, hourly, daily, weekly, monthly, yearly and a text for within, zone, dialect")
	}
	switch f.name {
	case "within":
		r.Within, err = ParseSpan(f.text)
	case "zone":
		r.Zone, err = parseZone(f.text)
	case "dialect":
		r.Dialect, err = ParseDialect(f.text)
	default:
		err = r.putCount(f)
	}
	return err
}

func (r *Rules) putCount(f field) error {
	for _, c := range r.counts() {
		if c.name != f.name {
			continue
		}
		n, err := strconv.ParseUint(f.text, 10, 31)
		if err != nil || n == 0 || n > MaxCount {
			return badCount(f.name, f.text)
		}
		*c.n = int(n)
		return nil
	}
	return errs.WithTry(errs.New(errs.Invalid, "%s is not the name of a rule", quote(f.name)),
		"use last, hourly, daily, weekly, monthly, yearly, within, zone or dialect, for example %s", example)
}

func isCount(name string) bool {
	for _, c := range new(Rules).counts() {
		if c.name == name {
			return true
		}
	}
	return false
}

func known(name string) bool {
	return isCount(name) || name == "within" || name == "zone" || name == "dialect"
}

// parseZone finds the zone in the machine's list of time zones. "Local" is refused: it is another zone elsewhere.
func parseZone(name string) (*time.Location, error) {
	if name == "" || name == "Local" {
		return nil, badZone(name)
	}
	zone, err := time.LoadLocation(name)
	if err != nil {
		return nil, badZone(name)
	}
	return zone, nil
}

func badZone(name string) error {
	return errs.WithTry(errs.New(errs.Invalid, "%s is not a time zone known here", quote(name)),
		"write an IANA name such as zone=Europe/Berlin or zone=UTC; the list is the package tzdata")
}

func badCount(name, text string) error {
	return errs.WithTry(errs.New(errs.Invalid, "%s=%s: not a number from 1 to %d", name, quote(text), MaxCount),
		"write %s=7, or leave %s out when there is no such rule", name, name)
}

// quote shows what somebody wrote, cut short.
func quote(text string) string {
	const most = 60
	if len(text) > most {
		return strconv.Quote(text[:most]) + "..."
	}
	return strconv.Quote(text)
}
