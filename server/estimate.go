package server

import (
	"context"

	"livemount/blockdev"
	"livemount/ingest"
	"livemount/internal/errs"
)

// hopeful is how well data compresses and is shared at best, for what a backup must have room for. What compresses or is shared better
// is backed up with SkipSpaceCheck.
const hopeful = 4

// checkSpace is NoSpace for a backup that surely ends with a full disk: its VM has no points yet, and not even a quarter of its
// data fits. Whether others fit is seen while they run.
func (s *Server) checkSpace(ctx context.Context, r *ingest.Request) error {
	if vm, err := s.store.VM(r.VM); err == nil && vm.Points > 0 {
		return nil
	}
	var data int64
	for i := range r.Disks {
		n, err := dataBytes(ctx, r.Disks[i].Source)
		if err != nil {
			return nil // it is told when it is read
		}
		data += n
	}
	if err := s.guard.Admit(data / hopeful); err != nil {
		return errs.WithTry(errs.New(errs.NoSpace, "backup of %s: its disks hold %d MiB of data: %w", r.VM, data>>20, err),
			"make room, or mountctl backup --no-space-check when most of it is in the store already")
	}
	return nil
}

// dataBytes is how much of a source is not a hole.
func dataBytes(ctx context.Context, r blockdev.Reader) (n int64, err error) {
	for e, err := range r.Extents(ctx, 0, r.Size()) {
		if err != nil {
			return n, err
		}
		if e.Kind == blockdev.Data {
			n += e.Len
		}
	}
	return n, nil
}
