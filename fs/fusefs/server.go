package fusefs

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"livemount/internal/errs"
)

// Server is a mounted tree.
type Server struct {
	dir    string
	device string // "MAJOR:MINOR", tells our mount from another at the same place
	done   chan struct{}
	raw    *raw
}

// serve starts to answer. Its goroutine ends with the mount; Done tells.
func serve(server *fuse.Server, r *raw, dir string, log *slog.Logger) (*Server, error) {
	s := &Server{dir: dir, done: make(chan struct{}), raw: r}
	go func() {
		defer close(s.done)
		var pruner sync.WaitGroup
		ended := make(chan struct{})
		pruner.Go(func() { r.prune(ended, server.PruneNotify) })
		server.Serve()
		close(ended)
		pruner.Wait()
		r.forgetAll()
		s.leaveNothing(log)
	}()
	// No WaitMount: the kernel has mounted and got its INIT when NewServer returns, and WaitMount opens a file
	// on the mount. A process that waits for itself in such a call when it is killed can never end: the
	// kernel waits for the answer, and /dev/fuse is not closed before its last thread is gone.
	if err := s.identify(log); err != nil {
		err = errs.New(errs.KindOf(err), "mount %s: %w", dir, err)
		return nil, errors.Join(err, detach(context.Background(), dir))
	}
	return s, nil
}

// leaveNothing detaches the mount when it was aborted and not unmounted (umount -f while files are open,
// or the abort file of /sys/fs/fuse/connections): nobody will answer there again.
func (s *Server) leaveNothing(log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if dead, err := CleanDead(ctx, s.dir); dead || err != nil {
		log.Warn("mount was aborted", "dir", s.dir, "error", err)
	}
}

func (s *Server) identify(log *slog.Logger) error {
	info, err := mountAt(s.dir)
	if err != nil {
		return err
	}
	s.device = info.Device
	setReadAhead(info.Device, log)
	return nil
}

// Dir is where the tree is mounted, without symbolic links.
func (s *Server) Dir() string { return s.dir }

// Known is the number of nodes that the kernel holds and that are kept for it.
func (s *Server) Known() int { return s.raw.known() }

// Done is closed when the file system was unmounted or aborted, by whomever, and all requests are answered.
func (s *Server) Done() <-chan struct{} { return s.done }

// Wait returns after Done.
func (s *Server) Wait() { <-s.done }

// Unmount unmounts and waits until every request is answered. It is Busy while files are open there. What
// was unmounted by others already is not an error.
func (s *Server) Unmount(ctx context.Context) error {
	err := s.umount(ctx)
	// The kernel lets go of a loop device or a file a moment after its user did.
	for wait := 20 * time.Millisecond; errs.Is(err, errs.Busy) && wait < time.Second; wait *= 2 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
			err = s.umount(ctx)
		}
	}
	if err != nil {
		err = errs.New(errs.KindOf(err), "unmount %s: %w", s.dir, err)
		return errs.WithTry(err, "see who uses it: fuser -vm %s; losetup -a", s.dir)
	}
	select {
	case <-s.done:
		return nil
	case <-time.After(elsewhereMax):
		return errs.WithTry(errs.New(errs.Busy, "%s is unmounted, but mounted elsewhere too (mount --bind, or another mount namespace)", s.dir),
			"unmount it there (findmnt -t fuse.livemount), or add --force")
	case <-ctx.Done():
		return errs.New(errs.KindOf(ctx.Err()), "unmount %s: wait for open requests: %w", s.dir, ctx.Err())
	}
}

// elsewhereMax is how long the requests of a mount that was unmounted may take.
const elsewhereMax = 5 * time.Second

// umount asks the kernel once.
func (s *Server) umount(ctx context.Context) error {
	if !s.mounted() {
		return nil
	}
	err := unix.Unmount(s.dir, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EPERM) {
		return fusermount(ctx, "-u", "--", s.dir)
	}
	return err
}

// Detach takes the mount away at once, though it is in use: programs keep the files that they have open,
// and Done follows when the last one is closed. It does not wait for that.
func (s *Server) Detach(ctx context.Context) error {
	if !s.mounted() {
		return nil
	}
	return detach(ctx, s.dir)
}

// mounted says whether what is at dir is this mount, so that no other is ever unmounted.
func (s *Server) mounted() bool {
	select {
	case <-s.done: // the device number may belong to another mount by now
		return false
	default:
	}
	info, err := mountAt(s.dir)
	return err == nil && info.Ours() && info.Device == s.device
}
