package snapshotchain

import (
	"cmp"
	"math/bits"
	"slices"

	"livemount/snapshotchain/chunkstore"
)

// slotSet is a set of slots of the containers that there were when it was made: one bit each, so 125 MB for a billion.
// What points into other containers is left out. It is for one goroutine.
type slotSet struct {
	states []chunkstore.State // ascending
	start  []int              // of each container's bits, in words
	words  []uint64
	last   int // index of the container that was asked for last
}

func newSlotSet(states []chunkstore.State) *slotSet {
	slices.SortFunc(states, func(a, b chunkstore.State) int { return cmp.Compare(a.ID, b.ID) })
	s := &slotSet{states: states, start: make([]int, len(states)+1)}
	for i, st := range states {
		s.start[i+1] = s.start[i] + (int(st.Slots)+63)/64
	}
	s.words = make([]uint64, s.start[len(states)])
	return s
}

// find returns the index of a container, or -1.
func (s *slotSet) find(id chunkstore.ContainerID) int {
	if s.last < len(s.states) && s.states[s.last].ID == id {
		return s.last
	}
	i, ok := slices.BinarySearchFunc(s.states, id, func(st chunkstore.State, id chunkstore.ContainerID) int { return cmp.Compare(st.ID, id) })
	if !ok {
		return -1
	}
	s.last = i
	return i
}

func (s *slotSet) add(p chunkstore.Ptr) {
	if i := s.find(p.Container); i >= 0 && p.Slot < s.states[i].Slots {
		s.words[s.start[i]+int(p.Slot/64)] |= 1 << (p.Slot % 64)
	}
}

func (s *slotSet) has(p chunkstore.Ptr) bool {
	i := s.find(p.Container)
	return i >= 0 && p.Slot < s.states[i].Slots && s.words[s.start[i]+int(p.Slot/64)]&(1<<(p.Slot%64)) != 0
}

// count returns how many slots of the i-th container are in the set.
func (s *slotSet) count(i int) (n int) {
	for _, w := range s.words[s.start[i]:s.start[i+1]] {
		n += bits.OnesCount64(w)
	}
	return n
}
