package vmfiles

import (
	"cmp"
	"strings"
)

// Adjust makes a captured configuration fit for a folder that holds the disks of m: its disk devices get our
// descriptors, everything else that is a file outside of the folder is disconnected, reduced to a plain name or
// removed. Memory, processors, network adapters, identities and all else stay as captured. It returns notes of
// what was changed beyond paths.
//
// A disk device gets the disk that is named after its place ("scsi0:0", or "scsi0-0"), else the one named as
// its file was (a snapshot's "-000001" does not count), else, when as many devices as disks are left, the next
// in order. A device without a disk is switched off; a disk without a device gets one on a SCSI controller.
//
// displayName stays, unless it differs from m.Name and m.DisplayName is given.
func Adjust(v *VMX, m Machine) []string {
	a := &adjuster{v: v, m: m, gone: map[string]bool{}}
	a.name()
	a.disks()
	a.drives()
	a.floppies()
	a.ports()
	a.state()
	a.files()
	return a.notes.all()
}

type adjuster struct {
	v     *VMX
	m     Machine
	gone  map[string]bool // keys in lower case that files removes, all in one pass
	notes notes
}

func (a *adjuster) name() {
	old, name := a.v.value("displayName"), a.m.DisplayName
	if enc := a.v.value(".encoding"); enc != "" && fold(enc) != "utf-8" && !isASCII(name) {
		name = SafeName(name) // it would be read in the encoding of the file
	}
	if name == "" || old == a.m.Name || old == name {
		return
	}
	a.v.Set("displayName", name)
	a.notes.add("the display name is %.60q, it was %.60q", name, old)
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r > 0x7f })
}

func (a *adjuster) disks() {
	var found []device
	for _, d := range a.v.devices() {
		if d.isDisk() {
			found = append(found, d)
		}
	}
	attached := make([]bool, len(a.m.Disks))
	for i, f := range match(found, a.m.Disks) {
		if f.disk < 0 {
			a.switchOff(found[i])
			continue
		}
		a.replace(found[i], a.m.Disks[f.disk].Name, f.guess)
		attached[f.disk] = true
	}
	r := newRack(a.v)
	for j, d := range a.m.Disks {
		if !attached[j] {
			a.add(r, d.Name)
		}
	}
}

// replace gives a device the descriptor of our disk, which has no redo log and is no device of a host.
func (a *adjuster) replace(d device, name string, guess bool) {
	if guess {
		a.notes.add("%v has disk %.60q by its order alone: its file was named %.60q", d.slot, name, plainName(d.file))
	}
	a.v.Set(d.key("fileName"), DescriptorName(name))
	if a.v.value(d.key("redo")) != "" {
		a.v.Set(d.key("redo"), "")
	}
	switch {
	case d.kind == "rawdisk" && d.bus == busSCSI:
		a.v.Set(d.key("deviceType"), hardDisk)
	case d.kind == "rawdisk":
		a.v.Set(d.key("deviceType"), "disk")
	}
}

func (a *adjuster) switchOff(d device) {
	a.v.Set(d.key("present"), "FALSE")
	a.gone[fold(d.key("fileName"))] = true
	a.notes.add("%v is switched off: there is nothing for it here (%.60q)", d.slot, plainName(d.file))
}

// add attaches a disk that the configuration does not know.
func (a *adjuster) add(r *rack, name string) {
	if s, ok := r.attach(name, busSCSI, a.scsiModel()); ok {
		a.notes.add("disk %.60q had no device and is now at %v (%s)", name, s, a.v.value(s.controller()+".virtualDev"))
	} else {
		a.notes.add("disk %.60q is not attached: no SCSI controller has a free place", name)
	}
}

// scsiModel is that of the first SCSI controller, for which the guest has a driver, else one for the guest.
func (a *adjuster) scsiModel() string {
	for ctl := range controllersOf(busSCSI) {
		c := slot{bus: busSCSI, ctl: ctl}.controller()
		if model := a.v.value(c + ".virtualDev"); model != "" && a.v.is(c+".present", "TRUE") {
			return model
		}
	}
	return scsiModelFor(a.v.value("guestOS"))
}

// BusOf tells on which bus a configuration has one of our disks, for the descriptor of it (Disk.Bus): "ide",
// "sata", "nvme" or the model of the SCSI controller ("scsi" when the configuration leaves it to VMware). It is ""
// for a disk that is not attached.
func BusOf(v *VMX, disk string) string {
	for _, d := range v.devices() {
		if d.file != DescriptorName(disk) || !d.isDisk() {
			continue
		}
		if d.bus == busSCSI {
			return cmp.Or(fold(v.value(d.controller()+".virtualDev")), busSCSI)
		}
		return d.bus
	}
	return ""
}
