package snapshotchain

import (
	"encoding/json"
	"slices"
	"time"

	"livemount/internal/errs"
	"livemount/snapshotchain/chunkstore"
)

// root is the record above all others. Its sums say which VM, container and draft records must exist and
// what they must say.
type root struct {
	Applied      uint64                 `json:"applied"` // last journal record that is in Badger
	NextLineage  LineageID              `json:"next_lineage"`
	NextID       chunkstore.ContainerID `json:"next_container"`
	VMs          digest                 `json:"vms"`
	Containers   digest                 `json:"containers"`
	Drafts       digest                 `json:"drafts"`
	Lineages     digest                 `json:"lineages"`
	Guards       digest                 `json:"guards"`
	Rules        digest                 `json:"rules"`
	Clock        time.Time              `json:"clock,omitzero"`       // of the store, when the last change was made
	Distrusted   bool                   `json:"distrusted,omitempty"` // the journal had gaps: nothing is cut or removed any more
	Points       uint64                 `json:"points"`
	LogicalBytes int64                  `json:"logical_bytes"` // data of all points, as if nothing were shared
	RawBytes     int64                  `json:"raw_bytes"`     // decoded bytes of the chunks stored
	StoredBytes  int64                  `json:"stored_bytes"`
}

// catalog is all of the metadata but points and maps, in memory. Its apply methods change it as a journal
// record says and put the records that must change in Badger; they are the only way to change either.
type catalog struct {
	root       root
	vms        map[VMID]*VM
	lineages   map[LineageID]*lineage
	containers map[chunkstore.ContainerID]chunkstore.State
	drafts     map[chunkstore.DraftID]*openChange
	guards     map[pointKey]Guard
	rules      map[VMID]string // 0 for VMs that have none of their own
	// hasPoint reports whether the record of a point is there. It is, unless the journal lost its seal.
	hasPoint func(key []byte, d digest) bool
}

func newCatalog() *catalog {
	return &catalog{
		root: root{NextLineage: 1, NextID: 1}, vms: map[VMID]*VM{}, lineages: map[LineageID]*lineage{},
		containers: map[chunkstore.ContainerID]chunkstore.State{}, drafts: map[chunkstore.DraftID]*openChange{},
		guards: map[pointKey]Guard{}, rules: map[VMID]string{},
		hasPoint: func([]byte, digest) bool { return true },
	}
}

// puts collects the Badger records that a change writes; a nil value deletes.
type puts struct {
	keys [][]byte
	vals [][]byte
}

func (p *puts) add(key, val []byte) {
	p.keys, p.vals = append(p.keys, key), append(p.vals, val)
}

// mustJSON encodes our own types, which cannot fail.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("encode " + err.Error())
	}
	return b
}

// set writes a record that a sum covers. old and new are its values before and after; nil is none.
func (p *puts) set(sum *digest, key, old, new []byte) {
	if old != nil {
		*sum = sum.xor(entryDigest(key, old))
	}
	if new != nil {
		*sum = sum.xor(entryDigest(key, new))
	}
	p.add(key, new)
}

// apply changes the catalogue as journal record n says.
func (c *catalog) apply(n uint64, ch *change) (*puts, error) {
	p := &puts{}
	var err error
	switch {
	case ch.Open != nil:
		err = c.applyOpen(p, ch.Open)
	case ch.Seal != nil:
		err = c.applySeal(p, n, ch.Seal)
	case ch.Abort != nil:
		c.dropDraft(p, ch.Abort.Draft)
	case ch.Drop != nil:
		err = c.applyDrop(p, ch.Drop)
	case ch.Name != nil:
		err = c.applyNames(p, ch.Name)
	case ch.Pack != nil:
		err = c.applyPack(p, ch.Pack)
	case ch.Guard != nil:
		c.applyGuard(p, ch.Guard)
	case ch.Sweep != nil:
		err = c.applySweep(p, ch.Sweep)
	case ch.Rules != nil:
		c.putRules(p, ch.Rules.VM, ch.Rules.Text)
	}
	if err != nil {
		return nil, err
	}
	c.root.Applied = n
	if ch.At.After(c.root.Clock) {
		c.root.Clock = ch.At
	}
	p.add(keyRoot(), mustJSON(&c.root))
	return p, nil
}

func (c *catalog) applyOpen(p *puts, o *openChange) error {
	if c.drafts[o.Draft] != nil {
		return errs.New(errs.Corrupt, "draft %s was begun twice", o.Draft)
	}
	c.drafts[o.Draft] = o
	p.set(&c.root.Drafts, keyDraft(uint64(o.Draft)), nil, mustJSON(o))
	for _, d := range o.Disks {
		l, old := c.lineages[d.Lineage], []byte(nil)
		if l == nil {
			l = &lineage{ID: d.Lineage, VM: o.VM, Disk: d.Name, Base: d.Base, Next: 1}
			c.lineages[l.ID] = l
		} else {
			old = mustJSON(l)
		}
		l.Next = max(l.Next, d.Seq+1)
		p.set(&c.root.Lineages, keyLineage(l.ID), old, mustJSON(l))
		c.root.NextLineage = max(c.root.NextLineage, d.Lineage+1)
	}
	c.root.NextID = max(c.root.NextID, o.NextID)
	return nil
}

