package cache

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
)

func one(string) int64 { return 1 }

func TestLeastRecentlyUsedGoesFirst(t *testing.T) {
	var gone []int
	c := New(2, one, func(k int, _ string) { gone = append(gone, k) })
	c.Put(1, "a")
	c.Put(2, "b")
	if v, err := c.Get(t.Context(), 1, nil); v != "a" || err != nil {
		t.Fatal(v, err)
	}
	c.Put(3, "c")
	if len(gone) != 1 || gone[0] != 2 {
		t.Fatalf("evicted %v, want [2]", gone)
	}
}

func TestConcurrentMissesLoadOnce(t *testing.T) {
	c := New[int](10, one, nil)
	var calls atomic.Int32
	release := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			v, err := c.Get(context.Background(), 7, func() (string, error) {
				calls.Add(1)
				<-release
				return "x", nil
			})
			if v != "x" || err != nil {
				t.Error(v, err)
			}
		})
	}
	close(release)
	wg.Wait()
	if calls.Load() != 1 {
		t.Fatalf("loaded %d times", calls.Load())
	}
}

func TestErrorsAreNotKept(t *testing.T) {
	c := New[int](10, one, nil)
	boom := errors.New("boom")
	if _, err := c.Get(t.Context(), 1, func() (string, error) { return "", boom }); err != boom {
		t.Fatal(err)
	}
	if v, err := c.Get(t.Context(), 1, func() (string, error) { return "ok", nil }); v != "ok" || err != nil {
		t.Fatal(v, err)
	}
}

func TestAWaiterGivesUpWithItsContext(t *testing.T) {
	c := New[int](10, one, nil)
	started, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		c.Get(context.Background(), 1, func() (string, error) { close(started); <-release; return "", nil })
	})
	<-started
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.Get(ctx, 1, nil); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	close(release)
	wg.Wait()
}
