// Package e2e uses the disks of real mounts as a guest and its programs would: partitions, file systems,
// databases, and the tools that come with them.
package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"livemount/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m, nil)) }

// started is a running daemon with a new store, and a folder for everything else.
func started(t *testing.T) (*harness.Daemon, string) {
	t.Helper()
	harness.NeedRoot(t)
	dir := harness.Dir(t)
	d := harness.New(t, filepath.Join(dir, "store"), "--log-level", "warn")
	d.Start()
	return d, dir
}
