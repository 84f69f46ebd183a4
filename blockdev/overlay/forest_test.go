package overlay

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"livemount/blockdev"
	"livemount/internal/vfs"
)

// forest drives a log, its forks and theirs, each beside its own byte arrays.
type forest struct {
	logs []*machine
	made int
}

const forestMost = 4

// on runs an action on one of the logs.
func (f *forest) on(t *rapid.T, act func(*machine, *rapid.T)) {
	act(f.logs[rapid.IntRange(0, len(f.logs)-1).Draw(t, "log")], t)
}

func (f *forest) Write(t *rapid.T)   { f.on(t, (*machine).Write) }
func (f *forest) Zero(t *rapid.T)    { f.on(t, (*machine).Zero) }
func (f *forest) Read(t *rapid.T)    { f.on(t, (*machine).Read) }
func (f *forest) Extents(t *rapid.T) { f.on(t, (*machine).Extents) }
func (f *forest) Reopen(t *rapid.T)  { f.on(t, (*machine).Reopen) }
func (f *forest) Freeze(t *rapid.T)  { f.on(t, (*machine).Freeze) }
func (f *forest) Thaw(t *rapid.T)    { f.on(t, (*machine).Thaw) }
func (f *forest) Clean(t *rapid.T)   { f.on(t, (*machine).Clean) }

func (f *forest) Fork(t *rapid.T) {
	if len(f.logs) == forestMost {
		t.Skip("enough")
	}
	f.on(t, f.fork)
}

func (f *forest) fork(m *machine, t *rapid.T) {
	f.made++
	c := &machine{
		opts: m.opts, nodes: m.nodes, devs: make([]blockdev.Device, len(m.nodes)), model: cloneModel(m.model), bases: m.bases,
		stamp: m.stamp + uint64(f.made)<<32, fresh: m.fresh, past: slices.Clone(m.past),
	}
	c.opts.Dir, c.opts.Mount = fmt.Sprintf("/m/fork%d", f.made), [16]byte{byte(f.made), byte(f.made >> 8), 0xf}
	err := m.log.Fork(bg(), c.opts.Dir, c.opts.Mount)
	if err != nil {
		t.Fatal(err)
	}
	if c.log, _, err = Open(bg(), c.opts, c.nodes); err != nil {
		t.Fatal(err)
	}
	c.open(t)
	c.Freeze(t)
	f.logs = append(f.logs, c)
}

// Drop removes a log with its folder; its views, and the others, are not touched by it.
func (f *forest) Drop(t *rapid.T) {
	if len(f.logs) == 1 {
		t.Skip("the last one")
	}
	i := rapid.IntRange(0, len(f.logs)-1).Draw(t, "log")
	m := f.logs[i]
	if err := m.log.Close(); err != nil {
		t.Fatal(err)
	}
	if err := vfs.RemoveAll(m.opts.FS, m.opts.Dir); err != nil {
		t.Fatal(err)
	}
	for _, v := range m.views {
		v.check(t, m.nodes)
	}
	f.logs = slices.Delete(f.logs, i, i+1)
}

// Check is run after each action.
func (f *forest) Check(t *rapid.T) {
	for _, m := range f.logs {
		m.Check(t)
	}
}

func TestForksBehaveLikeCopiesOfByteArrays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := &forest{logs: []*machine{newMachine(t)}}
		t.Repeat(rapid.StateMachineActions(f))
		for _, m := range f.logs {
			m.Reopen(t)
			m.finish(t)
			if err := m.log.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
