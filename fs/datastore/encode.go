package datastore

import (
	"encoding/binary"
	iofs "io/fs"
	"slices"

	"livemount/fs"
	"livemount/internal/errs"
)

// formatVersion begins every record and snapshot.
const formatVersion = 1

// encode makes a record.
func encode(list []effect) []byte {
	b := []byte{formatVersion}
	for i := range list {
		b = appendEffect(b, &list[i])
	}
	return b
}

func appendEffect(b []byte, e *effect) []byte {
	b = append(b, byte(e.kind))
	switch e.kind {
	case effectNode:
		b = appendAttributes(binary.AppendUvarint(b, uint64(e.node)), &e.attr)
		b = appendText(b, e.name)
	case effectEnter:
		b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(e.node)), uint64(e.child))
		b = appendText(binary.AppendUvarint(b, uint64(e.cookie)), e.name)
	case effectLeave:
		b = appendText(binary.AppendUvarint(b, uint64(e.node)), e.name)
	case effectTimes:
		b = appendTimes(binary.AppendUvarint(b, uint64(e.node)), &e.attr)
	case effectReply, effectRefused:
		b = appendText(append(b, e.key[:]...), string(e.reply))
	case effectCounter:
		b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(e.node)), uint64(e.cookie))
	}
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendTimes(b []byte, a *attributes) []byte {
	for _, t := range []int64{a.accessed, a.modified, a.changed} {
		b = binary.AppendVarint(b, t)
	}
	return b
}

func appendAttributes(b []byte, a *attributes) []byte {
	b = append(b, typeCode(a.mode))
	for _, n := range []uint64{uint64(fs.PermBits(a.mode)), uint64(a.uid), uint64(a.gid), a.verifier} {
		b = binary.AppendUvarint(b, n)
	}
	return appendTimes(b, a)
}

// Types of nodes on disk.
const (
	codeFile   = 1
	codeFolder = 2
	codeLink   = 3
)

func typeCode(m iofs.FileMode) byte {
	switch m.Type() {
	case iofs.ModeDir:
		return codeFolder
	case iofs.ModeSymlink:
		return codeLink
	default:
		return codeFile
	}
}

// decode reads a record. What it returns holds no bytes of b.
func decode(b []byte) ([]effect, error) {
	if len(b) == 0 || b[0] == 0 {
		return nil, errs.New(errs.Corrupt, "datastore record: no version")
	}
	if b[0] > formatVersion {
		return nil, errs.New(errs.Newer, "datastore record: version %d; this one knows %d", b[0], formatVersion)
	}
	d := decoder{b: b[1:]}
	var list []effect
	for len(d.b) > 0 && !d.bad {
		list = append(list, d.effect())
	}
	if d.bad {
		return nil, errs.New(errs.Corrupt, "datastore record of %d bytes: step %d cannot be read", len(b), len(list))
	}
	return list, nil
}

// decoder reads from b; when something cannot be read it is bad, and all else is zero.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) effect() effect {
	e := effect{kind: effectKind(d.byte())}
	switch e.kind {
	case effectNode:
		e.node = d.id()
		d.attributes(&e.attr)
		e.name = d.text(fs.MaxTargetBytes)
	case effectEnter:
		e.node, e.child, e.cookie = d.id(), d.id(), fs.Cookie(d.id())
		e.name = d.entryName()
	case effectLeave:
		e.node, e.name = d.id(), d.entryName()
	case effectTimes:
		e.node = d.id()
		d.times(&e.attr)
	case effectReply, effectRefused:
		copy(e.key[:], d.take(len(e.key)))
		e.reply = []byte(d.text(fs.MaxReplyBytes))
	case effectCounter:
		e.node, e.cookie = d.id(), fs.Cookie(d.id())
	case effectLaid:
	default:
		d.bad = true
	}
	return e
}

func (d *decoder) take(n int) []byte {
	if n < 0 || n > len(d.b) || d.bad {
		d.bad = true
		return nil
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) byte() byte {
	if p := d.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

// idMax is above all ids and cookies.
const idMax = 1 << 62

func (d *decoder) id() fs.NodeID {
	v := d.uint()
	d.bad = d.bad || v >= idMax
	return fs.NodeID(v)
}

func (d *decoder) small() uint32 {
	v := d.uint()
	d.bad = d.bad || v > 1<<32-1
	return uint32(v)
}

func (d *decoder) text(most int) string {
	n := d.uint()
	if n > uint64(most) {
		d.bad = true
		return ""
	}
	return string(d.take(int(n)))
}

func (d *decoder) entryName() string {
	name := d.text(255)
	d.bad = d.bad || fs.CheckName(name) != nil
	return name
}

func (d *decoder) times(a *attributes) {
	a.accessed, a.modified, a.changed = d.int(), d.int(), d.int()
}

func (d *decoder) attributes(a *attributes) {
	switch d.byte() {
	case codeFile:
	case codeFolder:
		a.mode = iofs.ModeDir
	case codeLink:
		a.mode = iofs.ModeSymlink
	default:
		d.bad = true
	}
	a.mode = fs.WithPerm(a.mode, d.small())
	a.uid, a.gid, a.verifier = d.small(), d.small(), d.uint()
	d.times(a)
}

// Snapshot returns the whole state as one record. It takes no lock but mu.
func (s *Store) Snapshot() ([]byte, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := []effect{{kind: effectCounter, node: s.nextID, cookie: s.cookie}}
	if s.laid {
		list = append(list, effect{kind: effectLaid})
	}
	b := encode(list)
	for _, in := range s.nodes {
		e := in.nodeEffect()
		b = appendEffect(b, &e)
	}
	for _, in := range s.nodes {
		for _, c := range in.children.order {
			if !c.gone {
				b = appendEffect(b, &effect{kind: effectEnter, node: in.id, child: c.to.id, cookie: c.cookie, name: c.name})
			}
		}
	}
	for _, r := range s.replies.all() {
		b = appendEffect(b, &effect{kind: effectReply, key: r.key, reply: r.bytes})
	}
	for _, r := range s.refusals.all() {
		b = appendEffect(b, &effect{kind: effectRefused, key: r.key, reply: r.bytes})
	}
	return b, nil
}

// Restore replaces the whole state by that of a snapshot.
func (s *Store) Restore(snapshot []byte) error {
	s.mu.Lock()
	s.reset()
	s.mu.Unlock()
	if len(snapshot) == 0 { // of a log whose layer above had nothing
		return nil
	}
	return s.Replay(snapshot)
}

// Replay carries out a record again.
func (s *Store) Replay(record []byte) error {
	list, err := decode(record)
	if err != nil {
		return err
	}
	return s.apply(list, false)
}

// Laid says whether Lay was called on this datastore, ever.
func (s *Store) Laid() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.laid
}

// replies are the newest answers to calls, oldest first.
type replies struct {
	max   int
	byKey map[fs.CallKey]*reply
	ring  []*reply
	next  int // place of the oldest, when the ring is full
}

func (r *replies) all() []*reply {
	if len(r.ring) < r.max {
		return r.ring
	}
	return append(slices.Clone(r.ring[r.next:]), r.ring[:r.next]...)
}
