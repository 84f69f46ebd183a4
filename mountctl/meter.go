package mountctl

import (
	"fmt"
	"io"
	"time"

	"livemount/internal/clock"
)

// meter shows how far an export is.
type meter struct {
	*progress
	clock clock.Clock
	began time.Time
	last  time.Time
}

func newMeter(w io.Writer) *meter {
	m := &meter{progress: newProgress(w), clock: clock.System{}}
	m.began = m.clock.Now()
	m.last = m.began
	return m
}

func (m *meter) elapsed() time.Duration { return m.clock.Now().Sub(m.began) }

// show writes a line when it is time for one.
func (m *meter) show(x *exporter, pos int64) {
	every := 30 * time.Second
	if m.terminal {
		every = 500 * time.Millisecond
	}
	now := m.clock.Now()
	if now.Sub(m.last) < every {
		return
	}
	m.last = now
	rate := float64(x.done.WrittenBytes) / now.Sub(m.began).Seconds()
	left := "?"
	if rate > 0 { // at most: holes take no time
		left = time.Duration(float64(x.size-pos) / rate * float64(time.Second)).Round(time.Second).String()
	}
	m.put(fmt.Sprintf("%s %s: %.0f %%, written %s, %s/s, at most %s left", x.done.VM, x.done.Disk, 100*float64(pos)/float64(max(1, x.size)),
		size(x.done.WrittenBytes), size(int64(rate)), left))
}
