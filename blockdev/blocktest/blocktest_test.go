package blocktest_test

import (
	"testing"

	"livemount/blockdev"
	"livemount/blockdev/blocktest"
)

func TestMemConforms(t *testing.T) {
	for _, size := range []int64{64 << 10, 100_001} {
		blocktest.TestDevice(t, func() blockdev.Device { return blockdev.NewMem(size) }, size)
	}
}
