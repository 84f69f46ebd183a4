package server

import (
	"log/slog"
	"testing"
	"time"

	"livemount/internal/clock"
)

// Points that were made while a clock ran ahead, and those since, are a millisecond apart: rules that count days would take
// them for one. They stay until their time has come; then the rules count again.
func TestRulesLeavePointsOfTheFutureAlone(t *testing.T) {
	store := openStore(t)
	for range 5 {
		sealPoint(t, store, "web") // at 1,800,000,000 s and the milliseconds behind it
	}
	if err := store.SetRules(t.Context(), 0, "last=1"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		now  int64
		gone int
	}{{1_700_000_000, 0}, {1_799_990_000, 0}, {1_800_000_100, 4}} {
		s := &Server{store: store, clock: &clock.Fixed{T: time.Unix(c.now, 0)}, log: slog.New(slog.DiscardHandler)}
		plan, err := s.planFor(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(plan.Go()); got != c.gone {
			t.Errorf("at %d: %d points go, want %d", c.now, got, c.gone)
		}
	}
}