// dropDraft ends a draft; lineages that it alone had begun go with it.
func (c *catalog) dropDraft(p *puts, id chunkstore.DraftID) {
	o := c.drafts[id]
	if o == nil {
		return
	}
	delete(c.drafts, id)
	p.set(&c.root.Drafts, keyDraft(uint64(id)), mustJSON(o), nil)
	for _, d := range o.Disks {
		if l := c.lineages[d.Lineage]; l != nil && l.Latest == 0 {
			delete(c.lineages, l.ID)
			p.set(&c.root.Lineages, keyLineage(l.ID), mustJSON(l), nil)
		}
	}
}

func (c *catalog) applySeal(p *puts, n uint64, s *sealChange) error {
	if err := c.checkSeal(s); err != nil {
		return err
	}
	for i := range s.Seals {
		if err := c.sealLineage(p, &s.Seals[i]); err != nil {
			return err
		}
	}
	c.dropDraft(p, s.Draft)
	for _, st := range s.Containers {
		c.putContainer(p, st)
	}
	pt := s.Point
	pt.Journal = n
	c.addPoint(p, s, &pt)
	c.root.RawBytes += s.Raw
	c.root.StoredBytes += s.Stored
	return nil
}

// checkSeal finds contradictions before anything is changed.
func (c *catalog) checkSeal(s *sealChange) error {
	sealed := map[LineageID]Seq{}
	for i := range s.Seals {
		l := c.lineages[s.Seals[i].Lineage]
		if l == nil || s.Seals[i].Seq <= l.Latest || s.Seals[i].Seq >= l.Next {
			return errs.New(errs.Corrupt, "lineage %s cannot take point %d", s.Seals[i].Lineage, s.Seals[i].Seq)
		}
		sealed[l.ID] = s.Seals[i].Seq
	}
	for _, d := range s.Point.Disks {
		if sealed[d.Lineage] != d.Seq || d.Seq == 0 {
			return errs.New(errs.Corrupt, "disk %s of point %s has no seal", d.Name, s.Point.ID)
		}
	}
	if len(sealed) != len(s.Seals) || len(s.Point.Disks) != len(s.Seals) {
		return errs.New(errs.Corrupt, "point %s and its seals do not agree", s.Point.ID)
	}
	return nil
}

func (c *catalog) sealLineage(p *puts, s *seal) error {
	l := c.lineages[s.Lineage]
	old := mustJSON(l)
	l.Forked = l.Forked || s.Prev != l.Latest
	l.Latest = s.Seq
	p.set(&c.root.Lineages, keyLineage(l.ID), old, mustJSON(l))
	return nil
}

func (c *catalog) putContainer(p *puts, st chunkstore.State) {
	var old []byte
	if prev, ok := c.containers[st.ID]; ok {
		if prev == st {
			return
		}
		old = mustJSON(&prev)
	}
	c.containers[st.ID] = st
	c.root.NextID = max(c.root.NextID, st.ID+1)
	p.set(&c.root.Containers, keyContainer(st.ID), old, mustJSON(&st))
}

// addPoint puts the point and its VM, which appears with its first point.
func (c *catalog) addPoint(p *puts, s *sealChange, pt *Point) {
	vm, old := c.vms[s.VM], []byte(nil)
	if vm == nil {
		c.freeName(p, s.VM, s.Name)
		vm = &VM{ID: s.VM, Of: s.Of, Name: s.Name, Created: pt.Time, Next: 1}
	} else {
		old = mustJSON(vm)
		vm = vm.clone()
	}
	for i := range pt.Disks {
		d := &pt.Disks[i]
		if j := slices.IndexFunc(vm.Disks, func(v VMDisk) bool { return v.Name == d.Name }); j < 0 {
			vm.Disks = append(vm.Disks, VMDisk{d.Name, d.Lineage})
		} else {
			vm.Disks[j].Lineage = d.Lineage
		}
		c.root.LogicalBytes += d.DataBytes
	}
	vm.Points++
	vm.Next = max(vm.Next, pt.Ordinal+1)
	vm.Latest, vm.Time = pt.ID, pt.Time
	p.set(&vm.Sum, keyPoint(vm.ID, pt.Ordinal), nil, mustJSON(pt))
	c.vms[vm.ID] = vm
	c.root.Points++
	p.set(&c.root.VMs, keyVM(vm.ID), old, mustJSON(vm))
}

