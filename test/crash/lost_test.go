package crash

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"livemount/test/harness"
)

// TestLostFilesHealOrAreTold removes files of a store. What can be made again is; what cannot is an error
// where it was needed, and in status.
func TestLostFilesHealOrAreTold(t *testing.T) {
	harness.NeedRoot(t)
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	s := fillStore(t, rng, true)
	log := "mounts/" + s.mounts[0].id + "/log/"
	for name, c := range map[string]struct {
		remove string // a pattern; every match goes
		first  bool   // only the first match
		heals  bool   // everything is right afterwards
		told   bool   // status knows
	}{
		"metadata":            {remove: "meta", heals: true, told: true},
		"a table":             {remove: "meta/*.sst", first: true, heals: true, told: true},
		"all tables":          {remove: "meta/*.sst", heals: true, told: true},
		"the manifest":        {remove: "meta/MANIFEST", heals: true, told: true},
		"logs of metadata":    {remove: "meta/*.mem", heals: true, told: false},
		"the dedup index":     {remove: "dedup", heals: true},
		"FORMAT":              {remove: "FORMAT", heals: true},
		"jobs":                {remove: "jobs", heals: true},
		"lock and socket":     {remove: "l*", heals: true},
		"a data container":    {remove: "containers/data/*/*", first: true, told: true},
		"a map container":     {remove: "containers/map/*", first: true, heals: true, told: true},
		"a journal container": {remove: "containers/journal/*", first: true, heals: true, told: false}, // all of it is in the metadata
		"the whole journal":   {remove: "containers/journal", heals: true, told: true},
		"all containers":      {remove: "containers", told: true},
		"a copy of a record":  {remove: "mounts/" + s.mounts[0].id + "/record.a", heals: true}, // as if a crash had made only one
		"both copies":         {remove: "mounts/" + s.mounts[0].id + "/record.*", told: true},
		"a segment":           {remove: log + "*.seg", first: true, told: true},
		"all segments":        {remove: log + "*.seg", told: true},
		"the mark":            {remove: log + "mark", heals: true},
		"a checkpoint":        {remove: log + "checkpoint-*", told: true},
		"a log":               {remove: "mounts/" + s.mounts[0].id + "/log", told: true},
	} {
		t.Run(name, func(t *testing.T) {
			lose(t, s, c.remove, c.first, c.heals, c.told)
		})
	}
}

func lose(t *testing.T, s *filledStore, pattern string, first, heals, told bool) {
	c, d := s.clone(t)
	defer c.remove(t, d)
	matches, err := filepath.Glob(filepath.Join(c.dir, pattern))
	if err != nil || len(matches) == 0 {
		t.Fatal("nothing to remove", err)
	}
	if first {
		matches = matches[:1]
	}
	for _, m := range matches {
		if err := os.RemoveAll(m); err != nil {
			t.Fatal(err)
		}
	}
	var exit *harness.Exit
	if err := d.TryStart(); errors.As(err, &exit) {
		if heals || exit.Code != 13 || !strings.Contains(exit.Stderr, c.dir) {
			t.Fatal(exit)
		}
		t.Log(exit)
		return
	} else if err != nil {
		t.Fatal(err)
	}
	y := c.examine(t, d)
	st := d.Status()
	if heals && !y.clean() {
		t.Errorf("%d pages are errors, refused %q, lost %q", y.badPages, y.refused, y.lost)
	}
	if !heals && y.clean() {
		t.Error("everything is right: nothing was lost?")
	}
	if !y.clean() {
		t.Logf("%d pages are errors, refused %q, lost %q", y.badPages, y.refused, y.lost)
	}
	if (told || !y.clean()) && len(st.Damage) == 0 {
		t.Error("status knows no damage")
	}
	t.Logf("status: %.600q", st.Damage)
}
