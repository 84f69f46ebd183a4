package datastore

import (
	"context"

	"livemount/fs"
	"livemount/internal/errs"
)

// Remove implements fs.Mutable.
func (s *Store) Remove(ctx context.Context, dir fs.NodeID, name string, folder bool, c *fs.Call) (fs.Outcome, error) {
	return s.change(ctx, c, func(p *plan) error {
		d, err := s.parent(dir, name)
		if d != nil {
			p.out.Dir.Before = d.fullAttr()
		}
		if err != nil {
			return err
		}
		e := s.lookup(d, name)
		if e == nil {
			return notThere(name)
		}
		if err := s.mayRemove(e.to, name, folder); err != nil {
			return err
		}
		now := s.now(d)
		p.leave(e, now)
		p.out.Dir.After = p.touched(d, now, -subsOf(e.to))
		p.freeing = true
		return nil
	})
}

// leave adds the steps that remove a name.
func (p *plan) leave(e *entry, now int64) {
	p.changedAt(e.to, now)
	p.effects = append(p.effects, effect{kind: effectLeave, node: e.dir.id, name: e.name})
	p.removed = e.to
}

func (s *Store) mayRemove(in *inode, name string, folder bool) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch {
	case folder && !in.typ.IsDir():
		return errs.New(errs.Invalid, "%q: %w", name, fs.NotFolder)
	case !folder && in.typ.IsDir():
		return errs.New(errs.Invalid, "%q: %w", name, fs.IsFolder)
	case in.children.len() > 0:
		return errs.New(errs.Exists, "%q: %w", name, fs.NotEmpty)
	}
	return nil
}

// Link implements fs.Mutable.
func (s *Store) Link(ctx context.Context, id, dir fs.NodeID, name string, c *fs.Call) (fs.Outcome, error) {
	return s.change(ctx, c, func(p *plan) error {
		in, err := s.find(id)
		if err != nil {
			return err
		}
		p.out.Node, p.out.NodeGood = in.fullAttr(), true
		d, err := s.parent(dir, name)
		if d != nil {
			p.out.Dir.Before = d.fullAttr()
		}
		if err != nil {
			return err
		}
		switch {
		case in.typ.IsDir():
			return errs.New(errs.Invalid, "link node %d: %w", id, fs.IsFolder)
		case s.gone(in) || s.gone(d):
			return errs.New(errs.NotFound, "link node %d: it or the folder was removed", id)
		case s.lookup(d, name) != nil:
			return errs.New(errs.Exists, "%q exists", name)
		case s.isFull():
			return errs.New(errs.NoSpace, "the datastore has as many names as it can have")
		}
		now := max(s.now(d), s.now(in))
		p.changedAt(in, now)
		p.effects = append(p.effects, effect{kind: effectEnter, node: d.id, child: in.id, cookie: s.cookie + 1, name: name})
		p.out.Dir.After = p.touched(d, now, 0)
		p.out.Node.Links, p.out.Node.Changed = p.out.Node.Links+1, timeOf(now)
		return nil
	})
}

// Rename implements fs.Mutable.
func (s *Store) Rename(ctx context.Context, from fs.NodeID, name string, to fs.NodeID, newName string, c *fs.Call) (fs.Outcome, error) {
	return s.change(ctx, c, func(p *plan) error {
		src, err := s.parent(from, name)
		if src != nil {
			p.out.Dir.Before = src.fullAttr()
		}
		dst, err2 := s.parent(to, newName)
		if dst != nil {
			p.out.Other.Before = dst.fullAttr()
		}
		if err == nil {
			err = err2
		}
		if err != nil {
			return err
		}
		e := s.lookup(src, name)
		if e == nil {
			return notThere(name)
		}
		return s.planRename(p, e, dst, newName)
	})
}

func (s *Store) planRename(p *plan, e *entry, dst *inode, newName string) error {
	over := s.lookup(dst, newName)
	if over != nil && over.to == e.to { // two names of one file: nothing happens (rename(2))
		p.out.Dir.After, p.out.Other.After = p.out.Dir.Before, p.out.Other.Before
		return nil
	}
	if err := s.mayMove(e.to, dst); err != nil {
		return err
	}
	if len(newName) > len(e.name) && s.isFull() {
		return errs.New(errs.NoSpace, "the datastore has as many names as it can have")
	}
	now := max(s.now(e.dir), s.now(dst), s.now(e.to))
	subs := subsOf(e.to)
	if over != nil {
		if err := s.mayReplace(e.to, over.to, newName); err != nil {
			return err
		}
		p.leave(over, now)
		subs -= subsOf(over.to)
	}
	p.changedAt(e.to, now)
	p.effects = append(p.effects, effect{kind: effectLeave, node: e.dir.id, name: e.name},
		effect{kind: effectEnter, node: dst.id, child: e.to.id, cookie: s.cookie + 1, name: newName})
	if e.dir == dst {
		p.out.Dir.After = p.touched(dst, now, subs-subsOf(e.to))
		p.out.Other.After = p.out.Dir.After
		return nil
	}
	p.out.Dir.After = p.touched(e.dir, now, -subsOf(e.to))
	p.out.Other.After = p.touched(dst, now, subs)
	return nil
}

// mayMove refuses to put a folder below itself.
func (s *Store) mayMove(in, dst *inode) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if dst.names == 0 {
		return errs.New(errs.NotFound, "the folder was removed")
	}
	for d := dst; d != nil; d, _ = d.place() {
		if d == in {
			return errs.New(errs.Invalid, "a folder cannot be moved into itself")
		}
	}
	return nil
}

// mayReplace says whether a name may be taken over.
func (s *Store) mayReplace(in, over *inode, name string) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch {
	case in.typ.IsDir() && !over.typ.IsDir():
		return errs.New(errs.Exists, "%q: %w", name, fs.NotFolder)
	case !in.typ.IsDir() && over.typ.IsDir():
		return errs.New(errs.Exists, "%q: %w", name, fs.IsFolder)
	case over.children.len() > 0:
		return errs.New(errs.Exists, "%q: %w", name, fs.NotEmpty)
	}
	return nil
}
