package datastore

import (
	"context"
	iofs "io/fs"
	"time"

	"livemount/fs"
	"livemount/internal/errs"
)

// Make implements fs.Mutable.
func (s *Store) Make(ctx context.Context, dir fs.NodeID, name string, m fs.Make, c *fs.Call) (fs.Outcome, error) {
	return s.change(ctx, c, func(p *plan) error {
		d, err := s.parent(dir, name)
		if d != nil {
			p.out.Dir.Before = d.fullAttr()
		}
		if err != nil {
			return err
		}
		if e := s.lookup(d, name); e != nil {
			return s.planExisting(p, e.to, name, &m)
		}
		return s.planNew(p, d, name, &m)
	})
}

// planExisting plans a Make of a name that is there.
func (s *Store) planExisting(p *plan, in *inode, name string, m *fs.Make) error {
	again := m.Exist == fs.Exclusive && m.Verifier != 0 && m.Verifier == in.verifier
	if !in.typ.IsRegular() || m.Type != 0 || m.Exist != fs.Adopt && !again {
		return errs.New(errs.Exists, "%q exists", name)
	}
	p.out.NodeGood = true
	p.out.Made = again
	p.out.Dir.After = p.out.Dir.Before
	if m.Set.SizeBytes == nil || again {
		p.out.Node = in.fullAttr()
		return nil
	}
	return s.planAttr(p, in, &fs.SetAttr{SizeBytes: m.Set.SizeBytes})
}

func (s *Store) planNew(p *plan, dir *inode, name string, m *fs.Make) error {
	if err := s.mayMake(dir, m); err != nil {
		return err
	}
	now := s.now(dir)
	in := s.newInode(s.takeID(), m.Type)
	in.names, in.target, in.verifier = 1, m.Target, m.Verifier
	in.mode = fs.WithPerm(m.Type, defaultPerm(m.Type))
	in.setTimes(now)
	in.set(&m.Set, now)
	p.effects = append(p.effects, in.nodeEffect(),
		effect{kind: effectEnter, node: dir.id, child: in.id, cookie: s.cookie + 1, name: name})
	p.out.Dir.After = p.touched(dir, now, subsOf(in))
	p.out.Node, p.out.NodeGood, p.out.Made = in.attr(), true, true
	if size := m.Set.SizeBytes; size != nil && *size > 0 {
		p.out.Node.SizeBytes, p.size, p.sizeOf = *size, size, in.id
		return s.log.AddNode(uint64(in.id))
	}
	return nil
}

// mayMake says whether there can be one more node of this kind.
func (s *Store) mayMake(dir *inode, m *fs.Make) error {
	switch {
	case s.gone(dir):
		return errs.New(errs.NotFound, "the folder was removed")
	case s.Len() >= s.maxNodes || s.isFull():
		return errs.New(errs.NoSpace, "the datastore has %d files and folders, the most that it can have", s.Len())
	case m.Type != 0 && m.Type != iofs.ModeDir && m.Type != iofs.ModeSymlink:
		return errs.New(errs.Invalid, "nodes of type %v: %w", m.Type, fs.Unsupported)
	case m.Type == iofs.ModeSymlink && m.Target == "":
		return errs.New(errs.Invalid, "the target of a link is empty")
	case m.Type == iofs.ModeSymlink && len(m.Target) > fs.MaxTargetBytes:
		return errs.New(errs.Invalid, "the target of a link has %d bytes, more than %d: %w", len(m.Target), fs.MaxTargetBytes, fs.NameTooLong)
	case m.Type != 0 && m.Set.SizeBytes != nil && *m.Set.SizeBytes != 0:
		return errs.New(errs.Invalid, "a size is for files")
	}
	return checkSize(m.Set.SizeBytes)
}

// isFull says that names take as much as they may.
func (s *Store) isFull() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.bytes > namesMax
}

func checkSize(size *int64) error {
	if size != nil && *size < 0 {
		return errs.New(errs.Invalid, "size %d", *size)
	}
	if size != nil && *size > fs.MaxFileBytes {
		return errs.New(errs.Invalid, "size %d: %w", *size, fs.TooLarge)
	}
	return nil
}

