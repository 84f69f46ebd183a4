package nfsd

import (
	"context"

	"livemount/fs"
	"livemount/internal/errs"
	"livemount/nfsd/oncrpc"
)

// getattr is procedure 1.
func (r *request) getattr(context.Context) oncrpc.Status {
	n, st := r.node()
	if st != statusOK {
		return r.fail(st, nil)
	}
	a := n.Attr()
	r.Out.Uint32(uint32(statusOK))
	r.answer().attr(&a)
	return oncrpc.Success
}

// noAttr appends a post_op_attr that is not known.
func (r *request) noAttr() { r.Out.Bool(false) }

// lookup is procedure 3.
func (r *request) lookup(ctx context.Context) oncrpc.Status {
	dir, st := r.folder()
	name := r.name()
	if st != statusOK {
		return r.fail(st, r.noAttr)
	}
	d := dir.Attr()
	n, st := r.find(ctx, dir, &d, name)
	if st != statusOK {
		return r.fail(st, func() { r.answer().post(&d) })
	}
	a := n.Attr()
	e, h := r.answer(), r.handleOf(n.ID())
	e.Uint32(uint32(statusOK))
	e.Opaque(h[:])
	e.post(&a)
	e.post(&d)
	return oncrpc.Success
}

func (r *request) find(ctx context.Context, dir fs.Folder, d *fs.Attr, name string) (fs.Node, status) {
	if r.cred.rights(d)&mayExec == 0 {
		return nil, statusAcces
	}
	switch {
	case name == ".":
		return dir, statusOK
	case name == "..":
		n, err := r.ex.Tree.Node(dir.Parent())
		return n, ofNode(err)
	}
	if err := fs.CheckName(name); err != nil {
		return nil, badName(name, err)
	}
	n, err := dir.Lookup(ctx, name)
	return n, statusOf(err)
}

// Bits of ACCESS.
const (
	accessRead    = 1
	accessLookup  = 2
	accessModify  = 4
	accessExtend  = 8
	accessDelete  = 16
	accessExecute = 32
)

// access is procedure 4.
func (r *request) access(context.Context) oncrpc.Status {
	n, st := r.node()
	want := r.Args.Uint32()
	if st != statusOK {
		return r.fail(st, r.noAttr)
	}
	a := n.Attr()
	e := r.answer()
	e.Uint32(uint32(statusOK))
	e.post(&a)
	e.Uint32(want & r.allowed(&a))
	return oncrpc.Success
}

func (r *request) allowed(a *fs.Attr) (bits uint32) {
	may := r.cred.rights(a)
	if may&mayRead != 0 {
		bits |= accessRead
	}
	if may&mayWrite != 0 && !r.rule.ReadOnly && r.ex.writable() {
		bits |= accessModify | accessExtend
		if a.Mode.IsDir() {
			bits |= accessDelete
		}
	}
	if may&mayExec != 0 && a.Mode.IsDir() {
		bits |= accessLookup
	} else if may&mayExec != 0 {
		bits |= accessExecute
	}
	return bits
}

// readlink is procedure 5.
func (r *request) readlink(ctx context.Context) oncrpc.Status {
	n, st := r.node()
	if st != statusOK {
		return r.fail(st, r.noAttr)
	}
	a := n.Attr()
	l, ok := n.(fs.Link)
	if !ok {
		return r.fail(statusInval, func() { r.answer().post(&a) })
	}
	target, err := l.Target(ctx)
	if err != nil {
		return r.fail(statusOf(err), func() { r.answer().post(&a) })
	}
	if errs.Is(r.Grow(ctx, len(target)+200), errs.Invalid) {
		return r.fail(statusServerFault, r.noAttr)
	}
	e := r.answer()
	e.Uint32(uint32(statusOK))
	e.post(&a)
	e.String(target)
	return oncrpc.Success
}

// Limits that FSINFO tells.
const (
	ioMax    = 1 << 20  // bytes of a READ or WRITE
	listPref = 32 << 10 // bytes of a READDIR
)

// fsstat is procedure 18.
func (r *request) fsstat(ctx context.Context) oncrpc.Status {
	n, st := r.node()
	if st != statusOK {
		return r.fail(st, r.noAttr)
	}
	a := n.Attr()
	space, err := r.ex.Tree.Space(ctx)
	if err != nil {
		return r.fail(statusOf(err), func() { r.answer().post(&a) })
	}
	e := r.answer()
	e.Uint32(uint32(statusOK))
	e.post(&a)
	total, free := uint64(max(0, space.TotalBytes)), uint64(max(0, space.FreeBytes))
	files := uint64(r.ex.Tree.Len())
	for _, v := range []uint64{total, free, free, files + filesFree, filesFree, filesFree} {
		e.Uint64(v)
	}
	e.Uint32(0) // it may change at once
	return oncrpc.Success
}

// filesFree is what df -i shows as free.
const filesFree = 1 << 20

// fsinfo is procedure 19.
func (r *request) fsinfo(context.Context) oncrpc.Status {
	return r.facts(func(e answer) {
		for _, v := range []uint32{ioMax, ioMax, 4096, ioMax, ioMax, 4096, listPref} {
			e.Uint32(v)
		}
		e.Uint64(fs.MaxFileBytes)
		e.Uint32(0) // times are exact to
		e.Uint32(1) // a nanosecond
		const link, symlink, homogeneous, canSetTime = 1, 2, 8, 16
		e.Uint32(link | symlink | homogeneous | canSetTime)
	})
}

// pathconf is procedure 20.
func (r *request) pathconf(context.Context) oncrpc.Status {
	return r.facts(func(e answer) {
		e.Uint32(1 << 16) // links
		e.Uint32(255)     // bytes of a name
		e.Bool(true)      // longer ones are refused
		e.Bool(true)      // only root changes owners
		e.Bool(false)     // case counts
		e.Bool(true)      // and is kept
	})
}

// facts answers with the attributes of the node and what is the same for all.
func (r *request) facts(rest func(e answer)) oncrpc.Status {
	n, st := r.node()
	if st != statusOK {
		return r.fail(st, r.noAttr)
	}
	a, e := n.Attr(), r.answer()
	e.Uint32(uint32(statusOK))
	e.post(&a)
	rest(e)
	return oncrpc.Success
}
