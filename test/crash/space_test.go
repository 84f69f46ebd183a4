package crash

import (
	"io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"livemount/server/api"
	"livemount/test/harness"
)

// TestSpaceOfKilledIngestComesBack: what a killed ingest wrote is gone when the daemon has started again.
func TestSpaceOfKilledIngestComesBack(t *testing.T) {
	harness.NeedRoot(t)
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	dir := harness.Dir(t)
	d := harness.New(t, filepath.Join(dir, "store"))
	d.Start()
	v := newVM(t, dir, "vm", rng, 160<<20)
	base := newVM(t, dir, "base", rng, 4<<20)
	if ok, err := base.backup(d); !ok {
		t.Fatal(err)
	}
	d.Stop()
	d.Start()
	for range harness.Soak(5, 100) {
		containers := filepath.Join(d.Data, "containers")
		before, files := harness.Bytes(t, containers), payload(t, d.Data)
		var errs errorList
		var client sync.WaitGroup
		client.Go(func() {
			if ok, err := v.backup(d); ok {
				t.Log("the backup was done before the kill")
			} else {
				errs.add(err)
			}
		})
		least := rng.Int64N(60 << 20)
		written := waitForBytes(t, d, containers, before+least)
		d.Kill()
		client.Wait()
		errs.report(t)
		if len(v.points) > 0 {
			t.Fatal("make the disk larger: its backup must not end before the kill")
		}
		d.Start()
		v.settle(t, d)
		after := harness.Bytes(t, containers)
		t.Logf("%d bytes before, %d at the kill, %d after", before, written, after)
		if after > before+8<<10 {
			t.Errorf("%d bytes before, %d after a killed ingest", before, after)
		}
		if now := payload(t, d.Data); !slices.Equal(files, now) {
			t.Errorf("containers before %v, after %v", files, now)
		}
	}
	if ok, err := v.backup(d); !ok {
		t.Fatal(err)
	}
	checkPoint(t, d, "vm", v.points[0])
	checkPoint(t, d, "base", base.points[0])
}

// waitForBytes waits until an ingest has written so much.
func waitForBytes(t *testing.T, d *harness.Daemon, dir string, least int64) int64 {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if n := harness.Bytes(t, dir); n > least {
			return n
		}
		select {
		case <-tick.C:
		case <-d.Exited():
			t.Fatal("the daemon ended by itself")
		case <-t.Context().Done():
			t.Fatal("the ingest wrote nothing")
		}
	}
}

// payload lists the data and map containers with their sizes.
func payload(t *testing.T, store string) []string {
	t.Helper()
	list := map[string]bool{}
	for _, class := range []string{"data", "map"} {
		err := filepath.WalkDir(filepath.Join(store, "containers", class), func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() {
				list[path] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return slices.Sorted(maps.Keys(list))
}

// TestCanceledIngestLeavesNothing: Ctrl-C on mountctl ends the job, and nothing of it is left.
func TestCanceledIngestLeavesNothing(t *testing.T) {
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	dir := harness.Dir(t)
	d := harness.New(t, filepath.Join(dir, "store"))
	d.Start()
	v := newVM(t, dir, "vm", rng, 160<<20)
	containers := filepath.Join(d.Data, "containers")
	before, files := harness.Bytes(t, containers), payload(t, d.Data)
	c := d.Command(append([]string{"backup", "vm"}, v.diskArgs()...)...)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	waitForBytes(t, d, containers, before+4<<20)
	interrupt(t, c)
	if code := c.ProcessState.ExitCode(); code != 17 {
		t.Errorf("exit code %d, not 17", code)
	}
	var jobs api.Jobs
	d.Must(&jobs, "jobs")
	if len(jobs.Jobs) != 1 || jobs.Jobs[0].State != "canceled" {
		t.Errorf("jobs: %+v", jobs.Jobs)
	}
	if after := harness.Bytes(t, containers); after > before+8<<10 || !slices.Equal(files, payload(t, d.Data)) {
		t.Errorf("%d bytes before, %d after", before, after)
	}
	if ok, err := v.backup(d); !ok {
		t.Fatal(err)
	}
	checkPoint(t, d, "vm", v.points[0])

	// A client that is killed cancels nothing: the point is made all the same.
	if err := v.change(rng, 8000); err != nil {
		t.Fatal(err)
	}
	e := v.now()
	c = d.Command(append([]string{"backup", "vm"}, v.diskArgs()...)...)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	waitForBytes(t, d, containers, harness.Bytes(t, containers))
	_ = c.Process.Kill()
	_ = c.Wait() // killed
	harness.Poll(t, "the job of the killed client", func() bool {
		d.Must(&jobs, "jobs")
		return jobs.Jobs[0].Finished()
	})
	if jobs.Jobs[0].State != "done" {
		t.Fatalf("the job of the killed client: %+v", jobs.Jobs[0])
	}
	e.id = jobs.Jobs[0].Result.Point
	checkPoint(t, d, "vm", e)
}
