package image

import (
	"context"
	"errors"
	"runtime"

	"golang.org/x/sync/errgroup"

	"livemount/blockdev"
	"livemount/internal/cache"
	"livemount/internal/clock"
)

// maxUnpacking bounds the clusters that a read decompresses at a time: each takes up to twice its size.
const maxUnpacking = 4

// Qcow2Options are the options of OpenQcow2. The zero value follows no other file.
type Qcow2Options struct {
	// Dir is the folder that all backing files and external data files must lie in, after symbolic links
	// were followed. "" refuses images that name one.
	Dir string
	// Clock is for Identity; nil is the machine's.
	Clock clock.Clock
}

// Qcow2 is the disk in a qcow2 image, version 2 or 3, and in the images behind it, as an immutable disk. It
// implements Source. Reference counts, internal snapshots and bitmaps are not looked at. Source of the
// format: QEMU, docs/interop/qcow2.
type Qcow2 struct {
	layers []*layer // the image, then what is behind it; not empty
	meta   *cache.Cache[block, []byte]
	unpack *unpacker
}

var _ Source = (*Qcow2)(nil)

// OpenQcow2 opens a qcow2 image and what it names. Invalid is what it is not or may not do (no qcow2, an
// encrypted one, a backing file without Dir, a chain that is too long), Denied a file outside Dir, Newer a
// feature that is not known, Corrupt what is damaged. Tables are read and checked when they are needed.
func OpenQcow2(path string, o Qcow2Options) (*Qcow2, error) {
	q := &Qcow2{meta: cache.New[block](metaBudget, func(b []byte) int64 { return int64(len(b)) + 128 }, nil)}
	var err error
	if q.unpack, err = newUnpacker(); err != nil {
		return nil, err
	}
	if err := q.openChain(context.Background(), path, o); err != nil {
		return nil, errors.Join(err, q.Close())
	}
	return q, nil
}

// Size implements blockdev.Reader.
func (q *Qcow2) Size() int64 { return q.layers[0].size }

// ReadAt implements blockdev.ReaderAt. Clusters that lie side by side in the file are read at once;
// compressed ones are decompressed on several cores (1 GiB of deflate: 0.75 s, on one core 1.4 s).
func (q *Qcow2) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := blockdev.CheckRange(q.Size(), off, int64(len(p))); err != nil {
		return err
	}
	g, inner := errgroup.WithContext(ctx)
	g.SetLimit(min(maxUnpacking, runtime.GOMAXPROCS(0)))
	err := q.readRuns(inner, g, p, off)
	// The first error of the group ended inner, so it says more than err.
	if waited := g.Wait(); waited != nil {
		return waited
	}
	return err
}

// readRuns fills p, or leaves parts of it to the group.
func (q *Qcow2) readRuns(ctx context.Context, g *errgroup.Group, p []byte, off int64) error {
	c := newCursor(q.layers)
	for len(p) > 0 {
		r, err := c.next(ctx, off, off+int64(len(p)))
		if err != nil {
			return err
		}
		part := p[:r.n]
		p, off = p[r.n:], off+r.n
		switch {
		case r.kind == runData:
			// The last cluster of a file may be cut where nothing was written; QEMU reads zeroes there.
			err = r.layer.data.readPadded(ctx, part, r.host)
		case r.kind != runPacked:
			clear(part)
		case len(p) == 0: // nothing else is left to do meanwhile
			err = q.unpack.read(ctx, r, part)
		default:
			g.Go(func() error { return q.unpack.read(ctx, r, part) })
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// files calls f for every open file.
func (q *Qcow2) files(f func(*Raw)) {
	for _, l := range q.layers {
		f(l.file)
		if l.data != nil && l.data != l.file {
			f(l.data)
		}
	}
}

// Files lists the paths of all files that are read, the image first.
func (q *Qcow2) Files() []string {
	var list []string
	q.files(func(r *Raw) { list = append(list, r.path) })
	return list
}

// Check says whether what was read can be trusted to be one image: no file of the chain has another size
// than when it was opened.
func (q *Qcow2) Check(ctx context.Context) error {
	var list []error
	q.files(func(r *Raw) { list = append(list, r.Check(ctx)) })
	return errors.Join(list...)
}

// Changed is a note for people when something points to writes to any file of the chain, else "".
func (q *Qcow2) Changed() string {
	var notes []string
	for _, l := range q.layers {
		if l.head.has(featureDirty) {
			notes = append(notes, l.file.path+" is marked dirty: a virtual machine has it open, or was killed")
		}
	}
	q.files(func(r *Raw) { notes = append(notes, r.Changed()) })
	return joinNotes(notes...)
}

// Identity stands for the content of the whole chain, see Raw.Identity.
func (q *Qcow2) Identity() string { return identity(q.layers) }

// Close implements blockdev.Reader.
func (q *Qcow2) Close() error {
	var list []error
	q.files(func(r *Raw) { list = append(list, r.Close()) })
	q.unpack.close()
	return errors.Join(list...)
}
