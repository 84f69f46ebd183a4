package datastore

import (
	"context"
	"iter"

	"livemount/blockdev"
	"livemount/fs"
	"livemount/internal/errs"
)

// folder implements fs.Folder.
type folder struct{ in *inode }

// ID implements fs.Node.
func (f folder) ID() fs.NodeID { return f.in.id }

// Attr implements fs.Node.
func (f folder) Attr() fs.Attr { return f.in.fullAttr() }

// Parent implements fs.Folder. One that was removed is its own.
func (f folder) Parent() fs.NodeID {
	f.in.s.mu.RLock()
	defer f.in.s.mu.RUnlock()
	if dir, _ := f.in.place(); dir != nil {
		return dir.id
	}
	return f.in.id
}

// Lookup implements fs.Folder.
func (f folder) Lookup(_ context.Context, name string) (fs.Node, error) {
	f.in.s.mu.RLock()
	defer f.in.s.mu.RUnlock()
	e := f.in.children.byName[name]
	if e == nil {
		return nil, notThere(name)
	}
	return e.to.node(), nil
}

func notThere(name string) error { return errs.New(errs.NotFound, "%q does not exist", name) }

// List implements fs.Folder, in the order in which names were made.
func (f folder) List(_ context.Context, behind fs.Cookie, limit int) ([]fs.Entry, error) {
	f.in.s.mu.RLock()
	defer f.in.s.mu.RUnlock()
	var list []fs.Entry
	for _, e := range f.in.children.behind(behind) {
		if len(list) >= limit {
			break
		}
		if !e.gone {
			list = append(list, fs.Entry{Name: e.name, ID: e.to.id, Type: e.to.typ, Cookie: e.cookie})
		}
	}
	return list, nil
}

// link implements fs.Link.
type link struct{ in *inode }

// ID implements fs.Node.
func (l link) ID() fs.NodeID { return l.in.id }

// Attr implements fs.Node.
func (l link) Attr() fs.Attr { return l.in.fullAttr() }

// Target implements fs.Link. It never changes.
func (l link) Target(context.Context) (string, error) { return l.in.target, nil }

// file implements fs.Writable.
type file struct{ in *inode }

// ID implements fs.Node.
func (f file) ID() fs.NodeID { return f.in.id }

// Attr implements fs.Node.
func (f file) Attr() fs.Attr { return f.in.fullAttr() }

// Size implements fs.Regular.
func (f file) Size() int64 {
	c, err := f.in.content()
	if err != nil {
		return 0
	}
	return c.Size()
}

// Writable implements fs.Writable.
func (f file) Writable() bool {
	c, err := f.in.content()
	return err == nil && c.device != nil
}

// Limit implements fs.Writable.
func (f file) Limit() int64 { return fs.MaxFileBytes }

// use holds the bytes of the file, so that they are not forgotten meanwhile. The caller gives them back by unlocking
// io for reading.
func (f file) use() (*content, error) {
	c, err := f.in.content()
	if err != nil {
		return nil, err
	}
	f.in.io.RLock()
	if f.in.forgot {
		f.in.io.RUnlock()
		return nil, errs.New(errs.NotFound, "node %d was removed", f.in.id)
	}
	return c, nil
}

// ReadAt implements fs.Regular.
func (f file) ReadAt(ctx context.Context, p []byte, off int64) error {
	c, err := f.use()
	if err != nil {
		return err
	}
	defer f.in.io.RUnlock()
	err = c.ReadAt(ctx, p, off)
	if f.in.s.bad != nil && errs.Is(err, errs.Corrupt) && f.in.id >= firstID {
		f.in.s.bad(f.in.id, err)
	}
	return err
}

// Extents implements fs.Regular.
func (f file) Extents(ctx context.Context, off, n int64) iter.Seq2[blockdev.Extent, error] {
	return func(yield func(blockdev.Extent, error) bool) {
		c, err := f.use()
		if err != nil {
			yield(blockdev.Extent{}, err)
			return
		}
		defer f.in.io.RUnlock()
		c.Extents(ctx, off, n)(yield)
	}
}

// useToWrite is use of a file that can be written.
func (f file) useToWrite() (*content, error) {
	c, err := f.use()
	if err == nil && c.device == nil {
		f.in.io.RUnlock()
		err = errs.New(errs.Denied, "node %d: %w", f.in.id, fs.ReadOnly)
	}
	return c, err
}

// WriteAt implements fs.Writable.
func (f file) WriteAt(ctx context.Context, p []byte, off int64) error {
	end := off + int64(len(p))
	if off < 0 || end < off || end > fs.MaxFileBytes {
		return errs.New(errs.Invalid, "write %d bytes at %d: %w", len(p), off, fs.TooLarge)
	}
	c, err := f.useToWrite()
	if err != nil {
		return err
	}
	defer f.in.io.RUnlock()
	if err := f.in.wrote(ctx); err != nil {
		return err
	}
	return c.device.WriteAt(ctx, p, off)
}

// Zero implements fs.Writable.
func (f file) Zero(ctx context.Context, off, n int64) error {
	c, err := f.useToWrite()
	if err != nil {
		return err
	}
	defer f.in.io.RUnlock()
	if err := f.in.wrote(ctx); err != nil {
		return err
	}
	return c.device.Zero(ctx, off, n)
}

// Sync implements fs.Writable.
func (f file) Sync(ctx context.Context) error { return f.in.s.Sync(ctx) }

// timesEvery is how often the times of a file that is written go to the log, in nanoseconds.
const timesEvery = 1e9

// wrote notes the time of a write that is about to be made, in the log when that has an old one.
func (in *inode) wrote(ctx context.Context) error {
	now := in.s.now(in)
	in.touch(now)
	before := in.logged.Load()
	if now-before < timesEvery || !in.logged.CompareAndSwap(before, now) {
		return nil
	}
	e := in.timesEffect()
	if err := in.s.log.Append(ctx, encode([]effect{e}), nil); err != nil {
		in.logged.Store(before)
		return err
	}
	return nil
}
