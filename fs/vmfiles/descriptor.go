package vmfiles

import (
	"cmp"
	"fmt"
)

const (
	sectorBytes = 512

	// noCID in parentCID says that a disk has no parent. freshCID is what VMware gives to a new disk.
	noCID    uint32 = 0xffff_ffff
	freshCID uint32 = 0xffff_fffe

	gib = 1 << 30
)

// Descriptor returns the descriptor of a flat disk on a datastore. Source: Virtual Disk Format 5.0 (VMware
// technical note), and what ESXi 6.5 writes. It is the same for the same disk; a CID of 0 is written as the one
// of a new disk, and so is ffffffff, which would mean none.
func Descriptor(d Disk) []byte {
	cid := d.CID
	if cid == 0 || cid == noCID {
		cid = freshCID
	}
	b := fmt.Appendf(nil, "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=%08x\nparentCID=%08x\n", cid, noCID)
	b = fmt.Appendf(b, "createType=\"vmfs\"\n\n# Extent description\nRW %d VMFS \"%s\"\n\n", d.Sectors(), FlatName(d.Name))
	b = append(b, "# The Disk Data Base\n#DDB\n\n"...)
	for _, e := range d.database(cid) {
		b = fmt.Appendf(b, "ddb.%s = \"%s\"\n", e[0], e[1])
	}
	return b
}

// database returns the entries of the disk data base, in the order in which ESXi sorts them.
func (d Disk) database(cid uint32) [][2]string {
	adapter := adapterType(d.Bus)
	g := geometryOf(adapter, d.Sectors())
	list := [][2]string{
		{"adapterType", adapter},
		{"geometry.cylinders", fmt.Sprint(g.cylinders)},
		{"geometry.heads", fmt.Sprint(g.heads)},
		{"geometry.sectors", fmt.Sprint(g.sectors)},
		{"longContentID", fmt.Sprintf("%x%08x", d.UUID[:12], cid)}, // it ends with the CID
		{"thinProvisioned", "1"},
	}
	if !isZero(d.UUID[:]) {
		list = append(list, [2]string{"uuid", spacedUUID(d.UUID)})
	}
	version := cmp.Or(d.HardwareVersion, DefaultHardwareVersion)
	return append(list, [2]string{"virtualHWVersion", fmt.Sprint(version)})
}

// adapterType is the name of a controller in a descriptor, which knows no others: pvscsi, SAS, SATA and NVMe
// disks are lsilogic there.
func adapterType(bus string) string {
	switch bus {
	case busIDE, "buslogic":
		return bus
	}
	return "lsilogic"
}

type geometry struct{ cylinders, heads, sectors int64 }

// geometryOf is the geometry that VMware gives to a disk of that many sectors; guests that boot by cylinder,
// head and sector depend on it. Source: VMware KB 1026266 (SCSI) and 1016192 (IDE). Cylinders are rounded down
// and not bounded, as in VMware's.
func geometryOf(adapter string, sectors int64) geometry {
	g := geometry{heads: 255, sectors: 63}
	switch {
	case adapter == busIDE:
		g.heads = 16
	case sectors < gib/sectorBytes:
		g.heads, g.sectors = 64, 32
	case sectors < 2*gib/sectorBytes:
		g.heads, g.sectors = 128, 32
	}
	g.cylinders = max(1, sectors/(g.heads*g.sectors))
	return g
}

// spacedUUID is the way in which VMware writes one: "60 00 c2 97 ee 00 4e ed-cb 09 ab 10 91 3f 7f 99".
func spacedUUID(u [16]byte) string { return fmt.Sprintf("% x-% x", u[:8], u[8:]) }
