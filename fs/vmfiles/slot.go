package vmfiles

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

const (
	busSCSI = "scsi"
	busSATA = "sata"
	busIDE  = "ide"
	busNVMe = "nvme"

	// adapterUnit is where a SCSI controller itself sits on its bus: never a disk.
	adapterUnit = 7

	hardDisk = "scsi-hardDisk" // deviceType
)

// slot is a place for a disk or a CD-ROM drive: "scsi0:1".
type slot struct {
	bus       string
	ctl, unit int
}

func (s slot) String() string { return fmt.Sprintf("%s:%d", s.controller(), s.unit) }

// controller is the key of the controller: "scsi0".
func (s slot) controller() string { return s.bus + strconv.Itoa(s.ctl) }

// key is the key of a property of what is there.
func (s slot) key(property string) string { return s.String() + "." + property }

// buses is in the order in which disks are counted.
func buses() []string { return []string{busSCSI, busSATA, busIDE, busNVMe} }

// controllersOf and unitsOf are what every supported version of ESXi takes.
func controllersOf(bus string) int {
	if bus == busIDE {
		return 2
	}
	return 4
}

func unitsOf(bus string) int {
	switch bus {
	case busIDE:
		return 2
	case busSATA:
		return 30
	case busNVMe:
		return 15
	}
	return 16
}

// parseSlot reads a place in lower case.
func parseSlot(s string) (slot, bool) {
	for _, bus := range buses() {
		rest, ok := strings.CutPrefix(s, bus)
		ctl, unit, colon := strings.Cut(rest, ":")
		if !ok || !colon {
			continue
		}
		p := slot{bus: bus}
		var okCtl, okUnit bool
		p.ctl, okCtl = smallNumber(ctl)
		p.unit, okUnit = smallNumber(unit)
		return p, okCtl && okUnit
	}
	return slot{}, false
}

// smallNumber reads 0 to 255, written in one way only, so that one place has one name.
func smallNumber(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 8)
	return int(n), err == nil && strconv.FormatUint(n, 10) == s
}

func compareSlots(a, b slot) int {
	order := buses()
	return cmp.Or(
		cmp.Compare(slices.Index(order, a.bus), slices.Index(order, b.bus)),
		cmp.Compare(a.ctl, b.ctl), cmp.Compare(a.unit, b.unit),
	)
}

// rack finds free places in a configuration. A place of which the configuration says anything at all is not
// free, so that a new disk inherits nothing from what was there.
type rack struct {
	v    *VMX
	used map[string]bool // places and controllers
}

func newRack(v *VMX) *rack {
	r := &rack{v: v, used: map[string]bool{}}
	for _, key := range v.Keys() {
		r.use(key)
	}
	return r
}

func (r *rack) use(key string) {
	place, _, _ := strings.Cut(fold(key), ".")
	r.used[place] = true
	if ctl, _, ok := strings.Cut(place, ":"); ok {
		r.used[ctl] = true
	}
}

// place takes a free place on a controller that is there, or on a new one of the model.
func (r *rack) place(bus, model string) (slot, bool) {
	for ctl := range controllersOf(bus) {
		if s := (slot{bus: bus, ctl: ctl}); r.ready(s.controller()) && r.unit(&s) {
			return s, true
		}
	}
	for ctl := range controllersOf(bus) {
		s := slot{bus: bus, ctl: ctl}
		if r.used[s.controller()] {
			continue
		}
		r.build(s, model)
		return s, r.unit(&s)
	}
	return slot{}, false
}

// ready tells whether there is the controller. Those for IDE are on the mainboard.
func (r *rack) ready(controller string) bool {
	return strings.HasPrefix(controller, busIDE) || r.v.is(controller+".present", "TRUE")
}

func (r *rack) build(s slot, model string) {
	r.v.Set(s.controller()+".present", "TRUE")
	if s.bus == busSCSI {
		r.v.Set(s.controller()+".virtualDev", model)
	}
	r.used[s.controller()] = true
}

// unit takes the first free unit of the controller of s.
func (r *rack) unit(s *slot) bool {
	for s.unit = range unitsOf(s.bus) {
		if !r.used[s.String()] && (s.bus != busSCSI || s.unit != adapterUnit) {
			r.use(s.String())
			return true
		}
	}
	return false
}

// attach puts a disk on a free place of the bus.
func (r *rack) attach(name, bus, model string) (slot, bool) {
	s, ok := r.place(bus, model)
	if !ok {
		return s, false
	}
	if bus == busSCSI { // elsewhere a hard disk is what VMware takes for granted
		r.v.Set(s.key("deviceType"), hardDisk)
	}
	r.v.Set(s.key("fileName"), DescriptorName(name))
	r.v.Set(s.key("present"), "TRUE")
	return s, true
}