func (s *Store) gone(dir *inode) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return dir.names == 0
}

// takeID returns an id that no node had.
func (s *Store) takeID() fs.NodeID {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextID++
	return s.nextID - 1
}

func defaultPerm(t iofs.FileMode) uint32 {
	switch t {
	case iofs.ModeDir:
		return 0o755
	case iofs.ModeSymlink:
		return 0o777
	default:
		return 0o644
	}
}

// set changes attributes in memory only: of an inode that nobody knows yet, or of a copy.
func (in *inode) set(a *fs.SetAttr, now int64) {
	if a.Perm != nil && in.typ != iofs.ModeSymlink {
		in.mode = fs.WithPerm(in.mode, *a.Perm)
	}
	if a.UID != nil {
		in.uid = *a.UID
	}
	if a.GID != nil {
		in.gid = *a.GID
	}
	if ns, ok := timeToSet(a.Accessed, a.AccessedNow, now); ok {
		in.accessed.Store(ns)
	}
	if ns, ok := timeToSet(a.Modified, a.ModifiedNow || a.SizeBytes != nil, now); ok {
		in.modified.Store(ns)
	}
	in.changed.Store(now)
}

func timeToSet(t *time.Time, toNow bool, now int64) (int64, bool) {
	if t != nil {
		return t.UnixNano(), true
	}
	return now, toNow
}

// SetAttr implements fs.Mutable.
func (s *Store) SetAttr(ctx context.Context, id fs.NodeID, a fs.SetAttr, guard time.Time, c *fs.Call) (fs.Outcome, error) {
	return s.change(ctx, c, func(p *plan) error {
		in, err := s.find(id)
		if err != nil {
			return err
		}
		p.out.Before = in.fullAttr()
		p.out.Node, p.out.NodeGood = p.out.Before, true
		if !guard.IsZero() && guard.UnixNano() != in.changed.Load() {
			return errs.New(errs.Invalid, "node %d: %w", id, fs.OutOfSync)
		}
		return s.planAttr(p, in, &a)
	})
}

// planAttr plans new attributes of an inode.
func (s *Store) planAttr(p *plan, in *inode, a *fs.SetAttr) error {
	if err := s.maySet(in, a); err != nil {
		return err
	}
	n := s.newInode(in.id, in.mode) // a copy, to change
	s.mu.RLock()
	n.uid, n.gid, n.verifier, n.target = in.uid, in.gid, in.verifier, in.target
	s.mu.RUnlock()
	n.accessed.Store(in.accessed.Load())
	n.modified.Store(in.modified.Load())
	n.set(a, s.now(in))
	e := n.nodeEffect()
	e.setAccessed = a.Accessed != nil || a.AccessedNow
	e.setModified = a.Modified != nil || a.ModifiedNow || a.SizeBytes != nil
	p.effects = append(p.effects, e)
	p.out.Node = in.fullAttr()
	p.out.Node.Mode, p.out.Node.UID, p.out.Node.GID = n.mode, n.uid, n.gid
	p.out.Node.Accessed, p.out.Node.Modified = timeOf(e.attr.accessed), timeOf(e.attr.modified)
	p.out.Node.Changed = timeOf(e.attr.changed)
	if a.SizeBytes != nil {
		p.freeing = *a.SizeBytes < p.out.Node.SizeBytes
		p.out.Node.SizeBytes, p.size, p.sizeOf = *a.SizeBytes, a.SizeBytes, in.id
	}
	return nil
}

func (s *Store) maySet(in *inode, a *fs.SetAttr) error {
	if a.SizeBytes == nil {
		return nil
	}
	if in.typ.IsDir() {
		return errs.New(errs.Invalid, "the size of node %d: %w", in.id, fs.IsFolder)
	}
	if !in.typ.IsRegular() {
		return errs.New(errs.Invalid, "the size of node %d, a link", in.id)
	}
	if _, err := in.content(); err != nil { // the log must know it
		return err
	}
	return checkSize(a.SizeBytes)
}
