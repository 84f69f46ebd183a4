package nfsd

import (
	"context"
	iofs "io/fs"
	"time"

	"livemount/fs"
	"livemount/nfsd/oncrpc"
	"livemount/nfsd/xdr"
)

// Procedures of NFS version 3.
const (
	procNull = iota
	procGetattr
	procSetattr
	procLookup
	procAccess
	procReadlink
	procRead
	procWrite
	procCreate
	procMkdir
	procSymlink
	procMknod
	procRemove
	procRmdir
	procRename
	procLink
	procReaddir
	procReaddirplus
	procFsstat
	procFsinfo
	procPathconf
	procCommit
)

// procedure returns what answers a procedure.
func procedure(proc uint32) (func(*request, context.Context) oncrpc.Status, bool) {
	switch proc {
	case procGetattr:
		return (*request).getattr, true
	case procSetattr:
		return (*request).setattr, true
	case procLookup:
		return (*request).lookup, true
	case procAccess:
		return (*request).access, true
	case procReadlink:
		return (*request).readlink, true
	case procRead:
		return (*request).read, true
	case procWrite:
		return (*request).write, true
	case procCreate:
		return (*request).create, true
	case procMkdir:
		return (*request).mkdir, true
	case procSymlink:
		return (*request).symlink, true
	case procMknod:
		return (*request).mknod, true
	case procRemove:
		return (*request).remove, true
	case procRmdir:
		return (*request).rmdir, true
	case procRename:
		return (*request).rename, true
	case procLink:
		return (*request).link, true
	case procReaddir:
		return (*request).readdir, true
	case procReaddirplus:
		return (*request).readdirplus, true
	case procFsstat:
		return (*request).fsstat, true
	case procFsinfo:
		return (*request).fsinfo, true
	case procPathconf:
		return (*request).pathconf, true
	case procCommit:
		return (*request).commit, true
	}
	return nil, false
}

// request is one call of NFS.
type request struct {
	*oncrpc.Call
	s    *Server
	ex   *Export // of the handle; it is kept from ending until done
	rule *Rule
	cred credentials
}

// done lets go of the export.
func (r *request) done() {
	if r.ex != nil {
		r.ex.calls.Done()
	}
}

// handle decodes a file handle and finds its export.
func (r *request) handle() (handle, status) {
	b := r.Args.Opaque(handleMax)
	if !r.Args.OK() {
		return handle{}, statusBadHandle
	}
	h, ok := r.s.decodeHandle(b)
	if !ok {
		return h, statusBadHandle
	}
	if r.ex != nil { // the second handle of a call
		if r.ex.ID != h.export {
			return h, statusXDev
		}
		return h, statusOK
	}
	return h, r.enter(h)
}

// enter makes the call one of the handle's export.
func (r *request) enter(h handle) status {
	ex, now := r.s.export(h.export), r.s.clock.Now()
	if ex == nil {
		return statusStale
	}
	rule := ex.ruleFor(r.Client)
	if rule == nil {
		return statusAcces
	}
	if !ex.enter(r.Client.Addr(), now) {
		if r.s.export(h.export) != nil { // it was replaced just now
			return statusJukebox
		}
		return statusStale
	}
	r.ex, r.rule = ex, rule
	ex.Traffic.Calls.Add(1)
	r.s.clients.heard(r.Client.Addr(), now)
	if ex.Tree == nil {
		return statusJukebox
	}
	r.squash()
	return statusOK
}

// squash finds out whom the call acts for.
func (r *request) squash() {
	anonymous := r.Cred.Flavor != oncrpc.AuthSys || r.rule.AllSquash || r.rule.RootSquash && r.Cred.UID == 0
	if anonymous {
		r.cred = credentials{uid: r.rule.AnonUID, gid: r.rule.AnonGID}
		return
	}
	r.cred = credentials{uid: r.Cred.UID, gid: r.Cred.GID, groups: r.Cred.Groups()}
	if !r.rule.RootSquash {
		return
	}
	if r.cred.gid == 0 {
		r.cred.gid = r.rule.AnonGID
	}
	for i, g := range r.cred.groups { // they are the call's own
		if g == 0 {
			r.cred.groups[i] = r.rule.AnonGID
		}
	}
}

