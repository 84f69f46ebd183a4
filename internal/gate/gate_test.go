package gate

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"livemount/internal/clock"
)

// stepped is a clock that several goroutines may move.
type stepped struct{ ns atomic.Int64 }

func (s *stepped) Now() time.Time      { return time.Unix(0, s.ns.Load()) }
func (s *stepped) Ran() time.Duration  { return time.Duration(s.ns.Load()) }
func (s *stepped) add(d time.Duration) { s.ns.Add(int64(d)) }

func newStepped() *stepped {
	s := &stepped{}
	s.ns.Store(int64(time.Hour))
	return s
}

func enter(t *testing.T, g *Gate, c Class) func() {
	t.Helper()
	leave, err := g.Enter(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return leave
}

func TestGuestsKeepHalfOfTheSlots(t *testing.T) {
	c := newStepped()
	g := New(Options{Clock: c, Slots: 4})
	var held []func()
	for range 4 {
		leave, ok := g.TryEnter(Ingest)
		if !ok {
			t.Fatal("a slot that is free was refused")
		}
		held = append(held, leave)
	}
	if _, ok := g.TryEnter(Ingest); ok {
		t.Fatal("a fifth slot of four")
	}
	g.Guest()
	for i, leave := range held {
		leave()
		_, ok := g.TryEnter(Scrub)
		if ok != (i >= 2) { // two are left to guests
			t.Fatalf("after %d left: %v", i+1, ok)
		}
		if ok {
			break
		}
	}
	c.add(time.Second) // guests are quiet
	for range 2 {
		if _, ok := g.TryEnter(Scrub); !ok {
			t.Fatal("slots did not come back when guests were quiet")
		}
	}
}

// With one slot, classes that always want it get it in proportion to their weights.
func TestClassesShareByWeightAndEachMakesProgress(t *testing.T) {
	c := newStepped()
	g := New(Options{Clock: c, Slots: 1})
	list := []Class{Ingest, Collect, Scrub, Ahead}
	hold := enter(t, g, Scrub)
	var wg sync.WaitGroup
	turns := make(chan Class)
	stop := make(chan struct{})
	for _, class := range append(list, list...) { // two workers each
		wg.Go(func() {
			for {
				leave, err := g.Enter(context.Background(), class)
				if err != nil {
					return
				}
				select {
				case turns <- class:
					c.add(time.Millisecond) // its piece of work
					leave()
				case <-stop:
					leave()
					return
				}
			}
		})
	}
	for { // all wait
		g.mu.Lock()
		n := 0
		for i := range g.waiting {
			n += len(g.waiting[i])
		}
		g.mu.Unlock()
		if n == 2*len(list) {
			break
		}
	}
	hold()
	count := map[Class]int{}
	const rounds = 1500
	for range rounds {
		count[<-turns]++
	}
	close(stop)
	wg.Wait()
	for _, class := range list {
		want := rounds * class.weight() / 15
		if n := float64(count[class]); n < want*0.6 || n > want*1.6 {
			t.Errorf("class %d had %d turns of %d, want about %.0f", class, count[class], rounds, want)
		}
	}
}

func TestWhoGivesUpKeepsNoSlot(t *testing.T) {
	g := New(Options{Clock: newStepped(), Slots: 1})
	leave := enter(t, g, Ingest)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := g.Enter(ctx, Scrub); err == nil {
		t.Fatal("entered without a slot")
	}
	leave()
	enter(t, g, Collect)()
	if g.used != 0 || g.Had(Ingest) == 0 {
		t.Errorf("%d slots are used", g.used)
	}
}

func TestNoGateMakesNobodyWait(t *testing.T) {
	var g *Gate
	g.Guest()
	enter(t, g, Scrub)()
	if _, ok := g.TryEnter(Ahead); !ok {
		t.Error("refused")
	}
}

func BenchmarkGuest(b *testing.B) {
	g := New(Options{Clock: clock.System{}})
	for b.Loop() {
		g.Guest()
	}
}

func BenchmarkEnter(b *testing.B) {
	g := New(Options{Clock: clock.System{}})
	for b.Loop() {
		leave, err := g.Enter(context.Background(), Ingest)
		if err != nil {
			b.Fatal(err)
		}
		leave()
	}
}
