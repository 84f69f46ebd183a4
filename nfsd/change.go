package nfsd

import (
	"context"
	"encoding/binary"
	iofs "io/fs"
	"time"

	"livemount/fs"
	"livemount/nfsd/oncrpc"
	"livemount/nfsd/xdr"
)

// sattr decodes a sattr3.
func sattr(d *xdr.Decoder) fs.SetAttr {
	var s fs.SetAttr
	for _, p := range []**uint32{&s.Perm, &s.UID, &s.GID} {
		if d.Bool() {
			v := d.Uint32()
			*p = &v
		}
	}
	if s.Perm != nil {
		*s.Perm &= 0o7777
	}
	if d.Bool() {
		// What is too large is refused as such, and not as negative.
		v := int64(min(d.Uint64(), 1<<62))
		s.SizeBytes = &v
	}
	s.Accessed, s.AccessedNow = settime(d)
	s.Modified, s.ModifiedNow = settime(d)
	return s
}

// settime decodes a set_atime or set_mtime.
func settime(d *xdr.Decoder) (*time.Time, bool) {
	const toServer, toClient = 1, 2
	switch d.Uint32() {
	case toServer:
		return nil, true
	case toClient:
		t := nfstime(d)
		return &t, false
	}
	return nil, false
}

func nfstime(d *xdr.Decoder) time.Time {
	s, n := d.Uint32(), d.Uint32()
	return time.Unix(int64(s), int64(min(n, 1e9-1)))
}

// mayChange says whether the caller may change names in a folder.
func (r *request) mayChange(dir *fs.Attr) status {
	switch {
	case r.rule.ReadOnly || !r.ex.writable():
		return statusROFS
	case r.cred.rights(dir)&(mayWrite|mayExec) != mayWrite|mayExec:
		return statusAcces
	}
	return statusOK
}

// mayUnname says whether the caller may take a name out of a folder in which only owners may (the sticky bit).
func (r *request) mayUnname(ctx context.Context, dir fs.Folder, d *fs.Attr, name string) status {
	if d.Mode&iofs.ModeSticky == 0 || r.cred.root() || r.cred.uid == d.UID {
		return statusOK
	}
	n, err := dir.Lookup(ctx, name)
	if err == nil && n.Attr().UID != r.cred.uid {
		return statusAcces
	}
	return statusOK
}

// target is the folder and name that a change is about.
type target struct {
	dir  fs.Folder
	attr fs.Attr
	name string
}

// target decodes a diropargs3 and checks that the caller may change the folder.
func (r *request) target() (t target, st status) {
	t.dir, st = r.folder()
	t.name = r.name()
	if st == statusOK {
		t.attr = t.dir.Attr()
		st = r.mayChange(&t.attr)
	}
	if err := fs.CheckName(t.name); st == statusOK && err != nil {
		st = badName(t.name, err)
	}
	return t, st
}

// newTarget is target of a name that is to be made: these two are there in each folder (section 3.3.9).
func (r *request) newTarget() (t target, st status) {
	t, st = r.target()
	if st == statusInval && (t.name == "." || t.name == "..") {
		st = statusExist
	}
	return t, st
}

func (t *target) id() fs.NodeID { return t.dir.ID() }

// refuse answers a change of a folder that was not made.
func (r *request) refuse(st status, t *target) oncrpc.Status {
	e := r.answer()
	e.Uint32(uint32(st))
	e.wcc(&t.attr, &t.attr)
	return oncrpc.Success
}

// made encodes the answer of CREATE, MKDIR and SYMLINK.
func (r *request) made(e answer, o *fs.Outcome, st status) {
	e.Uint32(uint32(st))
	if st == statusOK {
		e.postHandle(r.handleOf(o.Node.ID))
		e.post(&o.Node)
	}
	e.wccOf(&o.Dir)
}

// make is all that makes a node.
func (r *request) makeNode(ctx context.Context, args []byte, t target, m fs.Make) oncrpc.Status {
	r.own(&t, &m)
	return r.once(ctx, args, changer{
		do:     func(c *fs.Call) (fs.Outcome, error) { return r.ex.Tree.Make(ctx, t.id(), t.name, m, c) },
		encode: r.made,
	})
}

// own gives a new node its owner and group, as inode(7): in a folder with the setgid bit the group of the folder, and a
// folder the bit as well. Nobody makes a file that runs with a group that is not his.
func (r *request) own(t *target, m *fs.Make) {
	uid, gid := r.cred.uid, r.cred.gid
	inherits := t.attr.Mode&iofs.ModeSetgid != 0
	if inherits {
		gid = t.attr.GID
	}
	if m.Set.UID == nil || !r.cred.root() {
		m.Set.UID = &uid
	}
	if m.Set.GID == nil || !r.cred.root() && !r.cred.in(*m.Set.GID) {
		m.Set.GID = &gid
	}
	perm := uint32(0o644)
	if m.Type == iofs.ModeDir {
		perm = 0o755
	}
	if m.Set.Perm != nil {
		perm = *m.Set.Perm
	}
	switch {
	case inherits && m.Type == iofs.ModeDir:
		perm |= setgid
	case !r.cred.root() && !r.cred.in(*m.Set.GID):
		perm &^= setgid
	}
	m.Set.Perm = &perm
}

