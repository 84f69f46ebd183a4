// Package vmfiles makes the small text files of a VM's folder on a datastore as ESXi and others expect them:
// the descriptor of each disk (.vmdk) and the configuration of the VM (.vmx), either adjusted from one that
// was captured or made from what is known of the machine.
//
// It turns bytes into bytes: it opens no file, keeps no state, asks no clock, and the same input always gives
// the same output, so that a mount that is made again after a restart has the same files. What it reads was
// captured from somewhere and may be hostile: every parser is bounded, returns Invalid, and never panics.
//
// After Adjust nothing in a configuration points outside of the VM's folder. What could not be kept as it was
// captured is said in notes, in words for a person.
//
// It must not know how the folder is served, or where disks come from.
package vmfiles

import "fmt"

const (
	descriptorSuffix = ".vmdk"
	flatSuffix       = "-flat.vmdk"

	// maxNotes bounds what is said of a hostile configuration.
	maxNotes = 200
)

// Disk is one disk of a machine: one descriptor, and one file with its bytes.
type Disk struct {
	// Name of the disk, unique in the machine. Its files are DescriptorName and FlatName of it.
	Name string
	// SizeBytes is the size of the disk. Descriptors count whole sectors of 512 bytes, rounded up: the flat
	// file must be shown with that length (Sectors * 512), with zeroes behind the end of the disk.
	SizeBytes int64
	// Bus is what the guest sees the disk on: "ide", "sata", "nvme", or a SCSI controller ("lsilogic",
	// "lsisas1068", "pvscsi", "buslogic"). Anything else, as "virtio", "scsi" or "", lets Generate choose.
	Bus string
	// HardwareVersion of the VM (ddb.virtualHWVersion); 0 is DefaultHardwareVersion.
	HardwareVersion int
	// CID names the content, for delta disks that the hypervisor lays over this one: derive it from what was
	// mounted, so that it does not change when the same is mounted again.
	CID uint32
	// UUID of the disk; zero is none. Guests may see it as the serial number. VMware's own begin with the
	// bytes 60 00 c2 9x, which make it a valid NAA name.
	UUID [16]byte
}

// Sectors is the size in sectors of 512 bytes, rounded up.
func (d Disk) Sectors() int64 {
	size := max(0, d.SizeBytes)
	return size/sectorBytes + min(1, size%sectorBytes)
}

// DescriptorName is the file name of the descriptor of a disk.
func DescriptorName(disk string) string { return SafeName(disk) + descriptorSuffix }

// FlatName is the name of the file with the bytes of a disk. A disk "x-flat" has the descriptor of that name,
// so disks "x" and "x-flat" cannot be in one folder.
func FlatName(disk string) string { return SafeName(disk) + flatSuffix }

// notes collects what is worth telling a person.
type notes struct {
	list []string
	more int
}

func (n *notes) add(format string, args ...any) {
	if len(n.list) >= maxNotes {
		n.more++
		return
	}
	n.list = append(n.list, fmt.Sprintf(format, args...))
}

func (n *notes) all() []string {
	if n.more == 0 {
		return n.list
	}
	return append(n.list, fmt.Sprintf("and %d more changes of this kind", n.more))
}

// isZero tells whether all bytes are zero.
func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
