package overlay

import (
	"context"
	"fmt"
	"path"

	"livemount/internal/errs"
)

// Fork makes a second log in dir, which is new or empty (else Exists), with the state of this one at one
// position: all nodes and sizes, and the upper layer's snapshot. It holds every record that was written
// before the call, and perhaps some later ones. No stored byte is copied: the segments get a second name
// there (so dir must be on the same file system, else Invalid) and are never written again; a checkpoint
// says whose they are. Open it with mount, which must be an identity that no log had before (Invalid when
// some of this one is known to be written under it). From then on the logs know nothing of each other: each removes its own names only, and either
// folder may be removed. Clean-up in one gives the space of a shared segment back only when the other has
// let go of it as well; Stats counts shared segments in both.
//
// When it returns nil all of the fork is on disk, but for the folders above the one that holds dir. When it
// fails, or the power does, the folder holds no log, as Open says: NotFound while there is nothing of
// importance in it, Corrupt as long as there are segments without the checkpoint. The checkpoint is named
// last and makes the fork complete, so that after a crash it may be there though nobody was told. This log
// is not harmed by any of it. What was made of a failed fork is removed, if that is possible.
//
// Options.Admit is not asked. Writers wait while a segment is begun and the snapshot taken, clean-up waits for all of it. It must not
// be called during or after Close.
func (l *Log) Fork(ctx context.Context, dir string, mount [16]byte) error {
	if err := l.cleaner.begin(ctx); err != nil {
		return err
	}
	defer l.cleaner.end()
	if err := l.forkFolder(dir, mount); err != nil {
		return err
	}
	s, err := l.branch(mount)
	if err != nil {
		return err
	}
	// The evidence must be durable here, or the end of a segment that is shared from now on might, when it
	// rots, be taken for torn and cut off.
	if err := l.syncAll(ctx, l.commitProof); err != nil {
		return err
	}
	if err := l.writeFork(ctx, dir, s); err != nil {
		l.dropFork(dir)
		return fmt.Errorf("fork overlay log %s: %w", l.opts.Dir, err)
	}
	return nil
}

// forkFolder makes the folder, if it may be used.
func (l *Log) forkFolder(dir string, mount [16]byte) error {
	l.index.RLock()
	taken := mount == l.opts.Mount
	for _, s := range l.live.segments {
		taken = taken || s.mount == mount
	}
	l.index.RUnlock()
	if taken {
		return errs.New(errs.Invalid, "fork overlay log %s: mount %x has written some of it", l.opts.Dir, mount)
	}
	if err := l.fs.MkdirAll(dir); err != nil {
		return err
	}
	names, err := l.fs.List(dir)
	if err == nil && len(names) > 0 {
		err = errs.New(errs.Exists, "fork overlay log %s: folder %s is not empty", l.opts.Dir, dir)
	}
	return err
}

// branch begins a new segment, so that those before it are finished, and takes the state at its start: the
// number of this segment is the first that the fork may use.
func (l *Log) branch(mount [16]byte) (snapshotState, error) {
	l.appending.Lock()
	defer l.appending.Unlock()
	if err := l.writable(); err != nil {
		return snapshotState{}, err
	}
	at := Position{l.nextSeg, l.form.first()}
	if l.head != nil {
		if l.headEnd > l.form.first() {
			if err := l.roll(); err != nil {
				return snapshotState{}, err
			}
		}
		at.Segment = l.head.number
	}
	s, err := l.state(mount, 1, at)
	s.takeOver(s.live)
	return s, err
}

// writeFork fills the folder. Each step is durable before the next one; the checkpoint makes it a log.
func (l *Log) writeFork(ctx context.Context, dir string, s snapshotState) error {
	for _, seg := range s.live {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.fs.Link(seg.name, segmentName(dir, seg.number)); err != nil {
			return err
		}
	}
	if err := l.fs.SyncDir(dir); err != nil {
		return err
	}
	if err := l.writeCheckpoint(ctx, dir, s); err != nil {
		return err
	}
	known := mark{epoch: s.head.epoch, mount: s.head.mount, synced: s.head.at, seq: s.head.nextSeq - 1, last: s.head.last}
	m, err := createMark(l.fs, dir, known)
	if err != nil {
		return err
	}
	if err := m.file.Close(); err != nil {
		return err
	}
	if err := l.fs.SyncDir(dir); err != nil {
		return err
	}
	return l.fs.SyncDir(path.Dir(dir))
}

// dropFork removes what writeFork made, the checkpoint durably before the segments: with less than all of
// them it would be a log that is damaged. When something fails the rest stays for the caller.
func (l *Log) dropFork(dir string) {
	names, err := l.fs.List(dir)
	if err != nil {
		return
	}
	for _, segments := range []bool{false, true} {
		for _, name := range names {
			if _, is := parseName(name, "", ".seg"); is == segments && l.fs.Remove(path.Join(dir, name)) != nil {
				return
			}
		}
		if l.fs.SyncDir(dir) != nil {
			return
		}
	}
}
