package mountctl

import (
	"fmt"
	"io"
	"strings"
	"time"

	"livemount/server/api"
)

// progress shows how far a job is: a line that is written over on a terminal, else a line each 30 s.
type progress struct {
	w        io.Writer
	terminal bool
	shown    int // characters on the line
	polls    int
}

func newProgress(w io.Writer) *progress { return &progress{w: w, terminal: isTerminal(w)} }

// interval is how many seconds to wait for the job before it is shown again.
func (p *progress) interval() string {
	if p.terminal {
		return "0.5"
	}
	return "30"
}

func (p *progress) show(j *api.Job) {
	p.polls++
	if j.Progress == nil || (!p.terminal && p.polls == 1) {
		return
	}
	p.put(progressLine(j))
}

// put shows a line instead of the last one, or below it.
func (p *progress) put(line string) {
	if !p.terminal {
		fmt.Fprintln(p.w, line)
		return
	}
	fmt.Fprintf(p.w, "\r%s%s", line, strings.Repeat(" ", max(0, p.shown-len(line))))
	p.shown = len(line)
}

func progressLine(j *api.Job) string {
	q := j.Progress
	step := j.State
	if n := len(j.Steps); n > 0 {
		step = j.Steps[n-1].Name
	}
	percent := 0.0
	if q.TotalBytes > 0 {
		percent = 100 * float64(q.LookedBytes) / float64(q.TotalBytes)
	}
	left := "?"
	if q.SecondsLeft != nil {
		left = (time.Duration(*q.SecondsLeft) * time.Second).String()
	}
	return fmt.Sprintf("%s %s: %.0f %%, read %s, changed %s, stored %s, %s/s, %s left", j.Subject, step, percent,
		size(q.ReadBytes), size(q.ChangedBytes), size(q.StoredBytes), size(int64(q.BytesPerSecond)), left)
}

// end clears the line.
func (p *progress) end() {
	if p.terminal && p.shown > 0 {
		fmt.Fprintf(p.w, "\r%s\r", strings.Repeat(" ", p.shown))
		p.shown = 0
	}
}
