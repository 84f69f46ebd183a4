package retention

import (
	"os"
	"strings"
	"testing"
	"time"
)

// TestExamplesOfTheDocument: docs/RETENTION.md shows what the rules do with eleven points.
func TestExamplesOfTheDocument(t *testing.T) {
	b, err := os.ReadFile("../docs/RETENTION.md")
	if err != nil {
		t.Fatal(err)
	}
	if text := parse(t, example).String(); !strings.Contains(string(b), text) {
		t.Errorf("%s is not in the document", text)
	}
	points := history(t, time.UTC, "2024-02-29 22:00")
	for day := 4; day <= 13; day++ {
		p := time.Date(2024, 3, day, 22, 0, 0, 0, time.UTC)
		points = append(points, Point{ID: p.String(), Time: p, Good: true})
	}
	sections := strings.SplitAfter(string(b), "**independent**")
	for i, dialect := range []Dialect{Sequential, Independent} {
		r := parse(t, "daily=2,weekly=2,monthly=1")
		r.Dialect = dialect
		verdicts := Decide(points, r, newest(points))
		for _, v := range verdicts {
			var reasons []string
			for _, reason := range v.Reasons {
				if reason.Rule != ReasonNewestGood {
					reasons = append(reasons, reason.String())
				}
			}
			row := "| " + v.Point.Time.Format("January 2") + " | " + strings.Join(reasons, ", ")
			if strings.Contains(sections[i], row) != v.Kept {
				t.Errorf("%s: %q, kept %v", dialect, row, v.Kept)
			}
		}
	}
}
