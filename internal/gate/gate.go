// Package gate shares the machine between guests and background work.
//
// What guests ask for never waits here; it is only noted. Work in the background (ingest, collection, scrubbing, read-ahead)
// is cut into pieces, and each piece holds a slot while it runs. There are as many slots as cores while no
// guest asks for anything, and half as many, at least one, while guests do; these rest a third of the time: so guests
// keep half of the machine. When
// there are not enough slots, classes get them in proportion to their weights (stride scheduling: Waldspurger, 1995),
// so that each makes progress.
package gate

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"livemount/internal/clock"
)

// Class is a kind of work in the background.
type Class int

// The classes.
const (
	Ingest Class = iota
	Collect
	Scrub
	Ahead
	classes
)

// weight is how much of the slots a class gets beside others that wait.
func (c Class) weight() float64 {
	switch c {
	case Ingest:
		return 8
	case Ahead:
		return 4
	case Collect:
		return 2
	default:
		return 1
	}
}

// Options of a Gate. Clock is required.
type Options struct {
	Clock clock.Clock
	Slots int           // default: one for each core
	Quiet time.Duration // guests count as there for so long after they asked for something; default 100 ms
}

// Gate hands out slots. A nil Gate never makes anybody wait. Its methods may be called from several goroutines.
type Gate struct {
	o     Options
	guest atomic.Int64 // Unix nanoseconds of when a guest last asked for something

	mu      sync.Mutex // guards what is below
	used    int
	running [classes]int
	waiting [classes][]chan struct{} // first come, first served
	pass    [classes]float64         // seconds of slots that a class had, over its weight
	had     [classes]time.Duration
	left    [classes]time.Time // when a piece of it ended last
}

// New returns a Gate with all slots free.
func New(o Options) *Gate {
	if o.Slots <= 0 {
		o.Slots = runtime.GOMAXPROCS(0)
	}
	if o.Quiet <= 0 {
		o.Quiet = 100 * time.Millisecond
	}
	return &Gate{o: o}
}

// Guest notes that a guest asks for something.
func (g *Gate) Guest() {
	if g != nil {
		g.guest.Store(g.o.Clock.Now().UnixNano())
	}
}

// Enter waits for a slot. The caller calls leave when its piece of work is done; it must not wait for another slot
// before.
func (g *Gate) Enter(ctx context.Context, c Class) (leave func(), err error) {
	if g == nil {
		return func() {}, ctx.Err()
	}
	if leave, ok := g.TryEnter(c); ok {
		return leave, nil
	}
	turn := g.queue(c)
	select {
	case <-turn:
		return g.leaver(c), nil
	case <-ctx.Done():
		g.giveUp(c, turn)
		return nil, ctx.Err()
	}
}

// TryEnter takes a slot when there is one that nobody waits for.
func (g *Gate) TryEnter(c Class) (leave func(), ok bool) {
	if g == nil {
		return func() {}, true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.used >= g.limit() || g.anyWaits() {
		return nil, false
	}
	g.take(c)
	return g.leaver(c), true
}

// limit is how many slots there are now.
func (g *Gate) limit() int {
	if g.guests() {
		return max(1, g.o.Slots/2)
	}
	return g.o.Slots
}

// guests says whether a guest asked for something just now.
func (g *Gate) guests() bool {
	return g.o.Clock.Now().UnixNano()-g.guest.Load() < int64(g.o.Quiet)
}

// maxRest bounds how long a slot rests.
const maxRest = 50 * time.Millisecond

func (g *Gate) anyWaits() bool {
	for c := range g.waiting {
		if len(g.waiting[c]) > 0 {
			return true
		}
	}
	return false
}

// take gives the class a slot. The caller holds mu.
func (g *Gate) take(c Class) {
	g.join(c)
	g.used++
	g.running[c]++
}

// absent is after how long what a class left unused does not count any more.
const absent = time.Second

// join lets a class begin where the others are, unless it was here a moment ago.
func (g *Gate) join(c Class) {
	if g.running[c] == 0 && len(g.waiting[c]) == 0 && g.o.Clock.Now().Sub(g.left[c]) > absent {
		g.pass[c] = max(g.pass[c], g.least())
	}
}

// least is how far the class is that is behind all others which are there.
func (g *Gate) least() float64 {
	least, found := 0.0, false
	for c := range g.pass {
		if (g.running[c] > 0 || len(g.waiting[c]) > 0) && (!found || g.pass[c] < least) {
			least, found = g.pass[c], true
		}
	}
	return least
}

func (g *Gate) leaver(c Class) func() {
	began := g.o.Clock.Now()
	return func() {
		took := max(g.o.Clock.Now().Sub(began), time.Microsecond)
		if g.guests() {
			// A slot rests behind each piece: what a piece leaves behind for others to do, such as writing to the disk and
			// compaction, has to come out of the same half.
			clock.Sleep(context.Background(), min(took/2, maxRest)) // nothing ends it early
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		g.pass[c] += took.Seconds() / c.weight()
		g.had[c] += took
		g.left[c] = g.o.Clock.Now()
		g.used--
		g.running[c]--
		g.dispatch()
	}
}

// dispatch gives free slots to those that wait. The caller holds mu.
func (g *Gate) dispatch() {
	for g.used < g.limit() {
		next := -1
		for c := range g.waiting {
			if len(g.waiting[c]) > 0 && (next < 0 || g.pass[c] < g.pass[next]) {
				next = c
			}
		}
		if next < 0 {
			return
		}
		turn := g.waiting[next][0]
		g.waiting[next] = g.waiting[next][1:]
		g.used++
		g.running[next]++
		close(turn)
	}
}

func (g *Gate) queue(c Class) chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.join(c)
	turn := make(chan struct{})
	g.waiting[c] = append(g.waiting[c], turn)
	g.dispatch() // the last may have left meanwhile
	return turn
}

// giveUp takes a turn back, also one that came just now.
func (g *Gate) giveUp(c Class, turn chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, t := range g.waiting[c] {
		if t == turn {
			g.waiting[c] = append(g.waiting[c][:i:i], g.waiting[c][i+1:]...)
			return
		}
	}
	g.used--
	g.running[c]--
	g.dispatch()
}

// Had returns for how long pieces of a class held slots.
func (g *Gate) Had(c Class) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.had[c]
}
