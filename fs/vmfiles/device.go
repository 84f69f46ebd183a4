package vmfiles

import (
	"slices"
	"strings"
)

// device is a present disk or CD-ROM drive of a configuration.
type device struct {
	slot
	file string
	kind string // deviceType, in lower case
}

// devices returns what is present, in the order of the buses.
func (v *VMX) devices() []device {
	var list []device
	for _, key := range v.Keys() {
		place, property, _ := strings.Cut(fold(key), ".")
		if s, ok := parseSlot(place); ok && property == "present" && v.is(key, "TRUE") {
			list = append(list, device{s, v.value(s.key("fileName")), fold(v.value(s.key("deviceType")))})
		}
	}
	slices.SortFunc(list, func(a, b device) int { return compareSlots(a.slot, b.slot) })
	return list
}

func (d device) isCDROM() bool {
	return strings.Contains(d.kind, "cdrom") || d.kind == "" && strings.HasSuffix(fold(d.file), ".iso")
}

func (d device) isDisk() bool {
	return !d.isCDROM() && (strings.Contains(d.kind, "disk") || strings.HasSuffix(fold(d.file), descriptorSuffix))
}

// base is the name of the captured descriptor, without folder and suffix.
func (d device) base() string {
	name := plainName(d.file)
	if strings.HasSuffix(fold(name), descriptorSuffix) {
		name = name[:len(name)-len(descriptorSuffix)]
	}
	return name
}

// withoutSnapshot removes what the hypervisor appends for a delta disk: "-000001".
func withoutSnapshot(name string) string {
	const digits = 6
	at := len(name) - digits - 1
	if at <= 0 || name[at] != '-' || strings.Trim(name[at+1:], "0123456789") != "" {
		return name
	}
	return name[:at]
}

// fit is the disk that was found for a device; -1 is none. A guess is one by order alone.
type fit struct {
	disk  int
	guess bool
}

// match finds a disk for each device: by the place in its name, then by the name of its file, then, when as
// many are left on both sides, by order.
func match(devices []device, disks []Disk) []fit {
	fits := make([]fit, len(devices))
	for i := range fits {
		fits[i].disk = -1
	}
	taken := make([]bool, len(disks))
	for _, same := range []func(device, Disk) bool{samePlace, sameFile, sameSafeFile} {
		pass(devices, disks, fits, taken, same)
	}
	matchInOrder(fits, taken)
	return fits
}

func pass(devices []device, disks []Disk, fits []fit, taken []bool, same func(device, Disk) bool) {
	for i, dev := range devices {
		for j := range disks {
			if fits[i].disk < 0 && !taken[j] && same(dev, disks[j]) {
				fits[i].disk, taken[j] = j, true
			}
		}
	}
}

func samePlace(dev device, d Disk) bool {
	place := dev.String()
	name := fold(d.Name)
	return name == place || name == SafeName(place)
}

func sameFile(dev device, d Disk) bool {
	base := dev.base()
	return d.Name == base || d.Name == withoutSnapshot(base)
}

func sameSafeFile(dev device, d Disk) bool {
	base, name := dev.base(), SafeName(d.Name)
	return base != "" && (name == SafeName(base) || name == SafeName(withoutSnapshot(base)))
}

func matchInOrder(fits []fit, taken []bool) {
	var left []int
	for j, t := range taken {
		if !t {
			left = append(left, j)
		}
	}
	lonely := 0
	for _, f := range fits {
		if f.disk < 0 {
			lonely++
		}
	}
	for i := 0; lonely == len(left) && i < len(fits); i++ {
		if fits[i].disk < 0 {
			fits[i] = fit{left[0], true}
			left, lonely = left[1:], lonely-1
		}
	}
}
