package server

import (
	"context"
	"net/http"
	"sync"
	"time"

	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/server/api"
	"livemount/snapshotchain"
)

// keeper does in the background what nobody asks for: it applies the rules of retention, collects what nobody needs any more, after points went and
// once a day, reads what is stored again, and keeps the store's time.
type keeper struct {
	s      *Server
	cancel context.CancelFunc
	wg     sync.WaitGroup
	woken  chan struct{} // points went

	mu    sync.Mutex // guards what is below
	last  *api.Collection
	plans []shownPlan // that were shown last, for who wants one applied
}

const (
	keepTimeEach = time.Minute
	collectEach  = 24 * time.Hour
	// collectRate bounds how fast containers are written anew in the background, in bytes a second.
	collectRate = 64 << 20
)

func startKeeper(s *Server) *keeper {
	ctx, cancel := context.WithCancel(context.Background())
	k := &keeper{s: s, cancel: cancel, woken: make(chan struct{}, 1)}
	k.wake() // a collection may have been cut short
	k.wg.Go(func() { k.keepTime(ctx) })
	k.wg.Go(func() { k.collectLoop(ctx) })
	k.wg.Go(func() { k.scrubLoop(ctx) })
	k.wg.Go(func() { k.retentionLoop(ctx) })
	return k
}

func (k *keeper) close() {
	k.cancel()
	k.wg.Wait()
}

// wake lets a collection begin soon.
func (k *keeper) wake() {
	select {
	case k.woken <- struct{}{}:
	default: // it is awake
	}
}

func (k *keeper) keepTime(ctx context.Context) {
	for clock.Sleep(ctx, keepTimeEach) == nil {
		if err := k.s.store.KeepTime(); err != nil && !errs.Is(err, errs.NoSpace) {
			k.s.log.Warn("the store's time was not kept", "err", err)
		}
	}
}

func (k *keeper) collectLoop(ctx context.Context) {
	for {
		day, stop := context.WithTimeout(ctx, collectEach)
		select {
		case <-k.woken:
		case <-day.Done():
		}
		stop()
		if ctx.Err() != nil {
			return
		}
		if _, err := k.collect(ctx, false, pace); err != nil && !errs.Is(err, errs.Canceled) {
			k.s.log.Error("what is unused was not collected", "err", err)
		}
	}
}

// pace lets a collection wait for as long as collectRate wants.
func pace(ctx context.Context, n int64) error {
	return clock.Sleep(ctx, time.Duration(float64(n)/collectRate*float64(time.Second)))
}

// collect runs a collection and remembers what it did.
func (k *keeper) collect(ctx context.Context, dryRun bool, pace func(context.Context, int64) error) (*api.Collection, error) {
	began := k.s.clock.Now()
	if len(k.s.unknown) > 0 {
		return nil, errs.WithTry(errs.New(errs.Corrupt, "nothing can be collected: the record of the mount in %s is bad, and it is not known what it stands on",
			k.s.unknown[0]), "when what was written there is not needed, stop livemountd, remove that folder, and start it again")
	}
	r, err := k.s.store.Collect(ctx, snapshotchain.CollectOptions{DryRun: dryRun, Pace: pace})
	v := collectionView(&r)
	v.DryRun, v.Started, v.ElapsedSeconds = dryRun, began.UTC(), k.s.clock.Now().Sub(began).Seconds()
	if err != nil {
		e := api.FromErr(err)
		v.Error = &e
	}
	if !dryRun && (err != nil || r.FreedBytes > 0) {
		k.mu.Lock()
		k.last = v
		k.mu.Unlock()
		k.s.log.Info("collected what is unused", "freed_bytes", r.FreedBytes, "removed", r.Gone, "rewritten", r.Rewritten)
	}
	return v, err
}

func collectionView(r *snapshotchain.Collection) *api.Collection {
	return &api.Collection{
		MarkSeconds: r.MarkSeconds, Points: r.Points, Pointers: r.Pointers, Containers: r.Containers, LiveBytes: r.LiveBytes,
		DeadBytes: r.DeadBytes, FreedBytes: r.FreedBytes, RemovedContainers: r.Gone, RewrittenContainers: r.Rewritten,
		HeldContainers: r.Held, DamagedContainers: r.Damaged,
	}
}

// latest returns what the last collection did, nil before the first.
func (k *keeper) latest() *api.Collection {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.last
}

// postCollect collects now, as fast as it can, while the client waits.
func (s *Server) postCollect(r *http.Request) (int, any, error) {
	var req api.CollectRequest
	if err := body(r, &req); err != nil {
		return 0, nil, err
	}
	v, err := s.keeper.collect(r.Context(), req.DryRun, nil)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, v, nil
}
