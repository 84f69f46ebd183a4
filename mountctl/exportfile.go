package mountctl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// saveEvery is how much is written before the state says how far it is.
const saveEvery = 64 << 20

// partFile is FILE.part: data is written to its place, holes stay holes. Another goroutine, that of save,
// makes durable what is written, one at a time.
type partFile struct {
	fs     vfs.FS
	path   string // of FILE
	f      vfs.File
	state  exportState
	at     int64 // all before is written
	dirty  int64
	saving chan error // nil when nothing is being saved
	failed error      // of the first sync that failed
}

func (p *partFile) name() string { return p.path + ".part" }

// toFile writes FILE.part, from where an earlier run left it, and renames it.
func (x *exporter) toFile(ctx context.Context, path string, force bool) error {
	p := &partFile{fs: vfs.OS{}, path: path, state: exportState{ETag: x.etag, Format: x.q.Format, SizeBytes: x.size}}
	if err := p.open(x, force); err != nil {
		return err
	}
	err := x.run(ctx, p.at, p)
	if err == nil {
		return p.finish(force)
	}
	return errors.Join(p.leave(err), p.f.Close())
}

// open finds out whether there is something to go on with, and begins anew otherwise.
func (p *partFile) open(x *exporter, force bool) error {
	old, err := readState(p.fs, p.name())
	if err != nil {
		return err
	}
	if p.f, err = p.fs.OpenRW(p.name()); err != nil && !errs.Is(err, errs.NotFound) {
		return err
	}
	if p.f == nil {
		return p.anew()
	}
	if err := p.lock(); err != nil {
		return errors.Join(err, p.f.Close())
	}
	if old == nil && !force {
		err := errs.New(errs.Exists, "%s is there already, and no %s.json that says what it is", p.name(), filepath.Base(p.name()))
		return errors.Join(errs.WithTry(err, "--force to replace it, or another name"), p.f.Close())
	}
	have, err := p.f.Size()
	if err != nil {
		return errors.Join(err, p.f.Close())
	}
	if why := p.state.differs(old, have); why != "" {
		fmt.Fprintf(x.notes, "%s cannot be continued, because %s: it begins anew\n", p.name(), why)
		return p.anew()
	}
	if old.Offset == 0 { // of a run that had not saved anything
		return p.anew()
	}
	p.at, x.done.Resumed = old.Offset, true
	fmt.Fprintf(x.notes, "%s goes on at %s of %s\n", p.name(), size(p.at), size(x.size))
	return nil
}

// anew makes an empty file of the whole size. The state, which knows of nothing in it, comes first, so that an
// older one never speaks of this file.
func (p *partFile) anew() error {
	err := p.state.write(p.fs, p.name(), 0)
	if err == nil && p.f == nil {
		p.f, err = p.fs.Create(p.name())
		if errs.Is(err, errs.Exists) {
			return p.busy()
		}
		if err == nil {
			err = p.lock()
		}
	}
	if p.f == nil {
		return err
	}
	if err == nil {
		err = p.f.Truncate(0)
	}
	if err == nil {
		err = p.f.Truncate(p.state.SizeBytes)
	}
	if err != nil {
		return errors.Join(err, p.f.Close())
	}
	return nil
}

// lock makes sure that no other export writes to the file, and that it still has its name.
func (p *partFile) lock() error {
	f, ok := p.f.(interface {
		Fd() uintptr
		Stat() (os.FileInfo, error)
	})
	if !ok {
		return nil
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return p.busy()
	}
	open, err := f.Stat()
	if err != nil {
		return err
	}
	named, err := os.Lstat(p.name())
	if err == nil && named.Mode()&os.ModeSymlink != 0 {
		return p.linked()
	}
	if err != nil || !os.SameFile(open, named) {
		return p.busy() // the other one has just ended, and it is FILE now
	}
	if st, ok := open.Sys().(*syscall.Stat_t); !ok || st.Nlink != 1 || !open.Mode().IsRegular() {
		return p.linked()
	}
	return nil
}

// linked refuses to write to what may be somebody else's file.
func (p *partFile) linked() error {
	return errs.WithTry(errs.New(errs.Denied, "%s is a link to another file", p.name()), "rm %s", p.name())
}

func (p *partFile) busy() error {
	return errs.WithTry(errs.New(errs.Busy, "another export writes %s", p.name()), "another name, or wait for it")
}

func (p *partFile) put(_ context.Context, b []byte, off int64) error {
	if _, err := p.f.WriteAt(b, off); err != nil {
		return err
	}
	p.at = off + int64(len(b))
	if p.dirty += int64(len(b)); p.dirty < saveEvery {
		return nil
	}
	p.dirty = 0
	if err := p.wait(); err != nil {
		return err
	}
	p.saving = make(chan error, 1)
	go func(done chan<- error, at int64) { done <- p.save(at) }(p.saving, p.at)
	return nil
}

// save makes what is written durable, and then the state that says so.
func (p *partFile) save(at int64) error {
	if err := p.sync(); err != nil {
		return err
	}
	return p.state.write(p.fs, p.name(), at)
}

// sync is never tried again after it failed: the kernel has dropped what it could not write, and a second one
// would prove nothing. Saves run one at a time, so failed needs no lock.
func (p *partFile) sync() error {
	if p.failed == nil {
		p.failed = p.f.Sync()
	}
	return p.failed
}

// wait ends when nothing is being saved.
func (p *partFile) wait() error {
	if p.saving == nil {
		return nil
	}
	err := <-p.saving
	p.saving = nil
	return err
}

// leave keeps what there is for another run, and says so.
func (p *partFile) leave(err error) error {
	waited := p.wait()
	if p.at == 0 {
		return err // nothing was written yet
	}
	if waited != nil || p.save(p.at) != nil {
		old, rerr := readState(p.fs, p.name())
		if rerr != nil || old == nil {
			return err
		}
		p.at = old.Offset // what an earlier state says still holds
	}
	if k := errs.KindOf(err); k == errs.Corrupt || k == errs.NotFound || k == errs.Invalid {
		return err // it would end the same
	}
	again := fmt.Sprintf("the same command again: it goes on at %s of %s", size(p.at), size(p.state.SizeBytes))
	switch try := errs.TryOf(err); {
	case try != "":
		again = try + "; then " + again
	case errs.Is(err, errs.NoSpace):
		again = "make room; then " + again
	}
	return errs.WithTry(err, "%s", again)
}

// finish gives the file its name, once all of it is on disk.
func (p *partFile) finish(force bool) error {
	err := p.wait()
	if err == nil {
		err = p.sync()
	}
	if err != nil {
		return errors.Join(p.leave(err), p.f.Close())
	}
	defer p.f.Close() // and with it the lock: after the file has lost the name .part
	if _, serr := p.fs.Stat(p.path); serr == nil && !force {
		return existing(p.path) // somebody made it meanwhile
	}
	if err := p.fs.Rename(p.name(), p.path); err != nil {
		return err
	}
	if err := p.fs.SyncDir(filepath.Dir(p.path)); err != nil {
		return err
	}
	if err := removeState(p.fs, p.name()); err != nil {
		return err
	}
	return p.fs.SyncDir(filepath.Dir(p.path))
}
