package vmfiles

import (
	"bytes"
	"cmp"
	"fmt"
	"net"
	"strconv"
)

// Generate makes a configuration for a machine of which none was captured: its disks on one kind of
// controller, its network adapters, and what VMware needs to power it on. GenerateNotes has what to tell about it.
func Generate(m Machine) *VMX {
	v, _ := generate(m)
	return v
}

// GenerateNotes returns what Generate could not do, or had to bend, for the machine.
func GenerateNotes(m Machine) []string {
	_, list := generate(m)
	return list
}

func generate(m Machine) (*VMX, []string) {
	g := &generator{v: &VMX{}, m: m}
	g.general()
	g.firmware()
	g.mainboard()
	g.disks()
	for i, n := range m.NICs[:min(len(m.NICs), maxNICs)] {
		g.nic("ethernet"+strconv.Itoa(i)+".", n)
	}
	if more := len(m.NICs) - maxNICs; more > 0 {
		g.notes.add("%d network adapters are left out: VMware has %d", more, maxNICs)
	}
	return g.v, g.notes.all()
}

type generator struct {
	v     *VMX
	m     Machine
	notes notes
}

// set sets pairs of keys and values.
func (g *generator) set(pairs ...string) {
	for i := 0; i+1 < len(pairs); i += 2 {
		g.v.Set(pairs[i], pairs[i+1])
	}
}

func (g *generator) general() {
	m, file := g.m, SafeName(g.m.Name)
	memory := max(4, (cmp.Or(max(0, m.MemoryMiB), defaultMemoryMiB)+3)/4*4) // VMware wants a multiple of 4
	g.set(
		".encoding", "UTF-8",
		"config.version", "8",
		"virtualHW.version", strconv.Itoa(cmp.Or(max(0, m.HardwareVersion), DefaultHardwareVersion)),
		"displayName", cmp.Or(m.DisplayName, m.Name, file),
		"guestOS", cmp.Or(m.GuestOS, DefaultGuestOS),
		"memSize", strconv.Itoa(memory),
		"numvcpus", strconv.Itoa(cmp.Or(max(0, m.CPUs), defaultCPUs)),
		"nvram", file+".nvram",
		"extendedConfigFile", file+".vmxf",
	)
	if u, ok := parseUUID(m.UUID); ok {
		g.set("uuid.bios", spacedUUID(u))
	}
}

func (g *generator) firmware() {
	if g.m.Firmware != FirmwareEFI {
		g.set("firmware", FirmwareBIOS)
		return
	}
	g.set("firmware", FirmwareEFI)
	if g.m.SecureBoot {
		g.set("uefi.secureBoot.enabled", "TRUE")
	}
}

// mainboard is what VMware itself writes for every VM. Without the bridges there is no slot for PCI Express.
func (g *generator) mainboard() {
	g.set("pciBridge0.present", "TRUE")
	for i := 4; i <= 7; i++ {
		bridge := fmt.Sprintf("pciBridge%d.", i)
		g.set(bridge+"present", "TRUE", bridge+"virtualDev", "pcieRootPort", bridge+"functions", "8")
	}
	g.set(
		"vmci0.present", "TRUE",
		"hpet0.present", "TRUE",
		"svga.present", "TRUE",
		"floppy0.present", "FALSE",
		"powerType.powerOff", "soft",
		"powerType.suspend", "hard",
		"powerType.reset", "soft",
		"tools.syncTime", "FALSE",
	)
}

func (g *generator) disks() {
	bus, model := g.m.controller()
	r := newRack(g.v)
	for _, d := range g.m.Disks {
		if _, ok := r.attach(d.Name, bus, model); !ok {
			g.notes.add("disk %.60q is not attached: no place is free on %s", d.Name, bus)
		}
	}
}

// nic adds a network adapter. Addresses are always given as static: one that VMware calls generated it would
// make anew in another folder, and guests and licences know their machine by it.
func (g *generator) nic(key string, n NIC) {
	g.set(
		key+"present", "TRUE",
		key+"virtualDev", nicModel(n.Model),
		key+"networkName", cmp.Or(n.Network, "VM Network"),
	)
	mac, err := net.ParseMAC(n.MAC)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 || isZero(mac) {
		g.set(key+"addressType", "generated")
		if n.MAC != "" {
			g.notes.add("%saddress is a new one: %.60q is no address of an adapter", key, n.MAC)
		}
		return
	}
	g.set(key+"addressType", "static", key+"address", mac.String())
	if !isStatic(mac) {
		g.set(key+"checkMACAddress", "FALSE")
	}
	if !isVMware(mac) {
		g.notes.add("%saddress %v is not one of VMware's: it is kept with checkMACAddress switched off", key, mac)
	}
}

// nicModel is e1000e when nothing better is known: Linux, BSD and Windows have its driver.
func nicModel(s string) string {
	switch s {
	case "e1000", "e1000e", "vmxnet3":
		return s
	}
	return "e1000e"
}

// isStatic tells whether VMware takes the address as a static one: 00:50:56:00:00:00 to 00:50:56:3f:ff:ff.
func isStatic(mac net.HardwareAddr) bool {
	return bytes.HasPrefix(mac, []byte{0x00, 0x50, 0x56}) && mac[3] <= 0x3f
}

// isVMware tells whether the address is from one of the ranges of VMware.
func isVMware(mac net.HardwareAddr) bool {
	return bytes.HasPrefix(mac, []byte{0x00, 0x50, 0x56}) || bytes.HasPrefix(mac, []byte{0x00, 0x0c, 0x29}) ||
		bytes.HasPrefix(mac, []byte{0x00, 0x05, 0x69})
}
