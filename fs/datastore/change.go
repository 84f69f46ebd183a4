package datastore

import (
	"context"
	"errors"

	"livemount/fs"
	"livemount/internal/errs"
)

// plan is a change that is about to be made. It is filled under ops, when no other change is made.
type plan struct {
	out     fs.Outcome
	effects []effect
	size    *int64    // to be set in the same record
	sizeOf  fs.NodeID // the file whose size that is
	freeing bool      // it gives space back: a full disk does not keep it away
	removed *inode    // that may have lost its last name
}

// change makes one change: fill says which. When it is refused, the answer to the call is logged all the same.
func (s *Store) change(ctx context.Context, c *fs.Call, fill func(p *plan) error) (fs.Outcome, error) {
	if s.log == nil {
		return fs.Outcome{}, errs.New(errs.Denied, "the datastore: %w", fs.ReadOnly)
	}
	p, err := s.changeInOrder(ctx, c, fill)
	if err == nil && p.removed != nil && s.unused(p.removed) {
		s.drop(ctx, p.removed)
	} else if s.undropped.Load() {
		s.dropAll(ctx)
	}
	return p.out, err
}

// drop forgets what has no name and no holder. When the log takes nothing at the moment, it is tried again with the next
// change, and at the next Start: what was removed is removed.
func (s *Store) drop(ctx context.Context, in *inode) {
	if s.forget(context.WithoutCancel(ctx), in) != nil {
		s.undropped.Store(true)
	}
}

// dropAll drops what could not be dropped before.
func (s *Store) dropAll(ctx context.Context) {
	s.undropped.Store(false)
	for _, in := range s.unnamed() {
		if s.unused(in) {
			s.drop(ctx, in)
		}
	}
}

func (s *Store) changeInOrder(ctx context.Context, c *fs.Call, fill func(p *plan) error) (*plan, error) {
	s.ops.Lock()
	defer s.ops.Unlock()
	p := &plan{}
	if s.shut {
		return p, errs.New(errs.Invalid, "the datastore is closed")
	}
	refused := fill(p)
	if refused != nil {
		p.effects, p.size, p.removed, p.freeing = nil, nil, nil, false
		p.out.Dir.After, p.out.Other.After = fs.Attr{}, fs.Attr{}
	}
	if c != nil {
		answer := c.Reply(&p.out, refused)
		if len(answer) <= fs.MaxReplyBytes {
			p.effects = append(p.effects, effect{kind: replyKind(refused), key: c.Key, reply: answer})
		}
	}
	if err := s.write(ctx, p); err != nil && refused == nil {
		p.out.Dir.After, p.out.Other.After, p.removed = fs.Attr{}, fs.Attr{}, nil
		p.out.Node, p.out.NodeGood = p.out.Before, false // nothing of it was done
		return p, err
	}
	return p, refused
}

func replyKind(refused error) effectKind {
	if refused != nil {
		return effectRefused
	}
	return effectReply
}

// commit logs effects and carries them out.
func (s *Store) commit(ctx context.Context, list []effect) error {
	return s.write(ctx, &plan{effects: list})
}

// write logs a plan and carries it out.
func (s *Store) write(ctx context.Context, p *plan) error {
	if len(p.effects) == 0 {
		return nil
	}
	var applied, err error
	apply := func() { applied = s.apply(p.effects, true) }
	switch payload := encode(p.effects); {
	case p.size != nil:
		err = s.log.AppendSize(ctx, payload, uint64(p.sizeOf), *p.size, apply)
	case p.freeing:
		err = s.log.AppendFreeing(ctx, payload, apply)
	default:
		err = s.log.Append(ctx, payload, apply)
	}
	return errors.Join(err, applied)
}

// unused says that an inode has no name and no holder.
func (s *Store) unused(in *inode) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return in.names == 0 && in.holds == 0
}

// forget drops an inode without a name, and its bytes. It waits for those who read or write them. It stays in
// snapshots until the log has forgotten the bytes: whoever finds it there forgets it again.
func (s *Store) forget(ctx context.Context, in *inode) error {
	if in.typ.IsRegular() {
		c, err := in.content()
		if err != nil {
			return err
		}
		in.io.Lock()
		done := in.forgot
		in.forgot = true
		in.io.Unlock()
		if done {
			return nil
		}
		if err := s.forgetBytes(ctx, in, c); err != nil {
			in.io.Lock()
			in.forgot = false
			in.io.Unlock()
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nodes[in.id] == in {
		s.bytes -= nodeBytes + int64(len(in.target))
	}
	delete(s.nodes, in.id)
	delete(s.orphans, in.id)
	return nil
}

func (s *Store) forgetBytes(ctx context.Context, in *inode, c *content) error {
	if _, isDisk := s.disks[in.id]; isDisk { // its node stands on the point
		return c.device.Zero(ctx, 0, c.Size())
	}
	return s.log.Forget(ctx, uint64(in.id))
}

// find returns an inode that has a name or a holder.
func (s *Store) find(id fs.NodeID) (*inode, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if in := s.nodes[id]; in != nil && (in.names > 0 || in.holds > 0) {
		return in, nil
	}
	return nil, errs.New(errs.NotFound, "node %d does not exist", id)
}

// parent finds the folder of a change of the named entry.
func (s *Store) parent(id fs.NodeID, name string) (*inode, error) {
	dir, err := s.find(id)
	if err != nil {
		return nil, err
	}
	if !dir.typ.IsDir() {
		return nil, errs.New(errs.Invalid, "node %d: %w", id, fs.NotFolder)
	}
	return dir, fs.CheckName(name)
}

// lookup finds an entry. The caller holds ops, so that it stays.
func (s *Store) lookup(dir *inode, name string) *entry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return dir.children.byName[name]
}

// touched adds the step that marks a folder as changed, and returns its attributes then. subs is by how many folders it
// gets more.
func (p *plan) touched(dir *inode, now int64, subs int) fs.Attr {
	e := dir.nodeEffect()
	e.attr.modified, e.attr.changed, e.setModified = now, now, true
	p.effects = append(p.effects, e)
	a := dir.fullAttr()
	a.Modified, a.Changed = timeOf(now), timeOf(now)
	a.Links = uint32(int(a.Links) + subs)
	return a
}

// changedAt adds the step that sets the time of change of a node.
func (p *plan) changedAt(in *inode, now int64) {
	e := in.nodeEffect()
	e.attr.changed = now
	p.effects = append(p.effects, e)
}

func subsOf(in *inode) int {
	if in.typ.IsDir() {
		return 1
	}
	return 0
}