// node finds the node of the handle that comes next in the arguments.
func (r *request) node() (fs.Node, status) {
	h, st := r.handle()
	if st != statusOK {
		return nil, st
	}
	n, err := r.ex.Tree.Node(h.node)
	return n, ofNode(err)
}

// folder is node of a folder. When it is something else the node is returned all the same.
func (r *request) folder() (fs.Folder, status) {
	n, st := r.node()
	if st != statusOK {
		return nil, st
	}
	f, ok := n.(fs.Folder)
	if !ok {
		return nil, statusNotDir
	}
	return f, statusOK
}

// nameMax is what is decoded of a name, so that one that is a little long gets an answer of its own.
const nameMax = 1024

func (r *request) name() string { return r.Args.String(nameMax) }

// badName is the status of a name that no node can have: RFC 1813 wants ACCES for an empty one (section 3.2).
func badName(name string, err error) status {
	if name == "" {
		return statusAcces
	}
	return statusOf(err)
}

// handleOf makes the handle of a node of the same export.
func (r *request) handleOf(id fs.NodeID) [handleBytes]byte {
	return r.s.encodeHandle(handle{export: r.ex.ID, node: id})
}

// fail ends the answer with a status and what follows it in the error case: rest appends that.
func (r *request) fail(st status, rest func()) oncrpc.Status {
	r.Out.Uint32(uint32(st))
	if rest != nil {
		rest()
	}
	return oncrpc.Success
}

// Types of nodes, ftype3.
const (
	typeRegular = 1
	typeFolder  = 2
	typeLink    = 5
)

func typeOf(m iofs.FileMode) uint32 {
	switch m.Type() {
	case iofs.ModeDir:
		return typeFolder
	case iofs.ModeSymlink:
		return typeLink
	default:
		return typeRegular
	}
}

// answer appends results.
type answer struct {
	*xdr.Encoder
	fsid uint64
}

func (r *request) answer() answer {
	a := answer{Encoder: &r.Out}
	if r.ex != nil {
		a.fsid = r.ex.ID
	}
	return a
}

// attr appends a fattr3, 84 bytes.
func (e answer) attr(a *fs.Attr) {
	e.Uint32(typeOf(a.Mode))
	e.Uint32(fs.PermBits(a.Mode))
	e.Uint32(max(1, a.Links))
	e.Uint32(a.UID)
	e.Uint32(a.GID)
	e.Uint64(uint64(a.SizeBytes))
	e.Uint64(uint64(a.AllocatedBytes))
	e.Uint64(0) // rdev
	e.Uint64(e.fsid)
	e.Uint64(uint64(a.ID))
	e.time(a.Accessed)
	e.time(a.Modified)
	e.time(a.Changed)
}

// time appends an nfstime3. Times before 1970 and after 2106 have no number there.
func (e answer) time(t time.Time) {
	switch s := t.Unix(); {
	case s < 0:
		t = time.Unix(0, 0)
	case s > 1<<32-1:
		t = time.Unix(1<<32-1, 0)
	}
	e.Uint32(uint32(t.Unix()))
	e.Uint32(uint32(t.Nanosecond()))
}

// post appends a post_op_attr; an attr without an id is not known.
func (e answer) post(a *fs.Attr) {
	e.Bool(a.ID != 0)
	if a.ID != 0 {
		e.attr(a)
	}
}

// wcc appends a wcc_data.
func (e answer) wcc(before, after *fs.Attr) {
	e.Bool(before.ID != 0)
	if before.ID != 0 {
		e.Uint64(uint64(before.SizeBytes))
		e.time(before.Modified)
		e.time(before.Changed)
	}
	if after.ID == 0 {
		after = before // nothing was changed
	}
	e.post(after)
}

// changed appends the wcc_data of data that was written: without attributes from before, because they would have to be
// those at the very moment of the change, or a client takes the change of another for its own (RFC 1813, section 2.6).
func (e answer) changed(after *fs.Attr) {
	e.Bool(false)
	e.post(after)
}

// wccOf appends the wcc_data of a folder.
func (e answer) wccOf(c *fs.Change) { e.wcc(&c.Before, &c.After) }

// noWcc appends a wcc_data that tells nothing.
func (e answer) noWcc() {
	e.Bool(false)
	e.Bool(false)
}

// postHandle appends a post_op_fh3.
func (e answer) postHandle(b [handleBytes]byte) {
	e.Bool(true)
	e.Opaque(b[:])
}
