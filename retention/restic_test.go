package retention

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"livemount/test/harness"
)

// repository is one of restic's, with a history for each host.
type repository struct {
	dir     string
	version string
}

// restic runs the program in a time zone.
func (r *repository) restic(tz, input string, args ...string) ([]byte, error) {
	c := exec.Command("restic", append(args, "--no-cache")...)
	c.Env = append(os.Environ(), "TZ="+tz, "RESTIC_REPOSITORY="+r.dir, "RESTIC_PASSWORD=x")
	c.Stdin = strings.NewReader(input)
	var bad strings.Builder
	c.Stderr = &bad
	out, err := c.Output()
	if err != nil {
		err = fmt.Errorf("restic %s: %w\n%s", strings.Join(args, " "), err, bad.String())
	}
	return out, err
}

func makeRepository(t *testing.T) *repository {
	harness.Tools(t, "restic restic")
	r := &repository{dir: harness.MemoryDir(t)}
	out, err := r.restic("UTC", "", "version")
	if err != nil {
		t.Fatal(err)
	}
	r.version = strings.Fields(string(out))[1]
	if _, err := r.restic("UTC", "", "init", "-q"); err != nil {
		t.Fatal(err)
	}
	return r
}

// oldestToo tells that this restic keeps the oldest snapshot while a rule has places left (0.16 and later).
func (r *repository) oldestToo() bool {
	var minor int
	_, err := fmt.Sscanf(r.version, "0.%d", &minor)
	return err != nil || minor >= 16
}

