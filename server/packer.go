package server

import (
	"context"
	"log/slog"
	"sync"

	"livemount/internal/errs"
)

// packer compresses better what backups stored fast, while no job runs.
type packer struct {
	pack func(context.Context) (int64, error)
	log  *slog.Logger
	wg   sync.WaitGroup

	mu     sync.Mutex // guards what is below
	busy   int        // jobs that run
	cancel context.CancelFunc
	closed bool
}

// pause stops packing for a job; resume goes on when it was the last.
func (p *packer) pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy++
	if p.cancel != nil {
		p.cancel()
		p.cancel = nil
	}
}

func (p *packer) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy--; p.busy > 0 || p.closed {
		return
	}
	var ctx context.Context
	ctx, p.cancel = context.WithCancel(context.Background())
	p.wg.Go(func() {
		freed, err := p.pack(ctx)
		if freed > 0 {
			p.log.Info("containers packed", "freed_bytes", freed)
		}
		if err != nil && !errs.Is(err, errs.Canceled) {
			p.log.Error("containers were not packed", "err", err)
		}
	})
}

func (p *packer) close() {
	p.mu.Lock()
	p.closed = true
	if p.cancel != nil {
		p.cancel()
	}
	p.mu.Unlock()
	p.wg.Wait()
}
