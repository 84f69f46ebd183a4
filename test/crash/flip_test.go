package crash

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"livemount/test/harness"
)

func isEIO(err error) bool { return errors.Is(err, unix.EIO) }

// TestFlippedBytesAreNeverServed spoils files of a store and then looks at everything that the store holds:
// it is right, or it is an error that status knows of, and never something else.
func TestFlippedBytesAreNeverServed(t *testing.T) {
	harness.NeedRoot(t)
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	stores := []*filledStore{fillStore(t, rng, false), fillStore(t, rng, true)}
	sum := &summary{byClass: map[string]map[string]int{}}
	for sum.flips < harness.Soak(300, 20_000) {
		s := stores[rng.IntN(len(stores))]
		seed := rng.Uint64()
		name := fmt.Sprintf("flip %d", seed)
		if running := rng.IntN(5) == 0; running {
			sum.add(spoilRunning(t, s, rand.New(rand.NewPCG(seed, 5))))
		} else {
			sum.add(spoilStopped(t, s, rand.New(rand.NewPCG(seed, 6))))
		}
		if t.Failed() {
			t.Fatal(name)
		}
	}
	sum.log(t)
}

// outcome is what became of some flips.
type outcome struct {
	flips []flip
	what  string // right, healed, errors, refused
	text  string
}

type summary struct {
	flips   int
	byClass map[string]map[string]int
	texts   []string
}

func (s *summary) add(o outcome) {
	s.flips += len(o.flips)
	for _, f := range o.flips {
		if s.byClass[f.class] == nil {
			s.byClass[f.class] = map[string]int{}
		}
		s.byClass[f.class][o.what]++
	}
	if o.what == "refused" {
		s.texts = append(s.texts, fmt.Sprint(o.flips, ": ", o.text))
	}
}

func (s *summary) log(t *testing.T) {
	t.Helper()
	t.Logf("%d places", s.flips)
	for class, n := range s.byClass {
		t.Logf("%-12s %v", class, n)
	}
	for _, text := range s.texts {
		t.Log(text)
	}
}

// spoilStopped flips bytes while no daemon runs, in files that do not stand in for each other.
func spoilStopped(t *testing.T, s *filledStore, rng *rand.Rand) outcome {
	t.Helper()
	c, d := s.clone(t)
	defer c.remove(t, d)
	var o outcome
	for _, group := range groups(s) {
		if rng.IntN(100) < group.percent {
			o.flips = append(o.flips, flipOne(t, rng, c.dir, group.match))
		}
	}
	if len(o.flips) == 0 {
		return o
	}
	var exit *harness.Exit
	if err := d.TryStart(); errors.As(err, &exit) {
		checkRefusal(t, o.flips, exit)
		o.what, o.text = "refused", exit.Stderr
		return o
	} else if err != nil {
		t.Fatal(err)
	}
	o.what, o.text = c.judge(t, d, o.flips)
	if rng.IntN(4) == 0 { // what was found must not be worse after another start
		d.Stop()
		d.Start()
		o.what, o.text = c.judge(t, d, o.flips)
	}
	return o
}

// spoilRunning flips a byte under a daemon that has used its files, looks, and looks again after a restart.
func spoilRunning(t *testing.T, s *filledStore, rng *rand.Rand) outcome {
	t.Helper()
	c, d := s.clone(t)
	defer c.remove(t, d)
	d.Start()
	if y := c.examine(t, d); !y.clean() {
		t.Fatalf("before anything was spoiled: %+v", y)
	}
	group := groups(s)[rng.IntN(len(groups(s)))]
	o := outcome{flips: []flip{flipOne(t, rng, c.dir, group.match)}}
	c.judge(t, d, o.flips)
	if rng.IntN(2) == 0 {
		d.Stop()
	} else {
		d.Kill()
	}
	var exit *harness.Exit
	if err := d.TryStart(); errors.As(err, &exit) {
		checkRefusal(t, o.flips, exit)
		o.what, o.text = "refused", exit.Stderr
		return o
	} else if err != nil {
		t.Fatal(err)
	}
	o.what, o.text = c.judge(t, d, o.flips)
	return o
}

// clone is a copy that may be spoiled. Its mounts are where those of the store were.
func (s *filledStore) clone(t *testing.T) (*filledStore, *harness.Daemon) {
	t.Helper()
	c := *s
	c.dir = filepath.Join(filepath.Dir(s.dir), "copy")
	s.copyTo(t, c.dir)
	return &c, harness.New(t, c.dir, "--log-level", "warn")
}

func (s *filledStore) remove(t *testing.T, d *harness.Daemon) {
	t.Helper()
	if d.Running() {
		d.Kill()
	}
	for _, m := range harness.Mounted(t, filepath.Dir(s.dir)) {
		harness.Run(t, "umount", "-l", m)
	}
	if t.Failed() {
		t.Logf("livemountd said: %s", d.Log())
	}
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
}

