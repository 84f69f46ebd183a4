package nfsd

import (
	"context"
	"time"

	"livemount/fs"
	"livemount/internal/errs"
	"livemount/nfsd/oncrpc"
)

// readHeader is room for what stands before the bytes in the answer of READ.
const readHeader = 256

// read is procedure 6. The disk is read right into the answer.
func (r *request) read(ctx context.Context) oncrpc.Status {
	n, st := r.node()
	off, count := r.Args.Uint64(), r.Args.Uint32()
	if st != statusOK {
		return r.fail(st, r.noAttr)
	}
	a := n.Attr()
	f, ok := n.(fs.Regular)
	if st := r.mayTransfer(&a, ok, mayRead); st != statusOK {
		return r.fail(st, func() { r.answer().post(&a) })
	}
	start := len(r.Out.B)
	err := r.readInto(ctx, f, &a, off, count)
	for range readTries {
		if !errs.Is(err, errs.Invalid) { // it became shorter meanwhile
			break
		}
		a, r.Out.B = n.Attr(), r.Out.B[:start]
		err = r.readInto(ctx, f, &a, off, count)
	}
	if err != nil {
		r.Out.B = r.Out.B[:start]
		return r.fail(r.failed("read", n, err), func() { r.answer().post(&a) })
	}
	return oncrpc.Success
}

// readTries is how often a read of a file is tried again that becomes shorter under it.
const readTries = 3

// readInto appends the answer to a READ of a file with these attributes.
func (r *request) readInto(ctx context.Context, f fs.Regular, a *fs.Attr, off uint64, count uint32) error {
	size := uint64(a.SizeBytes)
	length := min(uint64(count), ioMax, size-min(off, size))
	if err := r.Grow(ctx, int(length)+readHeader); err != nil {
		return err
	}
	e := r.answer()
	e.Uint32(uint32(statusOK))
	e.post(a)
	e.Uint32(uint32(length))
	e.Bool(off >= size || length == size-off)
	e.Uint32(uint32(length))
	if length == 0 {
		return nil
	}
	err := f.ReadAt(ctx, r.Out.Reserve(int(length)), int64(off))
	if err == nil {
		r.ex.Traffic.Read.Add(int64(length))
	}
	return err
}

// mayTransfer says whether data of a node may be read or written.
func (r *request) mayTransfer(a *fs.Attr, regular bool, want uint32) status {
	switch {
	case a.Mode.IsDir():
		return statusIsDir
	case !regular:
		return statusInval
	case want == mayWrite && (r.rule.ReadOnly || !r.ex.writable()):
		return statusROFS
	case r.cred.rights(a)&want != 0:
		return statusOK
	case want == mayRead && r.cred.rights(a)&mayExec != 0: // a client must read what it executes
		return statusOK
	}
	return statusAcces
}

// failed is the status of an I/O error, which is logged unless it is the client's doing. What is gone is stale.
func (r *request) failed(op string, n fs.Node, err error) status {
	st := ofNode(err)
	if st == statusIO || st == statusServerFault {
		r.s.failures.log(r.s.log, op, r.ex.Path, uint64(n.ID()), err)
	}
	return st
}

// How a WRITE is to be made durable, stable_how.
const (
	unstable = 0
	fileSync = 2
)

// write is procedure 7. What is not UNSTABLE is on disk before the answer; many share one sync.
func (r *request) write(ctx context.Context) oncrpc.Status {
	n, st := r.node()
	off, count, how := r.Args.Uint64(), r.Args.Uint32(), r.Args.Uint32()
	data := r.Args.Opaque(ioMax)
	if st == statusOK && (!r.Args.OK() || int(count) != len(data) || how > fileSync) {
		st = statusInval
	}
	if st != statusOK {
		return r.fail(st, r.answer().noWcc)
	}
	before := n.Attr()
	f, ok := n.(fs.Writable)
	st = r.mayTransfer(&before, ok, mayWrite)
	if st == statusOK && (off > fs.MaxFileBytes || off+uint64(count) > fs.MaxFileBytes) {
		st = statusFBig
	}
	if st == statusOK && count > 0 {
		if err := r.put(ctx, f, &before, data, int64(off), how); err != nil {
			st = r.failed("write", n, err)
		}
	}
	after := n.Attr()
	e := r.answer()
	e.Uint32(uint32(st))
	e.changed(&after)
	if st != statusOK {
		return oncrpc.Success
	}
	r.ex.Traffic.Written.Add(int64(count))
	e.Uint32(count)
	e.Uint32(committed(how))
	e.Fixed(r.ex.verf[:])
	return oncrpc.Success
}

func (r *request) put(ctx context.Context, f fs.Writable, a *fs.Attr, data []byte, off int64, how uint32) error {
	if perm := fs.PermBits(a.Mode); perm&(setuid|setgid) != 0 && !r.cred.root() { // as write(2)
		perm &^= setuid | setgid
		if _, err := r.ex.Tree.SetAttr(ctx, f.ID(), fs.SetAttr{Perm: &perm}, time.Time{}, nil); err != nil {
			return err
		}
	}
	err := f.WriteAt(ctx, data, off)
	if err == nil && how != unstable {
		err = f.Sync(ctx)
	}
	return err
}

func committed(how uint32) uint32 {
	if how == unstable {
		return unstable
	}
	return fileSync
}

// commit is procedure 21.
func (r *request) commit(ctx context.Context) oncrpc.Status {
	n, st := r.node()
	r.Args.Uint64() // all of the file is on disk then, whatever the range
	r.Args.Uint32()
	if st != statusOK {
		return r.fail(st, r.answer().noWcc)
	}
	before := n.Attr()
	if st = r.mayCommit(&before); st == statusOK {
		if err := r.ex.Tree.Sync(ctx); err != nil {
			st = r.failed("commit", n, err)
		}
	}
	after := n.Attr()
	e := r.answer()
	e.Uint32(uint32(st))
	e.changed(&after)
	if st == statusOK {
		e.Fixed(r.ex.verf[:])
	}
	return oncrpc.Success
}

func (r *request) mayCommit(a *fs.Attr) status {
	switch {
	case a.Mode.IsDir() || a.Mode.IsRegular() && r.cred.rights(a) != 0:
		return statusOK
	case !a.Mode.IsRegular():
		return statusInval
	}
	return statusAcces
}

// writable says whether the tree takes changes.
func (e *Export) writable() bool {
	w, ok := e.Tree.(interface{ Writable() bool })
	return !ok || w.Writable()
}
