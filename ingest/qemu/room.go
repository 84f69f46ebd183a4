package qemu

import (
	"context"
	"sync"
	"time"

	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// QEMU fails a write of the guest when what it overwrites cannot be kept (block/copy-before-write.c, break-guest-write, which is all that
// a backup job of QEMU 7.2 has). So the job must go before the scratch folder is full: the backup fails then, and the guest
// notices nothing.
const (
	roomMost   = 2 << 30 // that must be free at the beginning; less when the disks are smaller
	watchEvery = 50 * time.Millisecond
)

// room watches the scratch folder.
type room struct {
	s    *Session
	need int64
	stop context.CancelFunc
	over sync.WaitGroup

	mu  sync.Mutex // guards err
	err error
}

// checkRoom is NoSpace when the scratch folder may become full.
func (s *Session) checkRoom() error {
	total := int64(1 << 20)
	for _, d := range s.disks {
		total += d.size + d.size/64
	}
	s.room = &room{s: s, need: min(total, roomMost), stop: func() {}}
	free, err := s.free()
	if err == nil && free < s.room.need {
		err = errs.WithTry(errs.New(errs.NoSpace, "scratch folder %s has %d MiB free; what the guest overwrites may need %d", s.o.Scratch, free>>20, s.room.need>>20),
			"--scratch-dir DIR with more room")
	}
	return err
}

func (s *Session) free() (int64, error) {
	sp, err := vfs.OS{}.Space(s.o.Scratch)
	return sp.FreeBytes, err
}

// watch ends the jobs before there is no room any more.
func (r *room) watch(ctx context.Context) {
	ctx, r.stop = context.WithCancel(ctx)
	r.over.Go(func() {
		for clock.Sleep(ctx, watchEvery) == nil {
			free, err := r.s.free()
			if err == nil && free >= r.need/2 {
				continue
			}
			if err == nil {
				err = errs.WithTry(errs.New(errs.NoSpace, "scratch folder %s has %d MiB free: the backup was given up before writes of the guest fail", r.s.o.Scratch, free>>20), "--scratch-dir DIR with more room")
			}
			r.mu.Lock()
			r.err = err
			r.mu.Unlock()
			if err := r.s.sweepJobs(context.WithoutCancel(ctx)); err != nil && r.s.o.Log != nil {
				r.s.o.Log.Error("backup jobs of a QEMU were not ended", "socket", r.s.o.Socket, "err", err)
			}
			return
		}
	})
}

func (r *room) end() {
	r.stop()
	r.over.Wait()
}

func (r *room) failure() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}