// each runs f for all numbers below n, two at a time, and fails the test with the first error.
func each(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	errors := make([]error, n)
	var wg sync.WaitGroup
	for worker := range 2 {
		wg.Go(func() {
			for i := worker; i < n; i += 2 {
				errors[i] = f(i)
			}
		})
	}
	wg.Wait()
	for _, err := range errors {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// backup makes a snapshot of each point. A time of the hour that occurs twice cannot be given to restic in its own
// zone, so restic is run in a zone with the offset of that time; it stores the offset.
func (r *repository) backup(t *testing.T, host string, points []Point, z *time.Location) {
	t.Helper()
	each(t, len(points), func(i int) error {
		local, tz := points[i].Time.In(z), z.String()
		if _, offset := local.Zone(); offset%3600 == 0 {
			tz = fmt.Sprintf("Etc/GMT%+d", -offset/3600)
		}
		args := []string{"backup", "-q", "--host", host, "--stdin", "--time", local.Format(time.DateTime)}
		if points[i].Pinned != "" {
			args = append(args, "--tag", points[i].Pinned)
		}
		_, err := r.restic(tz, "x", args...)
		return err
	})
}

// forgotten is what restic says of a history.
type forgotten struct {
	Keep, Remove []struct{ Time time.Time }
	Reasons      []struct {
		Snapshot struct{ Time time.Time }
		Matches  []string
		Counters struct{ Last, Hourly, Daily, Weekly, Monthly, Yearly int } // places left; 0.18 does not tell
	}
}

func (r *repository) forget(host string, rules Rules) (forgotten, error) {
	args := []string{"forget", "--dry-run", "--no-lock", "--json", "--group-by", "host", "--host", host, "--keep-tag", "keep"}
	for _, f := range rules.fields() {
		if f.name != "zone" && f.name != "dialect" {
			args = append(args, "--keep-"+f.name, f.text)
		}
	}
	out, err := r.restic(rules.zone().String(), "", args...)
	if err != nil {
		return forgotten{}, err
	}
	var groups []forgotten
	if err := json.Unmarshal(out, &groups); err != nil || len(groups) != 1 {
		return forgotten{}, fmt.Errorf("restic forget said: %w: %s", err, out)
	}
	return groups[0], nil
}

// lines writes what restic keeps, and why, with the place in each rule.
func (f forgotten) lines(rules Rules) []string {
	var list []string
	for _, r := range f.Reasons {
		left := Rules{Last: r.Counters.Last, Hourly: r.Counters.Hourly, Daily: r.Counters.Daily,
			Weekly: r.Counters.Weekly, Monthly: r.Counters.Monthly, Yearly: r.Counters.Yearly}
		line := r.Snapshot.Time.UTC().Format(time.RFC3339)
		for _, m := range r.Matches {
			name, _, counted := strings.Cut(m, " snapshot")
			if counted {
				for i, c := range rules.counts() {
					if c.name == name {
						m = fmt.Sprintf("%s %d of %d", name, *c.n-*left.counts()[i].n, *c.n)
					}
				}
			}
			line += "; " + m
		}
		list = append(list, line)
	}
	return list
}

// asRestic writes verdicts the same way.
func asRestic(verdicts []Verdict) []string {
	var list []string
	for _, v := range verdicts {
		if !v.Kept {
			continue
		}
		line := v.Point.Time.UTC().Format(time.RFC3339)
		for _, r := range v.Reasons {
			switch {
			case r.Rule == ReasonPinned:
				line += "; has tags [keep]"
			case r.Of > 0:
				line += fmt.Sprintf("; %s %d of %d", r.Rule, r.Nth, r.Of)
			case r.Rule == "within":
				line += "; within " + r.Detail
			}
		}
		list = append(list, line)
	}
	return list
}

// resticHistory is a time zone, times that matter in it, and how far apart random ones are on average before them.
type resticHistory struct {
	zone  string
	fixed []string // RFC 3339
	pace  time.Duration
}

func resticHistories() []resticHistory {
	return []resticHistory{
		{"Europe/Berlin", []string{ // the hour from 2 to 3 occurs twice on October 26, and not at all on March 30
			"2025-03-30T00:40:00+01:00", "2025-03-30T01:20:00+01:00", "2025-03-30T01:59:59+01:00", "2025-03-30T03:00:00+02:00",
			"2025-03-30T03:10:00+02:00", "2025-10-26T01:30:00+02:00", "2025-10-26T02:10:00+02:00", "2025-10-26T02:50:00+02:00",
			"2025-10-26T02:05:00+01:00", "2025-10-26T02:45:00+01:00", "2025-10-26T03:00:00+01:00", "2025-10-26T23:59:59+01:00",
			"2025-10-27T00:00:00+01:00",
		}, 5 * time.Hour},
		{"America/New_York", []string{ // week 53 of 2020 reaches to January 3; 2024 begins and ends on days of week 1
			"2020-12-27T12:00:00-05:00", "2020-12-28T00:00:00-05:00", "2020-12-31T23:59:59-05:00", "2021-01-01T00:00:00-05:00",
			"2021-01-03T23:59:59-05:00", "2021-01-04T00:00:00-05:00", "2023-12-31T23:00:00-05:00", "2024-01-01T01:00:00-05:00",
			"2024-02-29T22:00:00-05:00", "2024-03-10T03:00:00-04:00", "2024-12-29T22:00:00-05:00", "2024-12-30T22:00:00-05:00",
		}, 700 * time.Hour},
		{"Asia/Kolkata", []string{"2024-03-30T00:00:00+05:30", "2024-03-31T00:00:00+05:30"}, 22 * time.Hour},
	}
}

func (h resticHistory) points(t *testing.T, rnd *rand.Rand) []Point {
	var list []Point
	for _, text := range h.fixed {
		list = append(list, Point{Time: at(t, text, time.UTC), Good: true})
	}
	end := list[len(list)-1].Time
	for len(list) < 32 {
		end = end.Add(-time.Duration(rnd.Int64N(int64(2*h.pace/time.Second))) * time.Second)
		if !slices.ContainsFunc(list, func(p Point) bool { return p.Time.Equal(end) }) {
			list = append(list, Point{Time: end, Good: true})
		}
	}
	for i := range list {
		list[i].ID = list[i].Time.UTC().Format(time.RFC3339)
		if rnd.IntN(10) == 0 {
			list[i].Pinned = "keep"
		}
	}
	return list
}

// resticRules are random, behind some that matter.
func resticRules(rnd *rand.Rand) []Rules {
	list := []Rules{
		{Last: 3, Hourly: 6, Daily: 7, Weekly: 5, Monthly: 12, Yearly: 3},
		{Hourly: 100}, {Daily: 100}, {Weekly: 100}, {Monthly: 100}, {Yearly: 100},
		{Within: Span{Months: 1}}, {Within: Span{Years: 1, Months: 1, Days: 1, Hours: 1}, Daily: 2},
	}
	for len(list) < 10 {
		var r Rules
		for _, c := range r.counts() {
			*c.n = max(0, rnd.IntN(14)-4)
		}
		if rnd.IntN(2) == 0 {
			r.Within = Span{Days: rnd.IntN(40), Hours: 1 + rnd.IntN(40)}
		}
		list = append(list, r)
	}
	return list
}

// TestIndependentIsAsRestic compares with the program: the same points stay, for the same reasons, each at the same
// place of its rule.
func TestIndependentIsAsRestic(t *testing.T) {
	seed := harness.Seed(t)
	r := makeRepository(t)
	for n, h := range resticHistories() {
		t.Run(h.zone, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, uint64(n)))
			z := zone(t, h.zone)
			points := h.points(t, rnd)
			r.backup(t, h.zone, points, z)
			sets := resticRules(rnd)
			each(t, len(sets), func(i int) error {
				sets[i].Zone, sets[i].Dialect = z, Independent
				return r.compare(h.zone, points, sets[i])
			})
		})
	}
	t.Run("oldest", r.dropsTheOldest)
}

