package vmfiles

import (
	"encoding/hex"
	"strings"
)

// Machine is what is known of a VM besides the content of its disks.
type Machine struct {
	Name            string // of the VM; SafeName of it is in the names of files
	DisplayName     string // "" is Name
	GuestOS         string // as in a .vmx: "debian10-64", "windows9-64"; "" is DefaultGuestOS
	MemoryMiB       int    // 0 is 2048
	CPUs            int    // 0 is 2
	HardwareVersion int    // 0 is DefaultHardwareVersion
	Firmware        string // FirmwareBIOS or FirmwareEFI; "" is BIOS
	SecureBoot      bool   // with EFI only
	UUID            string // of the machine (SMBIOS), 32 hexadecimal digits with or without dashes; "" is none
	Disks           []Disk
	NICs            []NIC
}

// NIC is a network adapter.
type NIC struct {
	MAC     string // "" lets VMware choose
	Model   string // "e1000", "e1000e", "vmxnet3"; anything else is e1000e
	Network string // a port group of the host; "" is "VM Network", which a new host has
}

// The kinds of firmware.
const (
	FirmwareBIOS = "bios"
	FirmwareEFI  = "efi"
)

const (
	// DefaultHardwareVersion is the oldest with Secure Boot and NVMe: it runs on ESXi 6.5 and everything newer,
	// and a VM can be upgraded but never downgraded.
	DefaultHardwareVersion = 13
	// DefaultGuestOS is known to every version of hardware. It is a hint for defaults, the guest sees nothing of it.
	DefaultGuestOS = "otherlinux-64"

	defaultMemoryMiB = 2048
	defaultCPUs      = 2
	maxNICs          = 10
)

// scsiModelFor is the SCSI controller that a guest most likely boots from without VMware's drivers: lsilogic,
// whose driver old and new Linux, BSD and Windows 2003 come with; newer Windows has none for it but one for SAS.
// Nobody but Linux comes with one for pvscsi.
func scsiModelFor(guestOS string) string {
	for _, newer := range []string{"windows", "longhorn", "winvista"} {
		if strings.HasPrefix(fold(guestOS), newer) {
			return "lsisas1068"
		}
	}
	return "lsilogic"
}

// controller chooses bus and model for all disks of the machine. What the guest ran on last it can boot from:
// when all disks were on SATA, IDE, NVMe or one model of a SCSI controller, they stay there. Otherwise (virtio,
// a mixture, or not known) it is scsiModelFor.
func (m Machine) controller() (bus, model string) {
	last := ""
	for i, d := range m.Disks {
		if i > 0 && d.Bus != last {
			return busSCSI, scsiModelFor(m.GuestOS)
		}
		last = d.Bus
	}
	switch last {
	case busIDE:
		if len(m.Disks) > controllersOf(busIDE)*unitsOf(busIDE) {
			break
		}
		return last, ""
	case busSATA, busNVMe:
		return last, ""
	case "lsilogic", "lsisas1068", "pvscsi", "buslogic":
		return busSCSI, last
	}
	return busSCSI, scsiModelFor(m.GuestOS)
}

// parseUUID reads 32 hexadecimal digits in any of the usual ways of writing.
func parseUUID(s string) (u [16]byte, ok bool) {
	s = strings.Map(func(r rune) rune {
		if r == '-' || r == ' ' || r == '{' || r == '}' {
			return -1
		}
		return r
	}, s)
	if len(s) != hex.EncodedLen(len(u)) {
		return u, false
	}
	_, err := hex.Decode(u[:], []byte(s))
	return u, err == nil && !isZero(u[:])
}