// The bits of a mode that let a file run as its owner or group.
const (
	setuid = 0o4000
	setgid = 0o2000
)

// keepHonest takes the setuid and setgid bits from what will be set, where chmod(2), chown(2) and truncate(2) do.
func (r *request) keepHonest(a *fs.Attr, s *fs.SetAttr) {
	perm := fs.PermBits(a.Mode)
	if s.Perm != nil {
		perm = *s.Perm
		gid := a.GID
		if s.GID != nil {
			gid = *s.GID
		}
		if !r.cred.root() && !r.cred.in(gid) {
			perm &^= setgid
		}
	} else if a.Mode.IsRegular() && (s.UID != nil || s.GID != nil || s.SizeBytes != nil && !r.cred.root()) {
		perm &^= setuid | setgid
	}
	if perm != fs.PermBits(a.Mode) || s.Perm != nil {
		s.Perm = &perm
	}
}

// How CREATE treats a file that is there, createmode3.
const (
	unchecked = 0
	guarded   = 1
	exclusive = 2
)

// create is procedure 8.
func (r *request) create(ctx context.Context) oncrpc.Status {
	args := r.allArgs()
	t, st := r.newTarget()
	var m fs.Make
	switch how := r.Args.Uint32(); how {
	case unchecked, guarded:
		m.Set = sattr(&r.Args)
		if how == unchecked {
			m.Exist = fs.Adopt
		}
	case exclusive:
		m.Exist = fs.Exclusive
		if b := r.Args.Fixed(8); b != nil {
			m.Verifier = max(1, binary.BigEndian.Uint64(b)) // 0 is none
		}
	default:
		return oncrpc.GarbageArgs
	}
	if !r.Args.OK() {
		return oncrpc.GarbageArgs
	}
	if st == statusOK {
		st = r.mayAdopt(ctx, &t, &m)
	}
	if st != statusOK {
		return r.refuse(st, &t)
	}
	return r.makeNode(ctx, args, t, m)
}

// mayAdopt refuses to cut a file that the caller may not write.
func (r *request) mayAdopt(ctx context.Context, t *target, m *fs.Make) status {
	if m.Exist != fs.Adopt || m.Set.SizeBytes == nil {
		return statusOK
	}
	n, err := t.dir.Lookup(ctx, t.name)
	if err != nil {
		return statusOK
	}
	a := n.Attr()
	if a.Mode.IsRegular() && r.cred.rights(&a)&mayWrite == 0 {
		return statusAcces
	}
	return statusOK
}

// allArgs are the arguments as they came. It is called before anything is decoded.
func (r *request) allArgs() []byte {
	d := r.Args
	return d.Rest()
}

// mkdir is procedure 9.
func (r *request) mkdir(ctx context.Context) oncrpc.Status {
	args := r.allArgs()
	t, st := r.newTarget()
	m := fs.Make{Type: iofs.ModeDir, Set: sattr(&r.Args)}
	m.Set.SizeBytes = nil
	if !r.Args.OK() || st != statusOK {
		return r.refuse(st, &t)
	}
	return r.makeNode(ctx, args, t, m)
}

// symlink is procedure 10.
func (r *request) symlink(ctx context.Context) oncrpc.Status {
	args := r.allArgs()
	t, st := r.newTarget()
	m := fs.Make{Type: iofs.ModeSymlink, Set: sattr(&r.Args)}
	m.Set.SizeBytes = nil
	m.Target = r.Args.String(fs.MaxTargetBytes + 1)
	if !r.Args.OK() || st != statusOK {
		return r.refuse(st, &t)
	}
	return r.makeNode(ctx, args, t, m)
}

// mknod is procedure 11: there are no devices, sockets or pipes.
func (r *request) mknod(context.Context) oncrpc.Status {
	t, st := r.newTarget()
	if r.Args.Uint32(); st == statusOK {
		st = statusNotSupp
	}
	return r.refuse(st, &t)
}

// remove is procedure 12.
func (r *request) remove(ctx context.Context) oncrpc.Status { return r.unname(ctx, false) }

// rmdir is procedure 13.
func (r *request) rmdir(ctx context.Context) oncrpc.Status { return r.unname(ctx, true) }

func (r *request) unname(ctx context.Context, folder bool) oncrpc.Status {
	args := r.allArgs()
	t, st := r.target()
	if st == statusOK {
		st = r.mayUnname(ctx, t.dir, &t.attr, t.name)
	}
	if !r.Args.OK() || st != statusOK {
		return r.refuse(st, &t)
	}
	return r.once(ctx, args, changer{
		do: func(c *fs.Call) (fs.Outcome, error) { return r.ex.Tree.Remove(ctx, t.id(), t.name, folder, c) },
		encode: func(e answer, o *fs.Outcome, st status) {
			e.Uint32(uint32(st))
			e.wccOf(&o.Dir)
		},
	})
}

