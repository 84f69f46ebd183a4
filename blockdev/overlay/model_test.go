package overlay

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"livemount/blockdev"
	"livemount/internal/vfs"
)

// machine drives a log and byte arrays side by side.
type machine struct {
	opts  Options
	nodes []Node
	log   *Log
	devs  []blockdev.Device
	model [][]byte
	bases []*blockdev.Mem
	stamp uint64
	fresh [][]byte // before the first write
	views []view
	past  []moment
}

// moment is what was shown at a position.
type moment struct {
	at    Position
	model [][]byte
}

func (m *machine) open(t *rapid.T) {
	for i := range m.nodes {
		d, err := m.log.Device(m.nodes[i].ID)
		if err != nil {
			t.Fatal(err)
		}
		m.devs[i] = d
	}
}

func (m *machine) pick(t *rapid.T) (i int, off, n int64) {
	i = rapid.IntRange(0, len(m.nodes)-1).Draw(t, "node")
	size := m.nodes[i].Size
	off = rapid.Int64Range(0, size-1).Draw(t, "off")
	if rapid.Bool().Draw(t, "aligned") {
		off &^= 511
	}
	n = rapid.OneOf(rapid.Int64Range(0, 600), rapid.Int64Range(0, size)).Draw(t, "n")
	return i, off, min(n, size-off)
}

func (m *machine) Write(t *rapid.T) {
	i, off, n := m.pick(t)
	m.stamp++
	p := stamp(int(n), m.stamp)
	if err := m.devs[i].WriteAt(bg(), p, off); err != nil {
		t.Fatal(err)
	}
	copy(m.model[i][off:], p)
}

func (m *machine) Zero(t *rapid.T) {
	i, off, n := m.pick(t)
	if err := m.devs[i].Zero(bg(), off, n); err != nil {
		t.Fatal(err)
	}
	clear(m.model[i][off : off+n])
}

func (m *machine) Read(t *rapid.T) {
	i, off, n := m.pick(t)
	p := make([]byte, n)
	if err := m.devs[i].ReadAt(bg(), p, off); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, m.model[i][off:off+n]) {
		t.Fatalf("node %d, %d+%d differs", i, off, n)
	}
}

func (m *machine) Sync(t *rapid.T) {
	if err := m.devs[0].Sync(bg()); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) Clean(t *rapid.T) {
	if err := m.log.Clean(bg()); err != nil {
		t.Fatal(err)
	}
	if s := m.log.Stats(); s.LogBytes > 3*s.LiveBytes+3*m.opts.SegmentBytes {
		t.Fatalf("after clean-up: %+v", s)
	}
}

func (m *machine) Reopen(t *rapid.T) {
	if err := m.log.Close(); err != nil {
		t.Fatal(err)
	}
	l, rep, err := Open(bg(), m.opts, m.nodes)
	if err != nil {
		t.Fatal(err)
	}
	if rep.Rotten || rep.CutBytes > 0 || len(rep.Notes) > 0 {
		t.Fatalf("after a clean close: %+v", rep)
	}
	m.log = l
	m.open(t)
}

func (m *machine) Extents(t *rapid.T) {
	i, off, n := m.pick(t)
	at := off
	for e, err := range m.devs[i].Extents(bg(), off, n) {
		if err != nil || e.Off != at || e.Len <= 0 {
			t.Fatalf("extent %+v at %d: %v", e, at, err)
		}
		at = e.End()
		if e.Kind != blockdev.Data && !blockdev.IsZero(m.model[i][e.Off:e.End()]) {
			t.Fatalf("extent %+v is not zero", e)
		}
	}
	if at != off+n {
		t.Fatalf("extents end at %d, not %d", at, off+n)
	}
}

// Check is run after each action.
func (m *machine) Check(t *rapid.T) {
	var live, log int64
	for _, s := range m.log.live.segments {
		live += s.live
		log += s.used.Load()
	}
	if live != m.log.live.bytes || log != m.log.logBytes.Load() {
		t.Fatalf("live %d, counted %d; log %d, counted %d", m.log.live.bytes, live, m.log.logBytes.Load(), log)
	}
}

// newMachine makes the first log.
func newMachine(t *rapid.T) *machine {
	m := &machine{devs: make([]blockdev.Device, 3)}
	m.opts = testOptions(vfs.NewMem())
	m.bases = []*blockdev.Mem{pattern(30000, 1), pattern(1000, 2)}
	m.nodes = []Node{{ID: 1, Base: m.bases[0], Size: 30000}, {ID: 2, Base: m.bases[1], Size: 70001}, {ID: 9, Size: 5000}}
	for _, n := range m.nodes {
		p := make([]byte, n.Size)
		if n.Base != nil {
			_ = n.Base.ReadAt(bg(), p[:n.Base.Size()], 0)
		}
		m.model = append(m.model, p)
	}
	m.fresh = cloneModel(m.model)
	_ = m.opts.FS.MkdirAll("/m")
	var err error
	if m.log, err = Create(bg(), m.opts, m.nodes); err != nil {
		t.Fatal(err)
	}
	m.open(t)
	return m
}

// finish compares all at the end.
func (m *machine) finish(t *rapid.T) {
	for i, d := range m.devs {
		p := make([]byte, d.Size())
		if err := d.ReadAt(bg(), p, 0); err != nil || !bytes.Equal(p, m.model[i]) {
			t.Fatalf("node %d differs at the end: %v", i, err)
		}
	}
	for _, v := range m.views {
		v.check(t, m.nodes)
	}
	for i, b := range m.bases {
		p, q := make([]byte, b.Size()), make([]byte, b.Size())
		_, _ = b.ReadAt(bg(), p, 0), pattern(b.Size(), uint64(i+1)).ReadAt(bg(), q, 0)
		if !bytes.Equal(p, q) {
			t.Fatal("the base was written")
		}
	}
}

func TestOverlayBehavesLikeByteArraysAndNeverWritesBase(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t)
		t.Repeat(rapid.StateMachineActions(m))
		m.finish(t)
	})
}
