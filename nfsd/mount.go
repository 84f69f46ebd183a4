package nfsd

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strings"

	"livemount/fs"
	"livemount/nfsd/oncrpc"
)

// Procedures of MOUNT version 3 (RFC 1813, appendix I).
const (
	mountNull = iota
	mountMnt
	mountDump
	mountUmnt
	mountUmntall
	mountExport
)

// pathMax is MNTPATHLEN.
const pathMax = 1024

// serveMount answers a call of MOUNT version 3.
func (s *Server) serveMount(ctx context.Context, c *oncrpc.Call) oncrpc.Status {
	switch c.Proc {
	case mountNull:
	case mountMnt:
		s.mnt(ctx, c)
	case mountDump:
		return s.mountList(ctx, c)
	case mountUmnt:
		if path := c.Args.String(pathMax); c.Args.OK() {
			s.unmounted(c.Client, clean(path), s.exportOf(path, c.Client.Addr()))
		}
	case mountUmntall:
		s.unmounted(c.Client, "", s.sorted()...)
	case mountExport:
		return s.exportList(ctx, c)
	default:
		return oncrpc.ProcUnavail
	}
	if !c.Args.OK() {
		return oncrpc.GarbageArgs
	}
	return oncrpc.Success
}

// mnt answers MNT with the handle of an export, or of a folder below it.
func (s *Server) mnt(ctx context.Context, c *oncrpc.Call) {
	path := c.Args.String(pathMax)
	if !c.Args.OK() {
		return
	}
	h, st := s.mountPath(ctx, path, c.Client)
	c.Out.Uint32(uint32(st))
	if st != statusOK {
		return
	}
	b := s.encodeHandle(h)
	c.Out.Opaque(b[:])
	flavors := []uint32{oncrpc.AuthSys, oncrpc.AuthNone}
	c.Out.Uint32(uint32(len(flavors)))
	for _, f := range flavors {
		c.Out.Uint32(f)
	}
}

func (s *Server) mountPath(ctx context.Context, path string, from netip.AddrPort) (handle, status) {
	client := from.Addr()
	e := s.exportOf(path, client)
	switch {
	case e == nil:
		return handle{}, statusNoEnt
	case e.ruleFor(from) == nil:
		return handle{}, statusAcces
	case e.Tree == nil:
		return handle{}, statusServerFault // there is no JUKEBOX in MOUNT; clients ask again
	case !e.enter(client, s.clock.Now()):
		return handle{}, statusNoEnt
	}
	defer e.calls.Done()
	n, st := walk(ctx, e.Tree.Root(), strings.TrimPrefix(clean(path), e.Path))
	if st != statusOK {
		return handle{}, st
	}
	if err := e.Mounted(client, clean(path), true); err != nil {
		s.failures.log(s.log, "mount", e.Path, uint64(n.ID()), err)
		return handle{}, statusServerFault
	}
	s.log.Info("client mounted", "client", client.String(), "export", e.Path)
	return handle{export: e.ID, node: n.ID()}, statusOK
}

// clean takes superfluous slashes out.
func clean(path string) string {
	parts := strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
	return "/" + strings.Join(parts, "/")
}

// exportOf finds the export that a path is, or lies in. When there is only one for a client, / is it.
func (s *Server) exportOf(path string, client netip.Addr) *Export {
	path = clean(path)
	var mine []*Export
	for _, e := range s.sorted() {
		if path == e.Path || strings.HasPrefix(path, e.Path+"/") {
			return e
		}
		if e.rule(client) != nil {
			mine = append(mine, e)
		}
	}
	if path == "/" && len(mine) == 1 {
		return mine[0]
	}
	return nil
}

// walk follows a path of folders.
func walk(ctx context.Context, f fs.Folder, path string) (fs.Node, status) {
	for _, name := range strings.Split(path, "/") {
		if name == "" {
			continue
		}
		if fs.CheckName(name) != nil {
			return nil, statusOf(fs.CheckName(name))
		}
		n, err := f.Lookup(ctx, name)
		if err != nil {
			return nil, statusOf(err)
		}
		var ok bool
		if f, ok = n.(fs.Folder); !ok {
			return nil, statusNotDir
		}
	}
	return f, statusOK
}

// unmounted notes that a client has let go of a path, or of all (""). That it is not written down is no reason to refuse:
// it is then still listed after a restart.
func (s *Server) unmounted(from netip.AddrPort, path string, list ...*Export) {
	client := from.Addr()
	for _, e := range list {
		if e == nil || e.ruleFor(from) == nil || !slices.Contains(e.Clients(), client) {
			continue
		}
		if err := e.Mounted(client, path, false); err != nil {
			s.failures.log(s.log, "unmount", e.Path, 0, err)
		}
		s.log.Info("client unmounted", "client", client.String(), "export", e.Path)
	}
}

// sorted returns the exports by path.
func (s *Server) sorted() []*Export {
	var list []*Export
	for _, e := range *s.exports.Load() {
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b *Export) int { return cmp.Compare(a.Path, b.Path) })
	return list
}

// visible are the exports that a client may mount: it is told of no others.
func (s *Server) visible(client netip.Addr) []*Export {
	return slices.DeleteFunc(s.sorted(), func(e *Export) bool { return e.rule(client) == nil })
}

// room is how much of a list is sent: what fits a datagram of any kind, or a buffer.
func room(c *oncrpc.Call) int {
	if c.UDP {
		return 1300
	}
	return 60 << 10
}

// mountList answers DUMP: who has mounted what.
func (s *Server) mountList(ctx context.Context, c *oncrpc.Call) oncrpc.Status {
	most := room(c)
	if c.Grow(ctx, most+16) != nil {
		return oncrpc.SystemErr
	}
	for _, e := range s.visible(c.Client.Addr()) {
		for _, client := range e.Clients() {
			if name := client.String(); len(c.Out.B)+len(name)+len(e.Path)+32 < most {
				c.Out.Bool(true)
				c.Out.String(name)
				c.Out.String(e.Path)
			}
		}
	}
	c.Out.Bool(false)
	return oncrpc.Success
}

// exportList answers EXPORT: what can be mounted by whom.
func (s *Server) exportList(ctx context.Context, c *oncrpc.Call) oncrpc.Status {
	most := room(c)
	if c.Grow(ctx, most+16) != nil {
		return oncrpc.SystemErr
	}
	for _, e := range s.visible(c.Client.Addr()) {
		if start := len(c.Out.B); !appendExport(c, e, most) {
			c.Out.B = c.Out.B[:start]
		}
	}
	c.Out.Bool(false)
	return oncrpc.Success
}

func appendExport(c *oncrpc.Call, e *Export, most int) bool {
	c.Out.Bool(true)
	c.Out.String(e.Path)
	for _, r := range *e.rules.Load() {
		c.Out.Bool(true)
		c.Out.String(r.Network.String())
		if len(c.Out.B) > most-64 {
			return false
		}
	}
	c.Out.Bool(false)
	return len(c.Out.B) < most-64
}
