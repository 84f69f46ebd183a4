package crash

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"livemount/test/harness"
)

// cutsPerStory is how many power cuts are tried on one log.
const cutsPerStory = 100

// TestPowerCutLosesNothingAcknowledged cuts the power at any of the writes that reached the disk: a store on
// a real ext4 is worked with while each write and flush of its disk is logged, and what was acknowledged is
// noted with the length of the log at that moment. Then the disk is made again as a cut would leave it,
// mounted, and looked at with the real daemon. LIVEMOUNT_KEEP=DIR keeps the disks that a test failed on.
func TestPowerCutLosesNothingAcknowledged(t *testing.T) {
	harness.NeedRoot(t)
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	for left := harness.Soak(30, 1000); left > 0 && !t.Failed(); left -= cutsPerStory {
		t.Run("story", func(t *testing.T) {
			p := tellStory(t, rng)
			for _, c := range p.cuts(rng, min(left, cutsPerStory)) {
				t.Run(c.String(), func(t *testing.T) { p.try(t, c) })
			}
			p.report(t)
		})
	}
}

// powerCuts is a story that has been told, and the disk it happened on.
type powerCuts struct {
	w      *powerWork
	disk   *loggedDisk
	replay *replayer
	flush  []int64 // entries that are flushes, from the start on
	end    int64
	hurt   int // writes that were lost or torn, in all trials
}

// powerCut is one trial.
type powerCut struct {
	at    int64
	how   loss
	where string // what the disk or the store was doing
	seed  uint64
}

func (c powerCut) String() string { return fmt.Sprintf("%d_%s", c.at, c.how) }

func tellStory(t *testing.T, rng *rand.Rand) *powerCuts {
	t.Helper()
	top := diskDir(t)
	harness.RemoveWhatever(t, top)
	disk := newLoggedDisk(t, top, 448)
	w := &powerWork{
		story: &story{position: disk.position}, rng: rng, top: top,
		d: harness.New(t, filepath.Join(disk.dir, "store"), "--log-level", "warn"),
	}
	w.run(t)
	end, err := disk.position()
	if err != nil {
		t.Fatal(err)
	}
	w.d.Kill()
	unmountAll(t, top, disk.dir)
	p := &powerCuts{w: w, disk: disk, end: end}
	p.replay = newReplayer(t, disk.read(t), disk.log, disk.base)
	for i := disk.start; i < end; i++ {
		if p.replay.log.entries[i].has(entryFlush) {
			p.flush = append(p.flush, i)
		}
	}
	return p
}

// unmountAll ends what livemountd left mounted, and then the file system of its store.
func unmountAll(t *testing.T, top, dir string) {
	t.Helper()
	for _, m := range harness.Mounted(t, top) {
		if m != dir && filepath.Base(m) != "disk" {
			harness.Run(t, "umount", "-l", m)
		}
	}
	harness.Run(t, "umount", dir)
}

// cuts chooses n cuts, in ascending order: one right behind an acknowledgement of each kind, some in the
// middle of collections and expiries, the others anywhere.
func (p *powerCuts) cuts(rng *rand.Rand, n int) []powerCut {
	var list []powerCut
	byKind := map[string][]step{}
	for _, s := range p.w.steps {
		byKind[s.kind] = append(byKind[s.kind], s)
	}
	kinds := slices.Sorted(maps.Keys(byKind))
	for i := range max(len(kinds), n/3) {
		steps := byKind[kinds[i%len(kinds)]]
		list = append(list, powerCut{at: steps[rng.IntN(len(steps))].to})
	}
	for i := range max(4, n/4) {
		list = append(list, p.amid(rng, byKind[[]string{"gc", "expire"}[i%2]]))
	}
	for len(list) < n {
		list = append(list, p.anywhere(rng))
	}
	for i := range list {
		list[i].where, list[i].seed = p.w.under(list[i].at), rng.Uint64()
	}
	slices.SortFunc(list, func(a, b powerCut) int { return cmp.Compare(a.at, b.at) })
	return list
}

// amid cuts in the middle of a step that writes something.
func (p *powerCuts) amid(rng *rand.Rand, steps []step) powerCut {
	steps = slices.DeleteFunc(slices.Clone(steps), func(s step) bool { return s.to-s.from < 2 })
	if len(steps) == 0 {
		return p.anywhere(rng)
	}
	s := steps[rng.IntN(len(steps))]
	return p.spoilt(rng, s.from+1+rng.Int64N(s.to-s.from-1), s.to)
}

// anywhere cuts at any write.
func (p *powerCuts) anywhere(rng *rand.Rand) powerCut {
	return p.spoilt(rng, p.disk.start+rng.Int64N(p.end-p.disk.start+1), p.end)
}

// spoilt is a cut that may hurt what was written since the last flush. As most flushes are of few writes, it
// goes on to where there are some more, often to the moment before they are flushed, but not behind most.
func (p *powerCuts) spoilt(rng *rand.Rand, at, most int64) powerCut {
	c := powerCut{at: at, how: loss(rng.IntN(3))}
	if c.how == lossNone {
		return c
	}
	i, _ := slices.BinarySearch(p.flush, at)
	for i = max(i, 1); i < len(p.flush) && p.flush[i] <= most; i++ {
		if n := p.flush[i] - p.flush[i-1] - 1; n > 1 {
			c.at = p.flush[i] - max(0, rng.Int64N(2*n)-n)
			return c
		}
	}
	return c
}

func (p *powerCuts) report(t *testing.T) {
	t.Helper()
	var bytes int64
	for _, e := range p.replay.log.entries[:p.end] {
		bytes += e.n
	}
	t.Logf("%d entries with %d MiB, %d flushes; %d steps; %d containers were collected; %d writes were lost or torn",
		p.end, bytes>>20, len(p.flush), len(p.w.steps), p.w.collected, p.hurt)
	if p.w.collected == 0 || p.hurt == 0 {
		t.Error("nothing was collected, or nothing was hurt: the story is too short")
	}
}

// try cuts the power, and looks at what is left, before and after a collection.
func (p *powerCuts) try(t *testing.T, c powerCut) {
	rng := rand.New(rand.NewPCG(c.seed, 0))
	image := filepath.Join(p.w.top, "trial")
	hurt := p.replay.cutAt(t, rng, c.at, c.how, image)
	p.hurt += hurt
	t.Logf("%s; %d writes lost or torn", c.where, hurt)
	keep(t, image)
	mountImage(t, image, p.disk.dir)
	d := harness.New(t, p.w.d.Data, "--log-level", "warn")
	d.Start()
	k := &powerCheck{story: p.w.story, cut: c.at, d: d}
	k.look(t)
	d.Must(nil, "gc")
	if rng.IntN(2) == 0 { // nothing is in memory any more
		d.Stop()
		d.Start()
	}
	k.look(t)
	k.refused(t)
	d.Kill()
	unmountAll(t, p.w.top, p.disk.dir)
	if out, err := harness.Try("e2fsck", "-fn", image); err != nil {
		t.Errorf("the file system is damaged, and not by livemountd: %v\n%s", err, out)
	}
}

// keep keeps the disk of a test that fails, as the cut left it, where LIVEMOUNT_KEEP says.
func keep(t *testing.T, image string) {
	t.Helper()
	dir := os.Getenv("LIVEMOUNT_KEEP")
	if dir == "" {
		return
	}
	to := filepath.Join(dir, filepath.Base(t.Name()))
	copySparse(t, image, to)
	t.Cleanup(func() {
		if !t.Failed() {
			_ = os.Remove(to)
		}
	})
}