// rename is procedure 14.
func (r *request) rename(ctx context.Context) oncrpc.Status {
	args := r.allArgs()
	from, st := r.target()
	if st != statusOK {
		r.skipTarget()
		return r.refuseTwo(st, &from, &target{})
	}
	to, st := r.newTarget()
	if st == statusOK {
		st = r.mayUnname(ctx, from.dir, &from.attr, from.name)
	}
	if st == statusOK {
		st = r.mayUnname(ctx, to.dir, &to.attr, to.name)
	}
	if !r.Args.OK() || st != statusOK {
		return r.refuseTwo(st, &from, &to)
	}
	return r.once(ctx, args, changer{
		do: func(c *fs.Call) (fs.Outcome, error) {
			return r.ex.Tree.Rename(ctx, from.id(), from.name, to.id(), to.name, c)
		},
		encode: func(e answer, o *fs.Outcome, st status) {
			e.Uint32(uint32(renamed(st)))
			e.wccOf(&o.Dir)
			e.wccOf(&o.Other)
		},
	})
}

// renamed is the status of RENAME: a target that cannot be replaced is there, whatever keeps it (section 3.3.14).
func renamed(st status) status {
	switch st {
	case statusNotEmpty, statusNotDir, statusIsDir:
		return statusExist
	}
	return st
}

// skipTarget decodes a diropargs3 that does not matter any more.
func (r *request) skipTarget() {
	r.Args.Opaque(handleMax)
	r.name()
}

func (r *request) refuseTwo(st status, from, to *target) oncrpc.Status {
	e := r.answer()
	e.Uint32(uint32(st))
	e.wcc(&from.attr, &from.attr)
	e.wcc(&to.attr, &to.attr)
	return oncrpc.Success
}

// link is procedure 15.
func (r *request) link(ctx context.Context) oncrpc.Status {
	args := r.allArgs()
	n, st := r.node()
	if st != statusOK {
		r.skipTarget()
		return r.linked(st, &fs.Attr{}, &target{})
	}
	a := n.Attr()
	t, st := r.newTarget()
	if !r.Args.OK() || st != statusOK {
		return r.linked(st, &a, &t)
	}
	return r.once(ctx, args, changer{
		do: func(c *fs.Call) (fs.Outcome, error) { return r.ex.Tree.Link(ctx, n.ID(), t.id(), t.name, c) },
		encode: func(e answer, o *fs.Outcome, st status) {
			e.Uint32(uint32(st))
			e.post(&o.Node)
			e.wccOf(&o.Dir)
		},
	})
}

func (r *request) linked(st status, a *fs.Attr, t *target) oncrpc.Status {
	e := r.answer()
	e.Uint32(uint32(st))
	e.post(a)
	e.wcc(&t.attr, &t.attr)
	return oncrpc.Success
}

// setattr is procedure 2.
func (r *request) setattr(ctx context.Context) oncrpc.Status {
	args := r.allArgs()
	n, st := r.node()
	set := sattr(&r.Args)
	var guard time.Time
	if r.Args.Bool() {
		guard = nfstime(&r.Args)
	}
	if !r.Args.OK() {
		return oncrpc.GarbageArgs
	}
	if st != statusOK {
		return r.fail(st, r.answer().noWcc)
	}
	a := n.Attr()
	if st := r.maySet(&a, &set); st != statusOK {
		return r.fail(st, func() { r.answer().wcc(&a, &a) })
	}
	r.keepHonest(&a, &set)
	return r.once(ctx, args, changer{
		do: func(c *fs.Call) (fs.Outcome, error) { return r.ex.Tree.SetAttr(ctx, n.ID(), set, guard, c) },
		encode: func(e answer, o *fs.Outcome, st status) {
			e.Uint32(uint32(st))
			e.wcc(&o.Before, &o.Node)
		},
	})
}

// maySet says whether the caller may set these attributes, as chmod(2), chown(2), truncate(2) and utimensat(2) do.
func (r *request) maySet(a *fs.Attr, s *fs.SetAttr) status {
	owner := r.cred.root() || r.cred.uid == a.UID
	write := r.cred.rights(a)&mayWrite != 0
	switch {
	case r.rule.ReadOnly || !r.ex.writable():
		return statusROFS
	case s.Perm != nil && !owner, (s.Accessed != nil || s.Modified != nil) && !owner:
		return statusPerm
	case s.UID != nil && *s.UID != a.UID && !r.cred.root():
		return statusPerm
	case s.GID != nil && *s.GID != a.GID && !r.cred.root() && !(owner && r.cred.in(*s.GID)):
		return statusPerm
	case s.SizeBytes != nil && a.Mode.IsDir():
		return statusIsDir
	case s.SizeBytes != nil && !a.Mode.IsRegular():
		return statusInval
	case (s.SizeBytes != nil || s.AccessedNow || s.ModifiedNow) && !owner && !write:
		return statusAcces
	}
	return statusOK
}