// dropsTheOldest is why the independent dialect has no rule for the oldest point.
func (r *repository) dropsTheOldest(t *testing.T) {
	points := history(t, time.UTC, "2025-01-10 12:00:00", "2025-02-10 12:00:00", "2025-03-10 12:00:00")
	r.backup(t, "oldest", points, time.UTC)
	said, err := r.forget("oldest", Rules{Yearly: 3})
	if err != nil {
		t.Fatal(err)
	}
	if want := map[bool]int{false: 1, true: 2}[r.oldestToo()]; len(said.Keep) != want {
		t.Errorf("restic %s keeps %d of 3 snapshots with --keep-yearly 3, want %d", r.version, len(said.Keep), want)
	}
	if got := kept(Decide(points, Rules{Yearly: 3, Dialect: Independent}, newest(points))); len(got) != 1 {
		t.Errorf("we keep %v", got)
	}
}

// compare says how restic and this package differ on a history.
func (r *repository) compare(host string, points []Point, rules Rules) error {
	said, err := r.forget(host, rules)
	if err != nil {
		return err
	}
	if len(said.Keep)+len(said.Remove) != len(points) || len(said.Keep) != len(said.Reasons) {
		return fmt.Errorf("restic has %d and %d snapshots and %d reasons, of %d", len(said.Keep), len(said.Remove), len(said.Reasons), len(points))
	}
	want, got := said.lines(rules), asRestic(Decide(points, rules, newest(points)))
	if r.oldestToo() {
		want, got = alike(want, points), alike(got, points)
	}
	if !slices.Equal(want, got) {
		return fmt.Errorf("%s\nrestic %s keeps\n  %s\nwe keep\n  %s", rules, r.version, strings.Join(want, "\n  "), strings.Join(got, "\n  "))
	}
	return nil
}

// alike leaves out what a later restic says differently: the oldest point, and places in rules.
func alike(lines []string, points []Point) []string {
	oldest := slices.MinFunc(points, func(a, b Point) int { return a.Time.Compare(b.Time) })
	lines = slices.DeleteFunc(lines, func(line string) bool { return strings.HasPrefix(line, oldest.ID) })
	places := regexp.MustCompile(` \d+ of \d+`)
	for i := range lines {
		lines[i] = places.ReplaceAllString(lines[i], "")
	}
	return lines
}
