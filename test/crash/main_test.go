// Package crash holds the faults of the whole system: the real daemon is killed, the power of its disk is cut,
// its files are spoiled, its disk is filled, its sources fail. Whatever happens, what was acknowledged is there
// and nothing wrong is served.
//
// LIVEMOUNT_SEED replays a random test, LIVEMOUNT_SOAK=1 runs them much longer.
package crash

import (
	"os"
	"testing"

	"livemount/test/harness"
)

func TestMain(m *testing.M) {
	os.Exit(harness.Main(m, map[string]harness.Role{"writer": writerMain, "remove": harness.RemoveMain}))
}
