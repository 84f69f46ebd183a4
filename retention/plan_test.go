package retention

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"livemount/internal/errs"
)

func plan(t testing.TB, now time.Time, vms ...VM) Plan {
	t.Helper()
	p, err := NewPlan(vms, now)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func someVMs(t *testing.T) []VM {
	return []VM{
		{"web", parse(t, "last=2,zone=Europe/Berlin"), history(t, time.UTC, "2026-11-18", "2026-11-20", "2026-11-19", "2026-11-17")},
		{"db", parse(t, "daily=1,dialect=independent"), history(t, time.UTC, "2026-11-18", "2026-11-19#", "2026-11-20")},
		{"new", Rules{}, nil},
		{"all", Rules{}, history(t, time.UTC, "2026-11-18")},
	}
}

// TestPlanIsKnownByItsBytes: a hash that was shown to somebody must mean the same in a later version. This one was
// computed by another program from the description.
func TestPlanIsKnownByItsBytes(t *testing.T) {
	p := plan(t, at(t, "2026-11-20 12:00", time.UTC), someVMs(t)...)
	b, err := json.Marshal(p)
	const want = `{"vms":[{"vm":"all","rules":"","go":[],"stay":["2026-11-18"]},` +
		`{"vm":"db","rules":"daily=1,zone=UTC,dialect=independent","go":["2026-11-18"],"stay":["2026-11-19#","2026-11-20"]},` +
		`{"vm":"web","rules":"last=2,zone=Europe/Berlin,dialect=sequential","go":["2026-11-17","2026-11-18"],"stay":["2026-11-19","2026-11-20"]}],` +
		`"hash":"45659a79f7597a14f2fb710e1ac651c52568bb57ad0178f6571048577c3965a0"}`
	if err != nil || string(b) != want {
		t.Errorf("%s, error %v", b, err)
	}
	if got := fmt.Sprint(p.Go()); got != "[{db 2026-11-18} {web 2026-11-17} {web 2026-11-18}]" {
		t.Error(got)
	}
}

func TestPlanRefusesWhatIsThereTwice(t *testing.T) {
	one := history(t, time.UTC, "2026-11-18")
	for name, vms := range map[string][]VM{
		"VM twice":         {{"a", Rules{}, one}, {"b", Rules{}, one}, {"a", Rules{}, one}},
		"VM without id":    {{"", Rules{}, one}},
		"point twice":      {{"a", Rules{}, slices.Concat(one, one)}},
		"point without id": {{"a", Rules{}, []Point{{}}}},
		"rules":            {{"a", Rules{Last: -1}, one}},
	} {
		if _, err := NewPlan(vms, time.Time{}); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCompareSaysWhatChanged(t *testing.T) {
	now := at(t, "2026-11-20 12:00", time.UTC)
	before := plan(t, now, someVMs(t)...)
	vms := someVMs(t)
	vms[0].Rules.Last = 3                                                                           // one stays
	vms[1].Points = append(vms[1].Points[1:], history(t, time.UTC, "2026-11-21", "2026-11-10!")...) // one is gone, one is new, the newest of before goes
	vms[3].Rules = parse(t, "last=1")                                                               // nothing but the rules
	d := Compare(before, plan(t, now.AddDate(0, 0, 1), vms...))
	const want = `VM all: rules were none, are last=1,zone=UTC,dialect=sequential
VM web: rules were last=2,zone=Europe/Berlin,dialect=sequential, are last=3,zone=Europe/Berlin,dialect=sequential
VM db: point 2026-11-10! would go now
VM db: point 2026-11-20 would go now
VM web: point 2026-11-18 stays now
VM db: point 2026-11-21 is new and stays
VM db: point 2026-11-18 is not there any more
`
	if d.String() != want || d.Empty() {
		t.Errorf("%s", d)
	}
	if d := Compare(before, plan(t, now.AddDate(0, 0, 1), someVMs(t)...)); !d.Empty() || d.String() != "" {
		t.Errorf("a day later: %s", d)
	}
	if d := Compare(Plan{}, before); len(d.GoNow) != 3 || len(d.Appeared) != 5 || len(d.Rules) != 0 {
		t.Errorf("from nothing: %+v", d)
	}
	if d := Compare(before, Plan{}); len(d.Vanished) != 8 {
		t.Errorf("to nothing: %+v", d)
	}
}

// TestHashesDifferJustWhenPlansDo, whatever ids look like and in whatever order the input is.
func TestHashesDifferJustWhenPlansDo(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) []VM {
			var vms []VM
			for _, id := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "1:a", "a1:a"}), 0, 3, rapid.ID[string]).Draw(t, name) {
				vm := VM{ID: id, Rules: Rules{Last: rapid.IntRange(0, 2).Draw(t, "last")}}
				for i, p := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "1:a", "0:1:a", "c"}), 0, 4, rapid.ID[string]).Draw(t, "points") {
					vm.Points = append(vm.Points, Point{ID: p, Time: start.AddDate(0, 0, i), Good: true})
				}
				vms = append(vms, vm)
			}
			return vms
		}
		vms := draw("before")
		before, err := NewPlan(vms, start.AddDate(0, 0, 9))
		if err != nil {
			t.Fatal(err)
		}
		after, err := NewPlan(draw("after"), start.AddDate(0, 0, 9))
		if err != nil {
			t.Fatal(err)
		}
		if d := Compare(before, after); d.Empty() != (before.Hash == after.Hash) {
			t.Fatalf("%v and %v differ by %q", before, after, d)
		}
		slices.Reverse(vms)
		for i := range vms {
			slices.Reverse(vms[i].Points)
		}
		if turned, err := NewPlan(vms, start.AddDate(0, 0, 12)); err != nil || turned.Hash != before.Hash {
			t.Fatalf("turned: %v, error %v", turned, err)
		}
	})
}
