package crash

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"livemount/server/api"
	"livemount/test/harness"
)

// TestFailingSourceLeavesNothing: a disk that shrinks, fails or goes while it is read gives an error and no
// point; one that was replaced is read as it was opened, with a note.
func TestFailingSourceLeavesNothing(t *testing.T) {
	harness.NeedRoot(t)
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	dir := harness.Dir(t)
	d := harness.New(t, filepath.Join(dir, "store"), "--log-level", "warn")
	d.Start()
	for name, c := range map[string]struct {
		fault func(t *testing.T, source string)
		loop  bool
		code  int // 0: a point with a note
		says  string
	}{
		"shrinks": {fault: func(t *testing.T, source string) {
			if err := os.Truncate(source, 1<<20); err != nil {
				t.Fatal(err)
			}
		}, code: 2, says: "bytes when it was opened"},
		"grows": {fault: func(t *testing.T, source string) {
			if err := os.Truncate(source, 400<<20); err != nil {
				t.Fatal(err)
			}
		}, code: 2, says: "bytes when it was opened"},
		"is removed": {fault: func(t *testing.T, source string) {
			if err := os.Remove(source); err != nil {
				t.Fatal(err)
			}
		}, says: "is gone"},
		"is replaced": {fault: func(t *testing.T, source string) {
			harness.WriteSparse(t, source+".new", 1<<20)
			if err := os.Rename(source+".new", source); err != nil {
				t.Fatal(err)
			}
		}, says: "another file"},
		"fails below a loop device": {fault: func(t *testing.T, source string) {
			if err := os.Truncate(source, 1<<20); err != nil {
				t.Fatal(err)
			}
		}, loop: true, code: 14, says: "dmesg"},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVM(t, dir, strings.ReplaceAll(name, " ", "-"), rng, 192<<20)
			e := v.now()
			source := v.sources[0]
			if c.loop {
				v.sources[0] = harness.Loop(t, source, 0, 0)
			}
			files := payload(t, d.Data)
			before := harness.Bytes(t, filepath.Join(d.Data, "containers"))
			cmd := d.Command(append([]string{"backup", v.name, "--output", "json"}, v.diskArgs()...)...)
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			waitForBytes(t, d, filepath.Join(d.Data, "containers"), before+8<<20)
			c.fault(t, source)
			_ = cmd.Wait() // its code is looked at
			if code := cmd.ProcessState.ExitCode(); code != c.code || !strings.Contains(out.String(), c.says) {
				t.Fatalf("exit %d, not %d: %s", code, c.code, out.String())
			}
			if c.code == 0 {
				v.acknowledge(out.String(), e)
				checkPoint(t, d, v.name, v.points[0])
				return
			}
			if now := payload(t, d.Data); strings.Join(now, "") != strings.Join(files, "") {
				t.Errorf("containers before %v, after %v", files, now)
			}
			v.settle(t, d)
		})
	}
}

// TestSecondDaemonIsRefused: one process owns a store; the second one does no harm.
func TestSecondDaemonIsRefused(t *testing.T) {
	dir := harness.Dir(t)
	d := harness.New(t, filepath.Join(dir, "store"))
	d.Start()
	v := newVM(t, dir, "vm", rand.New(rand.NewPCG(harness.Seed(t), 0)), 1<<20)
	var exit *harness.Exit
	if err := harness.New(t, d.Data).TryStart(); !errors.As(err, &exit) || exit.Code != 11 || !strings.Contains(exit.Stderr, "Try: ") {
		t.Fatal(err)
	}
	if ok, err := v.backup(d); !ok {
		t.Fatal(err)
	}
	checkPoint(t, d, "vm", v.points[0])
}

// TestMountFolderMustBeFreeAndEmpty: what cannot be mounted on is refused, and nothing of it is left.
func TestMountFolderMustBeFreeAndEmpty(t *testing.T) {
	harness.NeedRoot(t)
	dir := harness.Dir(t)
	d := harness.New(t, filepath.Join(dir, "store"))
	d.Start()
	v := newVM(t, dir, "vm", rand.New(rand.NewPCG(harness.Seed(t), 0)), 1<<20)
	if ok, err := v.backup(d); !ok {
		t.Fatal(err)
	}
	full := harness.Mkdir(t, dir, "full")
	harness.WriteSparse(t, filepath.Join(full, "file"), 1)
	used := filepath.Join(dir, "used")
	m := d.Mount("vm@latest", used)
	for path, code := range map[string]int{
		full: 2, used: 11, filepath.Join(full, "file"): 2, filepath.Join(dir, "none", "below"): 10, filepath.Join(d.Data, "in"): 2,
		filepath.Join(used, "below"): 11,
	} {
		if r := d.Ctl("mount", "vm@latest", path); r.Code != code {
			t.Errorf("mount on %s: exit %d, not %d: %s", path, r.Code, code, r.Err)
		}
	}
	if list := d.Mounts(); len(list) != 1 || list[0].Mount != m.Mount {
		t.Errorf("mounts: %+v", list)
	}
	f, err := os.Open(m.Disks[0].Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if r := d.Ctl("unmount", used, "--yes"); r.Code != 11 || !strings.Contains(r.Err, "--force") {
		t.Errorf("unmount while a file is open: exit %d: %s", r.Code, r.Err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	var gone api.Mount
	d.Must(&gone, "unmount", used, "--yes")
}
