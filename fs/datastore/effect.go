package datastore

import (
	iofs "io/fs"

	"livemount/fs"
	"livemount/internal/errs"
)

// effect is one step of a change. A record of the log is a list of them, and so is a snapshot.
type effect struct {
	kind   effectKind
	node   fs.NodeID // or the folder of a name
	child  fs.NodeID // that a name leads to
	cookie fs.Cookie
	name   string // or the target of a link
	attr   attributes
	key    fs.CallKey
	reply  []byte

	// Which times of a node are set when the change is made; a change of something else must not take a later time
	// back that a write has set meanwhile. They are not stored: replay sets all.
	setAccessed, setModified bool
}

type effectKind uint8

const (
	effectNode    effectKind = 1 + iota // a node is made, or gets other attributes
	effectEnter                         // a name is made
	effectLeave                         // a name is removed
	effectTimes                         // times of a node
	effectReply                         // the answer to a call
	effectLaid                          // the first files are there
	effectCounter                       // ids and cookies up to these were used
	effectRefused                       // the answer to a call that was refused
	effectEnd
)

// attributes are those that the log keeps of a node. Times are nanoseconds since 1970.
type attributes struct {
	mode                        iofs.FileMode
	uid, gid                    uint32
	accessed, modified, changed int64
	verifier                    uint64
}

func (in *inode) attributes() attributes {
	return attributes{
		mode: in.mode, uid: in.uid, gid: in.gid, verifier: in.verifier,
		accessed: in.accessed.Load(), modified: in.modified.Load(), changed: in.changed.Load(),
	}
}

func (in *inode) timesEffect() effect {
	return effect{kind: effectTimes, node: in.id, attr: in.attributes()}
}

func (in *inode) nodeEffect() effect {
	return effect{kind: effectNode, node: in.id, name: in.target, attr: in.attributes()}
}

// apply carries effects out, as they are made (live) or as they are read again. It holds mu.
func (s *Store) apply(list []effect, live bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range list {
		if err := s.applyOne(&list[i], live); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) applyOne(e *effect, live bool) error {
	switch e.kind {
	case effectNode:
		return s.applyNode(e, live)
	case effectEnter:
		return s.enter(e)
	case effectLeave:
		return s.leave(e)
	case effectTimes:
		s.applyTimes(e, live)
	case effectReply:
		s.replies.add(e.key, e.reply, s.clock.Now())
	case effectRefused:
		s.refusals.add(e.key, e.reply, s.clock.Now())
	case effectLaid:
		s.laid = true
	case effectCounter:
		s.nextID, s.cookie = max(s.nextID, e.node), max(s.cookie, e.cookie)
	}
	return nil
}

func impossible(e *effect, why string) error {
	return errs.New(errs.Corrupt, "datastore: step %d on node %d: %s", e.kind, e.node, why)
}

func (s *Store) applyNode(e *effect, live bool) error {
	in := s.nodes[e.node]
	if in == nil {
		in = s.newInode(e.node, e.attr.mode)
		in.target = e.name
		in.setTimes(e.attr.changed)
		in.accessed.Store(e.attr.accessed)
		in.modified.Store(e.attr.modified)
		s.nodes[e.node], s.orphans[e.node] = in, in
		s.bytes += nodeBytes + int64(len(e.name))
		s.nextID = max(s.nextID, e.node+1)
	}
	if in.typ != e.attr.mode.Type() {
		return impossible(e, "it changes its type")
	}
	in.mode, in.uid, in.gid, in.verifier = e.attr.mode, e.attr.uid, e.attr.gid, e.attr.verifier
	if !live || e.setAccessed {
		in.accessed.Store(e.attr.accessed)
	}
	if !live || e.setModified {
		in.modified.Store(e.attr.modified)
	}
	if live {
		raise(&in.changed, e.attr.changed)
		return nil
	}
	in.changed.Store(e.attr.changed)
	in.logged.Store(e.attr.changed)
	return nil
}

func (s *Store) applyTimes(e *effect, live bool) {
	in := s.nodes[e.node]
	if in == nil { // it lost its last name meanwhile
		return
	}
	if live {
		raise(&in.logged, e.attr.changed)
		return
	}
	// They only rise: a change of attributes that came between may have set others, and stands before this in the log.
	raise(&in.modified, e.attr.modified)
	raise(&in.changed, e.attr.changed)
	raise(&in.logged, e.attr.changed)
}

// enter makes a name. A folder has one only.
func (s *Store) enter(e *effect) error {
	dir, in := s.nodes[e.node], s.nodes[e.child]
	switch {
	case dir == nil || !dir.typ.IsDir():
		return impossible(e, "there is no such folder")
	case in == nil || in == s.root:
		return impossible(e, "the name leads nowhere")
	case dir.children.byName[e.name] != nil:
		return impossible(e, "the name is taken")
	case in.typ.IsDir() && in.names > 0:
		return impossible(e, "a folder with two names")
	}
	n := &entry{dir: dir, name: e.name, to: in, cookie: e.cookie}
	dir.children.add(n)
	s.bytes += entryBytes + int64(len(e.name))
	in.entries = append(in.entries, n)
	in.names++
	if in.typ.IsDir() {
		dir.subs++
	}
	delete(s.orphans, in.id)
	s.cookie = max(s.cookie, e.cookie)
	return nil
}

// leave removes a name. What has no other becomes an orphan, which has its bytes until it is forgotten.
func (s *Store) leave(e *effect) error {
	dir := s.nodes[e.node]
	if dir == nil || dir.children.byName[e.name] == nil {
		return impossible(e, "there is no such name")
	}
	n := dir.children.byName[e.name]
	dir.children.remove(n)
	s.bytes -= entryBytes + int64(len(e.name))
	for i, o := range n.to.entries {
		if o == n {
			n.to.entries = append(n.to.entries[:i:i], n.to.entries[i+1:]...)
			break
		}
	}
	if n.to.typ.IsDir() {
		dir.subs--
	}
	if n.to.names--; n.to.names == 0 {
		s.orphans[n.to.id] = n.to
	}
	return nil
}
