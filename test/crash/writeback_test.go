package crash

import (
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// host is what else happens on a machine.
type host int

const (
	hostQuiet   host = iota // the kernel writes nothing by itself: what was not synced is in no log
	hostWrites              // it writes files back when it likes, in any order
	hostJournal             // and somebody syncs a file of his own, by which ext4 commits all names and sizes
)

// startHost lets the kernel write files below dir back long before it would, until stop is called.
func startHost(t *testing.T, rng *rand.Rand, dir string, how host) (stop func()) {
	t.Helper()
	end := make(chan struct{})
	var errs errorList
	var actor sync.WaitGroup
	actor.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for how != hostQuiet {
			select {
			case <-end:
				return
			case <-tick.C:
				errs.add(writeBack(rng, dir))
				if how == hostJournal && rng.IntN(10) == 0 {
					errs.add(syncOther(filepath.Join(dir, "other")))
				}
			}
		}
	})
	return func() {
		t.Helper()
		close(end)
		actor.Wait()
		errs.report(t)
	}
}

// writeBack writes one file, without a flush and without its size.
func writeBack(rng *rand.Rand, dir string) error {
	var list []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			list = append(list, path)
		}
		return nil // it may be gone meanwhile
	})
	if err != nil || len(list) == 0 {
		return err
	}
	f, err := os.Open(list[rng.IntN(len(list))])
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
}

func syncOther(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString("somebody else's"); err != nil {
		return err
	}
	return f.Sync()
}
