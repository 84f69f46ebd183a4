package vmfiles

import "strings"

// What VMware writes for a drive with nothing in it, that is offered to whoever opens the console.
const (
	emptyCDROM  = "emptyBackingString"
	emptyFloppy = "vmware-null-remote-floppy"
)

// drives empties all CD-ROM drives, and switches off what else is on the buses of disks and leads outside, as
// a tape drive of the host.
func (a *adjuster) drives() {
	for _, d := range a.v.devices() {
		switch {
		case d.isCDROM():
			a.empty(d)
		case !d.isDisk() && isOutside(d.file):
			a.switchOff(d)
		}
	}
}

func (a *adjuster) empty(d device) {
	a.v.Set(d.key("startConnected"), "FALSE")
	if d.file == emptyCDROM {
		return
	}
	a.v.Set(d.key("deviceType"), "cdrom-raw")
	a.v.Set(d.key("clientDevice"), "TRUE")
	a.v.Set(d.key("fileName"), emptyCDROM)
	a.notes.add("the CD-ROM drive %v is empty, it had %.60q", d.slot, plainName(d.file))
}

// floppies empties the floppy drives. VMware takes one for present unless told otherwise.
func (a *adjuster) floppies() {
	for _, drive := range []string{"floppy0", "floppy1"} {
		file := a.v.value(drive + ".fileName")
		if file == "" || file == emptyFloppy || a.v.is(drive+".present", "FALSE") {
			continue
		}
		a.gone[drive+".filetype"] = true
		a.v.Set(drive+".startConnected", "FALSE")
		a.v.Set(drive+".clientDevice", "TRUE")
		a.v.Set(drive+".fileName", emptyFloppy)
		a.notes.add("the drive %s is empty, it had %.60q", drive, plainName(file))
	}
}

// ports disconnects serial and parallel ports. The guest keeps them, since it may wait for a port that it has
// always had; behind each is a file of the folder, which is made only when somebody connects it.
func (a *adjuster) ports() {
	ports := map[string]bool{}
	for _, key := range a.v.Keys() {
		port, property, _ := strings.Cut(fold(key), ".")
		if isPort(port) && property == "present" && a.v.is(key, "TRUE") {
			ports[port] = true
		}
	}
	a.v.deleteIf(func(l *line) bool {
		port, property, _ := strings.Cut(fold(l.key), ".")
		return ports[port] && isBacking(property)
	})
	for _, key := range a.v.Keys() { // for their order
		port, property, _ := strings.Cut(fold(key), ".")
		if property == "present" && ports[port] {
			a.disconnect(port)
		}
	}
}

func (a *adjuster) disconnect(port string) {
	old := a.v.value(port + ".fileName")
	a.v.Set(port+".fileType", "file")
	a.v.Set(port+".fileName", port+".out")
	if old == port+".out" && a.v.is(port+".startConnected", "FALSE") {
		return
	}
	a.v.Set(port+".startConnected", "FALSE")
	a.notes.add("the port %s is not connected, it was to %.60q", port, old)
}

func isPort(s string) bool {
	for _, kind := range []string{"serial", "parallel"} {
		if n, ok := strings.CutPrefix(s, kind); ok {
			_, small := smallNumber(n)
			return small
		}
	}
	return false
}

// isBacking tells whether a property of a port belongs to a pipe, a network or a device.
func isBacking(property string) bool {
	kind, _, _ := strings.Cut(property, ".")
	return kind == "pipe" || kind == "network" || kind == "vspc" || kind == "autodetect"
}