// applyDrop takes points away. Their lineages and seals stay: a later point, a branch or a mount may stand
// on them.
func (c *catalog) applyDrop(p *puts, d *dropChange) error {
	vm := c.vms[d.VM]
	if vm == nil {
		return errs.New(errs.Corrupt, "%d points of VM %s cannot be dropped: it is not known", len(d.Points), d.VM)
	}
	old := mustJSON(vm)
	vm = vm.clone()
	for _, pt := range d.Points {
		key := keyPoint(vm.ID, pt.Ordinal)
		if !c.hasPoint(key, pt.Digest) {
			continue // its seal was lost with a part of the journal
		}
		vm.Sum = vm.Sum.xor(pt.Digest)
		p.add(key, nil)
		c.putGuard(p, pointKey{vm.ID, pt.Ordinal}, Guard{})
		c.root.LogicalBytes -= pt.Data
		vm.Points--
		c.root.Points--
	}
	if d.Whole {
		c.root.Points -= vm.Points // those that nobody knew when it went
		delete(c.vms, vm.ID)
		c.putRules(p, vm.ID, "")
		p.set(&c.root.VMs, keyVM(vm.ID), old, nil)
		return nil
	}
	vm.Latest, vm.Time = d.Latest, d.Time
	c.vms[vm.ID] = vm
	p.set(&c.root.VMs, keyVM(vm.ID), old, mustJSON(vm))
	return nil
}

func (c *catalog) applyNames(p *puts, n *nameChange) error {
	for id := range n.Names {
		if c.vms[id] == nil {
			return errs.New(errs.Corrupt, "VM %s cannot be renamed: it is not known", id)
		}
	}
	for id, name := range n.Names {
		c.freeName(p, id, name)
		c.setName(p, id, name)
	}
	return nil
}

func (c *catalog) setName(p *puts, id VMID, name string) {
	old, vm := mustJSON(c.vms[id]), c.vms[id].clone()
	vm.Name = name
	c.vms[id] = vm
	p.set(&c.root.VMs, keyVM(id), old, mustJSON(vm))
}

// freeName gives a VM that has the name another one. No two have one name, unless the journal lost that one of
// them was renamed or removed.
func (c *catalog) freeName(p *puts, id VMID, name string) {
	if other := c.find(name); other != nil && other.ID != id {
		c.setName(p, other.ID, name+"~"+other.ID.String())
	}
}

func (c *catalog) applyPack(p *puts, k *packChange) error {
	old, ok := c.containers[k.State.ID]
	if !ok || old.Gen >= k.State.Gen || old.Slots != k.State.Slots {
		return errs.New(errs.Corrupt, "container %s cannot have generation %d", k.State.ID, k.State.Gen)
	}
	c.putContainer(p, k.State)
	c.root.StoredBytes -= k.Freed
	return nil
}

// applySweep takes away what a collection found to be unused.
func (c *catalog) applySweep(p *puts, w *sweepChange) error {
	if st := w.State; st != nil {
		old, ok := c.containers[st.ID]
		if !ok || old.Gen >= st.Gen || old.Slots != st.Slots {
			return errs.New(errs.Corrupt, "container %s cannot have generation %d", st.ID, st.Gen)
		}
		c.putContainer(p, *st)
	}
	for _, id := range w.Gone {
		if _, ok := c.containers[id]; ok { // else its seal was lost with a part of the journal
			c.putContainer(p, chunkstore.State{ID: id, Gone: true})
		}
	}
	for _, f := range w.Forgotten {
		for _, seq := range f.Seqs {
			p.add(keySeal(f.Lineage, seq), nil)
		}
		if l := c.lineages[f.Lineage]; l != nil && f.Whole {
			delete(c.lineages, l.ID)
			p.set(&c.root.Lineages, keyLineage(l.ID), mustJSON(l), nil)
		}
	}
	c.root.StoredBytes -= w.Freed
	c.root.RawBytes -= w.FreedRaw
	return nil
}

// dropContainers forgets containers that are gone and whose files were removed. The journal has that already.
func (c *catalog) dropContainers(ids []chunkstore.ContainerID) *puts {
	p := &puts{}
	for _, id := range ids {
		if old, ok := c.containers[id]; ok && old.Gone {
			delete(c.containers, id)
			p.set(&c.root.Containers, keyContainer(id), mustJSON(&old), nil)
			p.add(be64("c", uint64(id)), nil)
		}
	}
	p.add(keyRoot(), mustJSON(&c.root))
	return p
}

// clone lets readers keep the VM that they were given.
func (v *VM) clone() *VM {
	w := *v
	w.Disks = append([]VMDisk(nil), v.Disks...)
	return &w
}

// putContainers records states ahead of the change that they belong to, which is in the journal already.
func (c *catalog) putContainers(list []chunkstore.State) *puts {
	p := &puts{}
	for _, st := range list {
		c.putContainer(p, st)
	}
	p.add(keyRoot(), mustJSON(&c.root))
	return p
}
