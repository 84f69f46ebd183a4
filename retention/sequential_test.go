package retention

import (
	"testing"
	"time"
)

// sequentialCase was worked by hand: what stays of the history, newest first, with its reasons.
type sequentialCase struct {
	name, rules string
	history     []string
	want        []string
}

func sequentialCases() []sequentialCase {
	year := []string{
		"2024-03-13 22:00", "2024-03-12 22:00", "2024-03-11 22:00", // Wednesday to Monday, W11
		"2024-03-10 22:00", "2024-03-09 22:00", // Sunday and Saturday, W10
		"2024-03-03 22:00", "2024-02-29 22:00", // Sunday and Thursday, W09
		"2024-02-25 22:00", "2024-01-31 22:00", "2023-12-31 22:00", "2023-06-01 22:00",
	}
	return []sequentialCase{
		{
			"the example of Proxmox Backup's administration guide", "daily=1,weekly=3",
			[]string{"2019-12-04T13:20:37Z", "2019-12-03T09:35:01Z", "2019-11-22T11:54:47Z", "2019-11-21T12:36:25Z", "2019-11-10T10:42:20Z"},
			[]string{
				"2019-12-04T13:20:37Z: newest good point; daily 1 of 1 (2019-12-04)",
				"2019-11-22T11:54:47Z: weekly 1 of 3 (2019-W47)",
				"2019-11-10T10:42:20Z: weekly 2 of 3 (2019-W45)",
			},
		},
		{
			"a point that weekly left is not monthly's: February 29 is in the week of March 3", "daily=2,weekly=2,monthly=1,yearly=1", year,
			[]string{
				"2024-03-13 22:00: newest good point; daily 1 of 2 (2024-03-13)", "2024-03-12 22:00: daily 2 of 2 (2024-03-12)",
				"2024-03-10 22:00: weekly 1 of 2 (2024-W10)", "2024-03-03 22:00: weekly 2 of 2 (2024-W09)",
				"2024-02-25 22:00: monthly 1 of 1 (2024-02)", "2023-12-31 22:00: yearly 1 of 1 (2023)",
			},
		},
		{
			"without weekly it is", "daily=2,monthly=1", year,
			[]string{
				"2024-03-13 22:00: newest good point; daily 1 of 2 (2024-03-13)", "2024-03-12 22:00: daily 2 of 2 (2024-03-12)",
				"2024-02-29 22:00: monthly 1 of 1 (2024-02)",
			},
		},
		{
			"the day of the last point is covered", "last=1,daily=1",
			[]string{"2024-03-13 22:00", "2024-03-13 10:00", "2024-03-12 22:00", "2024-03-12 10:00", "2024-03-11 10:00"},
			[]string{"2024-03-13 22:00: newest good point; last 1 of 1", "2024-03-12 22:00: daily 1 of 1 (2024-03-12)"},
		},
		{
			"hours behind the last two", "last=2,hourly=2",
			[]string{"2024-03-13 11:50", "2024-03-13 11:10", "2024-03-13 11:05", "2024-03-13 10:40", "2024-03-13 10:20", "2024-03-12 10:40", "2024-03-12 09:59"},
			[]string{
				"2024-03-13 11:50: newest good point; last 1 of 2", "2024-03-13 11:10: last 2 of 2",
				"2024-03-13 10:40: hourly 1 of 2 (2024-03-13T10)", "2024-03-12 10:40: hourly 2 of 2 (2024-03-12T10)",
			},
		},
		{
			"what within keeps is covered; the point of just its age is not within", "within=2d,daily=2",
			[]string{"2024-06-10 12:00", "2024-06-09 12:00", "2024-06-08 12:00", "2024-06-08 11:00", "2024-06-07 12:00", "2024-06-06 12:00"},
			[]string{
				"2024-06-10 12:00: newest good point; within 2d", "2024-06-09 12:00: within 2d",
				"2024-06-08 12:00: daily 1 of 2 (2024-06-08)", "2024-06-07 12:00: daily 2 of 2 (2024-06-07)",
			},
		},
		{
			"pinned points stay and are not counted", "last=1",
			[]string{"2024-06-10 12:00#", "2024-06-09 12:00", "2024-06-08 12:00", "2024-06-07 12:00#"},
			[]string{"2024-06-10 12:00#: pinned: mounted; newest good point", "2024-06-09 12:00: last 1 of 1", "2024-06-07 12:00#: pinned: mounted"},
		},
		{
			"a point that is not good takes no place, and stays as long as if it were", "last=1,daily=1",
			[]string{"2024-06-10 12:00!", "2024-06-09 12:00", "2024-06-08 12:00!", "2024-06-08 11:00", "2024-06-07 12:00!"},
			[]string{
				"2024-06-10 12:00!: last 1 of 1, counting points that are not good",
				"2024-06-09 12:00: newest good point; last 1 of 1",
				"2024-06-08 11:00: daily 1 of 1 (2024-06-08)",
			},
		},
		{
			"no point is good", "last=1", []string{"2024-06-10 12:00!", "2024-06-09 12:00!"},
			[]string{
				"2024-06-10 12:00!: no good point; last 1 of 1, counting points that are not good", "2024-06-09 12:00!: no good point",
			},
		},
	}
}

func TestSequentialWorkedByHand(t *testing.T) {
	for _, c := range sequentialCases() {
		points := history(t, time.UTC, c.history...)
		same(t, c.name, texts(Decide(points, parse(t, c.rules), newest(points))), c.want)
	}
}

// TestIndependentWorkedByHand uses the same history as its neighbour: each rule begins at the newest point.
func TestIndependentWorkedByHand(t *testing.T) {
	points := history(t, time.UTC, sequentialCases()[1].history...)
	same(t, "independent", texts(Decide(points, parse(t, "daily=2,weekly=2,monthly=2,yearly=2,dialect=independent"), newest(points))), []string{
		"2024-03-13 22:00: newest good point; daily 1 of 2 (2024-03-13); weekly 1 of 2 (2024-W11); monthly 1 of 2 (2024-03); yearly 1 of 2 (2024)",
		"2024-03-12 22:00: daily 2 of 2 (2024-03-12)",
		"2024-03-10 22:00: weekly 2 of 2 (2024-W10)",
		"2024-02-29 22:00: monthly 2 of 2 (2024-02)",
		"2023-12-31 22:00: yearly 2 of 2 (2023)",
	})
}

func TestPinsAreCountedIndependently(t *testing.T) {
	points := history(t, time.UTC, "2024-06-10 12:00#", "2024-06-09 12:00")
	same(t, "independent", texts(Decide(points, Rules{Last: 1, Dialect: Independent}, newest(points))), []string{
		"2024-06-10 12:00#: pinned: mounted; newest good point; last 1 of 1",
	})
}

// TestPointsFromTheFutureDoNotPushOutTheNewest: a clock was wrong, and last=1 is taken by its point.
func TestPointsFromTheFutureDoNotPushOutTheNewest(t *testing.T) {
	points := history(t, time.UTC, "2034-06-10 12:00", "2024-06-09 12:00", "2024-06-08 12:00")
	now := at(t, "2024-06-09 13:00", time.UTC)
	same(t, "last", texts(Decide(points, Rules{Last: 1}, now)), []string{
		"2034-06-10 12:00: last 1 of 1", "2024-06-09 12:00: newest good point",
	})
	same(t, "within", texts(Decide(points, Rules{Within: Span{Hours: 2}, Dialect: Independent}, now)), []string{
		"2034-06-10 12:00: within 2h", "2024-06-09 12:00: newest good point; within 2h",
	})
}
