package crash

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// span is from when on something may have taken effect, and from when on it must have: the entries in the
// log of the disk when it was asked for and when it was acknowledged.
type span struct{ from, to int64 }

// certainty is what a power cut leaves of something that happens once.
type certainty int

const (
	never certainty = iota // it was not asked for yet
	maybe
	surely // it was acknowledged
)

// at tells for a cut behind so many entries. A span that is nil never happened.
func (s *span) at(cut int64) certainty {
	switch {
	case s == nil:
		return never
	case cut >= s.to:
		return surely
	case cut <= s.from:
		return never
	}
	return maybe
}

// step is something that was done.
type step struct {
	kind string
	span
}

// story is all that was done to a store and when, by the log of its disk. Its methods may be called from
// several goroutines; what they return is changed by one goroutine only.
type story struct {
	position func() (int64, error)

	mu     sync.Mutex // guards what is below
	steps  []step
	points []*toldPoint // in the order of their acknowledgement
	mounts []*toldMount
}

// toldPoint is a point with what was done to it.
type toldPoint struct {
	vm    string
	want  expected
	made  span
	gone  *span
	holds []*toldHold
	lock  *span
	until time.Time
}

type toldHold struct {
	reason string
	made   span
	ended  *span
}

// do notes when a step began and when it was acknowledged.
func (s *story) do(kind string, what func() error) (*span, error) {
	from, err := s.position()
	if err != nil {
		return nil, err
	}
	if err := what(); err != nil {
		return nil, err
	}
	to, err := s.position()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = append(s.steps, step{kind, span{from, to}})
	return &span{from, to}, nil
}

func (s *story) addPoint(vm string, want expected, made *span) *toldPoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &toldPoint{vm: vm, want: want, made: *made}
	s.points = append(s.points, p)
	return p
}

func (s *story) addMount(m *toldMount) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mounts = append(s.mounts, m)
}

// free returns the points that can be expired: not those that pinned names.
func (s *story) free(pinned ...string) []*toldPoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*toldPoint
	for _, p := range s.points {
		held := slices.ContainsFunc(p.holds, func(h *toldHold) bool { return h.ended == nil })
		if p.gone == nil && p.lock == nil && !held && !slices.Contains(pinned, p.want.id) {
			list = append(list, p)
		}
	}
	return list
}

// vms returns the names of all VMs and branches.
func (s *story) vms() []string {
	var list []string
	for _, p := range s.points {
		if !slices.Contains(list, p.vm) {
			list = append(list, p.vm)
		}
	}
	return list
}

// of returns the points of a VM or branch.
func (s *story) of(vm string) []*toldPoint {
	var list []*toldPoint
	for _, p := range s.points {
		if p.vm == vm {
			list = append(list, p)
		}
	}
	return list
}

// at tells whether a point is there after a cut.
func (p *toldPoint) at(cut int64) certainty {
	made, gone := p.made.at(cut), p.gone.at(cut)
	switch {
	case made == never || gone == surely:
		return never
	case made == surely && gone == never:
		return surely
	}
	return maybe
}

func (h *toldHold) at(cut int64) certainty {
	return (&toldPoint{made: h.made, gone: h.ended}).at(cut)
}

// under returns which steps a cut was in the middle of.
func (s *story) under(cut int64) string {
	var list []string
	for _, st := range s.steps {
		if st.from < cut && cut < st.to {
			list = append(list, st.kind)
		}
	}
	if list == nil {
		return "between steps"
	}
	return strings.Join(list, ", ")
}

// toldMount is a mount that is written to.
type toldMount struct {
	id, path string
	made     span
	kept     *span // it was unmounted, and what was written was kept
	gone     *span // it was unmounted for good
	seed     uint64
	base     [][]byte // its disks when it was made
	disks    [][]byte // its disks now
	history  *history
	done     uint64     // writes
	syncs    []toldSync // ascending
}

// toldSync is an fsync that returned: so many writes are acknowledged.
type toldSync struct {
	writes uint64
	to     int64
}

// bounds returns how many writes must be there after a cut, and how many can be.
func (m *toldMount) bounds(cut int64) (least, most uint64) {
	for _, s := range m.syncs {
		if s.to >= cut { // what was written later is behind this
			if s.to == cut {
				least = s.writes
			}
			return least, s.writes
		}
		least = s.writes
	}
	return least, m.done
}