// judge looks at everything. What is not right must be known to status.
func (s *filledStore) judge(t *testing.T, d *harness.Daemon, flips []flip) (what, text string) {
	t.Helper()
	y := s.examine(t, d)
	st := d.Status()
	if t.Failed() {
		t.Fatalf("%v", flips)
	}
	switch {
	case y.clean() && st.Healthy:
		return "right", ""
	case y.clean():
		return "healed", strings.Join(st.Damage, "; ")
	case st.Healthy || len(st.Damage) == 0:
		t.Fatalf("%v: %d pages are errors, refused %q, lost %q, and status knows no damage", flips, y.badPages, y.refused, y.lost)
	case len(y.lost) > 0:
		return "lost", fmt.Sprint(y.lost, st.Damage)
	case len(y.refused) > 0:
		return "errors", fmt.Sprint(y.refused)
	}
	return "errors", strings.Join(st.Damage, "; ")
}

// checkRefusal: a daemon that does not start says which file it is about.
func checkRefusal(t *testing.T, flips []flip, e *harness.Exit) {
	t.Helper()
	if e.Code != 13 && e.Code != 18 {
		t.Errorf("%v: %v", flips, e)
	}
	for _, f := range flips {
		if strings.Contains(e.Stderr, filepath.Base(f.path)) {
			return
		}
	}
	t.Errorf("%v: the error does not name the file: %s", flips, e.Stderr)
}

// group is files that do not stand in for those of other groups.
type group struct {
	percent int // of the copies in which one of them is spoiled
	match   func(rel string) bool
}

func groups(s *filledStore) []group {
	below := func(list ...string) func(string) bool {
		return func(rel string) bool {
			return slices.ContainsFunc(list, func(p string) bool { return rel == p || strings.HasPrefix(rel, p+"/") })
		}
	}
	return []group{
		{90, below("containers", "meta", "FORMAT")},
		{80, below(filepath.Join("mounts", s.mounts[0].id))},
		{80, below(filepath.Join("mounts", s.mounts[1].id))},
		{50, below("dedup", "jobs")},
	}
}

// flip is bytes that were spoiled.
type flip struct {
	class string
	path  string
	off   int64
	how   string
}

func (f flip) String() string { return fmt.Sprintf("%s of %s at %d", f.how, f.path, f.off) }

// flipOne spoils a place of one of the files that match: first a class of files, then a file, then a place.
func flipOne(t *testing.T, rng *rand.Rand, dir string, match func(rel string) bool) flip {
	t.Helper()
	classes := map[string][]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if info, _ := e.Info(); err == nil && match(rel) && info.Size() > 0 {
			classes[class(rel)] = append(classes[class(rel)], rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, 0, len(classes))
	for c := range classes {
		names = append(names, c)
	}
	slices.Sort(names)
	c := names[rng.IntN(len(names))]
	rel := classes[c][rng.IntN(len(classes[c]))]
	off, how := spoil(t, rng, filepath.Join(dir, rel))
	return flip{class: c, path: rel, off: off, how: how}
}

// class is the kind of a file.
func class(rel string) string {
	base := filepath.Base(rel)
	switch {
	case strings.HasPrefix(rel, "containers/"):
		return strings.Split(rel, "/")[1]
	case strings.HasSuffix(rel, ".seg"):
		return "segment"
	case strings.HasPrefix(rel, "mounts/"): // record.a, mark, checkpoint-N
		return strings.FieldsFunc(base, func(r rune) bool { return r == '.' || r == '-' })[0]
	default:
		return strings.Split(rel, "/")[0] + filepath.Ext(base)
	}
}

// spoil changes some bytes where the file has data, near its ends more often than elsewhere.
func spoil(t *testing.T, rng *rand.Rand, path string) (int64, string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := harness.DataPages(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(data) == 0 {
		return 0, "nothing"
	}
	r := data[rng.IntN(len(data))]
	off := r[0] + rng.Int64N(r[1]-r[0])
	switch rng.IntN(4) {
	case 0:
		off = r[0] + rng.Int64N(min(256, r[1]-r[0]))
	case 1:
		off = r[1] - 1 - rng.Int64N(min(256, r[1]-r[0]))
	}
	n, how := 1, "a bit"
	switch rng.IntN(4) {
	case 0:
		n, how = 1, "a byte"
	case 1:
		n, how = 16, "16 bytes"
	case 2:
		n, how = 512, "a sector to zeroes"
		off = off / 512 * 512
	}
	b := make([]byte, min(int64(n), r[1]-off))
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	switch how {
	case "a bit":
		b[0] ^= 1 << rng.IntN(8)
	case "a sector to zeroes":
		clear(b)
	default:
		for i := range b {
			b[i] ^= byte(1 + rng.IntN(255))
		}
	}
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
	return off, how
}
