package retention

import (
	"strconv"
	"strings"
	"time"

	"livemount/internal/errs"
)

// maxSpanYears bounds a Span; what is further away is a slip of the finger.
const maxSpanYears = 1000

// Span is a length of time on the calendar, as restic's --keep-within takes it. The zero Span is no rule.
// A week is seven days.
type Span struct{ Years, Months, Days, Hours int }

// spanUnit is a letter of a Span's text. The order is that of the text.
type spanUnit struct {
	letter byte
	times  int // how many of *n one of it is
	n      *int
}

func (s *Span) units() []spanUnit {
	return []spanUnit{
		{'y', 1, &s.Years}, {'m', 1, &s.Months}, {'w', 7, &s.Days}, {'d', 1, &s.Days}, {'h', 1, &s.Hours},
	}
}

// ParseSpan reads 2y5m7d3h: years y, months m (not minutes), weeks w, days d, hours h, each at most once and
// in this order. restic has no w and takes any order. Errors are errs.Invalid and say what to write.
func ParseSpan(text string) (Span, error) {
	var s Span
	rest, units := text, s.units()
	for rest != "" {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		n, err := strconv.ParseUint(rest[:digits], 10, 31)
		if err != nil || digits == len(rest) {
			return Span{}, badSpan(text)
		}
		for len(units) > 0 && units[0].letter != rest[digits] {
			units = units[1:]
		}
		if len(units) == 0 || n > maxSpanYears*366*24 {
			return Span{}, badSpan(text)
		}
		*units[0].n += int(n) * units[0].times
		rest, units = rest[digits+1:], units[1:]
	}
	if !s.set() || !s.bounded() {
		return Span{}, badSpan(text)
	}
	return s, nil
}

func badSpan(text string) error {
	err := errs.New(errs.Invalid, "%s is not a length of time", quote(text))
	return errs.WithTry(err, "write numbers with y, m (months), w, d or h in this order, up to %d years, as in 14d or 2y5m7d3h", maxSpanYears)
}

// String is the text that ParseSpan reads: 2y5m7d3h, weeks as days; "" for the zero Span.
func (s Span) String() string {
	var b strings.Builder
	for _, u := range s.units() {
		if u.letter != 'w' && *u.n != 0 {
			b.WriteString(strconv.Itoa(*u.n) + string(u.letter))
		}
	}
	return b.String()
}

// set tells whether the span is a rule: nothing is negative, and something is not zero.
func (s Span) set() bool {
	return min(s.Years, s.Months, s.Days, s.Hours) >= 0 && max(s.Years, s.Months, s.Days, s.Hours) > 0
}

func (s Span) bounded() bool {
	const year = 366 * 24
	hours := float64(s.Years)*year + float64(s.Months)*year/12 + float64(s.Days)*24 + float64(s.Hours)
	return hours <= maxSpanYears*year
}

// before is the start of the span that ends at t, in the time zone of t. Years, months and days are counted on
// the calendar, as restic does: a month before March 31 is "February 31", which is March 3.
func (s Span) before(t time.Time) time.Time {
	return t.AddDate(-s.Years, -s.Months, -s.Days).Add(-time.Duration(s.Hours) * time.Hour)
}
