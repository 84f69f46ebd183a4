package retention

import (
	"testing"
	"time"
)

func both(t *testing.T, name, rules string, points []Point, want []string) {
	t.Helper()
	for _, dialect := range []string{"sequential", "independent"} {
		verdicts := Decide(points, parse(t, rules+",dialect="+dialect), newest(points))
		same(t, name+", "+dialect, kept(verdicts), want)
	}
}

// TestAnHourThatOccursTwiceIsOne: on October 25, 2026 clocks in Berlin go from 3:00 back to 2:00.
func TestAnHourThatOccursTwiceIsOne(t *testing.T) {
	points := history(t, time.UTC, "2026-10-25T01:30:00+02:00", "2026-10-25T02:10:00+02:00", "2026-10-25T02:50:00+02:00",
		"2026-10-25T02:10:00+01:00", "2026-10-25T02:50:00+01:00", "2026-10-25T03:10:00+01:00")
	both(t, "Berlin", "hourly=9,zone=Europe/Berlin", points, []string{
		"2026-10-25T03:10:00+01:00", "2026-10-25T02:50:00+01:00", "2026-10-25T01:30:00+02:00",
	})
	both(t, "UTC", "hourly=9", points, []string{
		"2026-10-25T03:10:00+01:00", "2026-10-25T02:50:00+01:00", "2026-10-25T02:50:00+02:00", "2026-10-25T01:30:00+02:00",
	})
	both(t, "the day has 25 hours", "daily=9,zone=Europe/Berlin",
		history(t, time.UTC, "2026-10-25T00:00:00+02:00", "2026-10-25T23:59:59+01:00", "2026-10-24T23:59:59+02:00", "2026-10-26T00:00:00+01:00"),
		[]string{"2026-10-26T00:00:00+01:00", "2026-10-25T23:59:59+01:00", "2026-10-24T23:59:59+02:00"})
}

// TestAnHourThatIsLeftOutIsNone: on March 29, 2026 clocks in Berlin go from 2:00 to 3:00.
func TestAnHourThatIsLeftOutIsNone(t *testing.T) {
	points := history(t, time.UTC, "2026-03-29T01:10:00+01:00", "2026-03-29T01:59:00+01:00", "2026-03-29T03:00:00+02:00", "2026-03-29T03:40:00+02:00", "2026-03-29T04:00:00+02:00")
	both(t, "Berlin", "hourly=9,zone=Europe/Berlin", points, []string{
		"2026-03-29T04:00:00+02:00", "2026-03-29T03:40:00+02:00", "2026-03-29T01:59:00+01:00",
	})
}

// TestTwoHoursThatOccurTwice: clocks at Troll station go back by two hours, so that hours alternate: 1, 2, 1, 2.
// restic compares with the point before, Proxmox Backup with all buckets.
func TestTwoHoursThatOccurTwice(t *testing.T) {
	points := history(t, time.UTC, "2026-10-25T01:10:00+02:00", "2026-10-25T02:10:00+02:00", "2026-10-25T01:10:00+00:00", "2026-10-25T02:10:00+00:00")
	for dialect, want := range map[string][]string{
		"sequential":  {"2026-10-25T02:10:00+00:00", "2026-10-25T01:10:00+00:00"},
		"independent": {"2026-10-25T02:10:00+00:00", "2026-10-25T01:10:00+00:00", "2026-10-25T02:10:00+02:00", "2026-10-25T01:10:00+02:00"},
	} {
		same(t, dialect, kept(Decide(points, parse(t, "hourly=9,zone=Antarctica/Troll,dialect="+dialect), newest(points))), want)
	}
}

func TestDaysBeginAtMidnightOfTheZone(t *testing.T) {
	points := history(t, time.UTC, "2026-05-01T21:59:59Z", "2026-05-01T22:00:00Z", "2026-05-01T23:00:00Z")
	both(t, "Berlin", "daily=9,zone=Europe/Berlin", points, []string{"2026-05-01T23:00:00Z", "2026-05-01T21:59:59Z"})
	both(t, "UTC", "daily=9", points, []string{"2026-05-01T23:00:00Z"})
}

// TestWeeksAreThoseOfISO8601: January 1, 2027 is in week 53 of 2026, December 30, 2024 in week 1 of 2025.
func TestWeeksAreThoseOfISO8601(t *testing.T) {
	points := history(t, time.UTC, "2027-01-04", "2027-01-03 23:59:59", "2027-01-01", "2026-12-28", "2026-12-27 23:59:59")
	both(t, "week 53", "weekly=9", points, []string{"2027-01-04", "2027-01-03 23:59:59", "2026-12-27 23:59:59"})
	both(t, "years are not those of weeks", "yearly=9", points, []string{"2027-01-04", "2026-12-28"})
	for day, week := range map[string]string{
		"2020-12-31": "2020-W53", "2021-01-03": "2020-W53", "2021-01-04": "2021-W01", "2024-12-29": "2024-W52", "2024-12-30": "2025-W01",
		"2026-12-31": "2026-W53", "2027-01-01": "2026-W53", "2027-01-04": "2027-W01", "2023-01-01": "2022-W52",
	} {
		points := history(t, time.UTC, day)
		same(t, day, texts(Decide(points, Rules{Weekly: 1}, newest(points))), []string{day + ": newest good point; weekly 1 of 1 (" + week + ")"})
	}
}

// TestWithinCountsOnTheCalendar: a day is what the calendar shows, 23 or 25 hours as well; hours are hours.
func TestWithinCountsOnTheCalendar(t *testing.T) {
	points := history(t, time.UTC, "2026-10-26T02:30:00+01:00", "2026-10-25T02:40:00+01:00", "2026-10-25T02:40:00+02:00", "2026-10-25T02:20:00+02:00")
	newest := "2026-10-26T02:30:00+01:00"
	both(t, "24h", "within=24h,zone=Europe/Berlin", points, []string{newest, "2026-10-25T02:40:00+01:00"})
	both(t, "25h", "within=25h,zone=Europe/Berlin", points, []string{newest, "2026-10-25T02:40:00+01:00", "2026-10-25T02:40:00+02:00"})
	spring := history(t, time.UTC, "2026-03-30T01:30:00+02:00", "2026-03-29T01:40:00+01:00", "2026-03-29T01:20:00+01:00")
	both(t, "23 hours", "within=1d,zone=Europe/Berlin", spring, []string{"2026-03-30T01:30:00+02:00", "2026-03-29T01:40:00+01:00"})
	month := history(t, time.UTC, "2026-03-31", "2026-03-04", "2026-03-03", "2026-03-01")
	both(t, "February 31 is March 3", "within=1m", month, []string{"2026-03-31", "2026-03-04"})
}
