package snapshotchain

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// setClock is a machine's clock that can be set, beside a running time that cannot.
type setClock struct {
	wall time.Time
	ran  time.Duration
}

func (c *setClock) Now() time.Time     { return c.wall }
func (c *setClock) Ran() time.Duration { return c.ran }

func (c *setClock) run(d time.Duration) { c.wall, c.ran = c.wall.Add(d), c.ran+d }

// Whatever somebody sets the machine's clock to: the store's advances at least as the machine runs, at most (1 + rate)
// times as fast, and never goes back.
func TestStoreClockCannotBeSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &setClock{wall: time.Unix(1_800_000_000, 0), ran: time.Hour}
		rate := rapid.Float64Range(0, 3).Draw(t, "rate")
		s := newStoreClock(c, rate, time.Time{})
		at, _ := s.now()
		for range 30 {
			c.wall = c.wall.Add(time.Duration(rapid.Int64Range(-int64(1000*time.Hour), int64(1000*time.Hour)).Draw(t, "set")))
			before := at
			if rapid.Bool().Draw(t, "restart") { // what was kept is a while ago
				lost := time.Duration(rapid.Int64Range(0, int64(time.Minute)).Draw(t, "lost"))
				c.ran += lost
				s = newStoreClock(c, rate, at)
			}
			ran := time.Duration(rapid.Int64Range(0, int64(10*time.Hour)).Draw(t, "run"))
			c.run(ran)
			at, _ = s.now()
			most := ran + time.Duration(float64(ran)*rate) + time.Microsecond
			if d := at.Sub(before); d < ran || d > most {
				t.Fatalf("%s while the machine ran %s at rate %v", d, ran, rate)
			}
		}
	})
}

func TestStoreClockCatchesUpAfterDowntime(t *testing.T) {
	c := &setClock{wall: time.Unix(1_800_000_000, 0)}
	s := newStoreClock(c, 1, c.wall.Add(-5*time.Hour))
	if _, ahead := s.now(); ahead != 5*time.Hour {
		t.Errorf("the machine is ahead by %s", ahead)
	}
	c.run(2 * time.Hour)
	if _, ahead := s.now(); ahead != 3*time.Hour {
		t.Errorf("after two hours by %s", ahead)
	}
	c.run(20 * time.Hour)
	if at, ahead := s.now(); ahead != 0 || !at.Equal(c.wall) {
		t.Errorf("in the end by %s", ahead)
	}
}

// A lock holds while the clock of the machine is set ahead, also over a restart and when the file with the store's
// time is lost; it ends when the machine has run for long enough.
func TestLockIsNotOpenedByTheClockOfTheMachine(t *testing.T) {
	dir, c := t.TempDir(), &setClock{wall: time.Unix(1_800_000_000, 0)}
	open := func() *Store {
		s, err := Open(t.Context(), Options{Dir: dir, FS: vfs.OS{}, Clock: c})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	p := putPages(t, s, "web", false, 1)
	putPages(t, s, "web", false, 2)
	start := c.wall
	if err := s.Lock(t.Context(), &p, start.Add(48*time.Hour)); err != nil {
		t.Fatal(err)
	}
	c.wall = c.wall.AddDate(10, 0, 0)
	refused := func(when string) {
		t.Helper()
		if err := s.Expire(t.Context(), "web", p.ID); !errs.Is(err, errs.Denied) {
			t.Fatalf("%s: %v", when, err)
		}
		if err := s.Remove(t.Context(), "web"); !errs.Is(err, errs.Denied) {
			t.Fatalf("remove, %s: %v", when, err)
		}
		if err := s.Lock(t.Context(), &p, start.Add(47*time.Hour)); !errs.Is(err, errs.Denied) && !errs.Is(err, errs.Invalid) {
			t.Fatalf("shorter, %s: %v", when, err)
		}
	}
	refused("the clock is ten years ahead")
	c.run(20 * time.Hour)
	refused("the machine ran 20 hours, and the clock caught up with 20")
	s.Close(t.Context())
	s = open()
	refused("it was opened again")
	s.Close(t.Context())
	if err := vfs.RemoveAll(vfs.OS{}, dir+"/clock"); err != nil {
		t.Fatal(err)
	}
	s = open()
	refused("its file is lost")
	s.Close(t.Context())
	if err := vfs.RemoveAll(vfs.OS{}, dir+"/clock"); err != nil {
		t.Fatal(err)
	}
	if err := vfs.RemoveAll(vfs.OS{}, dir+"/meta"); err != nil {
		t.Fatal(err)
	}
	s = open()
	defer s.Close(t.Context())
	refused("the metadata is lost as well")
	c.run(24 * time.Hour)
	if err := s.Expire(t.Context(), "web", p.ID); err != nil {
		t.Fatalf("after 44 hours and as many of catching up: %v", err)
	}
}
