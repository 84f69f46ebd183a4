package vmfiles

import (
	"bytes"
	"encoding/binary"
)

const (
	bootCodeBytes  = 440 // of the MBR; a signature and the partitions follow
	mbrPartitions  = 446
	protectiveType = 0xee

	gptHeaderBytes   = 92
	gptMaxEntryBytes = 4096
	gptMaxEntries    = 1024
	legacyBootable   = 1 << 2 // attribute of an entry: syslinux and others boot it from BIOS
)

// SniffFirmware tells from the beginning of a disk (17 KiB, better 24 for sectors of 4 KiB) which firmware its
// system was installed for: FirmwareEFI when there is a GPT with an EFI system partition and nothing that a
// BIOS could start; everything else is FirmwareBIOS. Source: UEFI 2.10 section 5.
//
// A BIOS could start a BIOS boot partition (GRUB), an entry marked as legacy bootable (syslinux), an active
// partition of a hybrid MBR, or boot code. The boot code of Windows does not count: it starts an active
// partition, and beside a GPT there is none. A disk that starts in both ways, as cloud images do, is BIOS, and
// it works. The errors are towards BIOS: boot code that an earlier installation left behind on a disk that
// now starts by EFI only, and a system partition on a disk without GPT.
func SniffFirmware(head []byte) string {
	for _, sector := range []int{512, 4096} {
		if t, ok := parseGPT(head, sector); ok && t.system && !t.legacy && !startsByMBR(head) {
			return FirmwareEFI
		}
	}
	return FirmwareBIOS
}

// gptKinds says which kinds of partitions a GPT has.
type gptKinds struct {
	system bool // an EFI system partition
	legacy bool // one for BIOS
}

// parseGPT looks at the entries as far as head goes. Their checksum is not checked: they are a hint.
func parseGPT(head []byte, sector int) (t gptKinds, ok bool) {
	if len(head) < sector+gptHeaderBytes || !bytes.HasPrefix(head[sector:], []byte("EFI PART")) {
		return t, false
	}
	h := head[sector:]
	first := binary.LittleEndian.Uint64(h[72:])
	count := min(binary.LittleEndian.Uint32(h[80:]), gptMaxEntries)
	size := binary.LittleEndian.Uint32(h[84:])
	if size < 128 || size > gptMaxEntryBytes || first >= uint64(len(head)/sector) {
		return t, false
	}
	entries := head[int(first)*sector:]
	for ; count > 0 && len(entries) >= int(size); count-- {
		t.add(entries[:size])
		entries = entries[size:]
	}
	return t, true
}

func (t *gptKinds) add(entry []byte) {
	// The GUIDs c12a7328-f81f-11d2-ba4b-00a0c93ec93b and 21686148-6449-6e6f-744e-656564454649, as stored.
	const system = "\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b"
	const biosBoot = "Hah!IdontNeedEFI"
	kind := string(entry[:16])
	t.system = t.system || kind == system
	t.legacy = t.legacy || kind == biosBoot
	if kind != system && !isZero(entry[:16]) {
		t.legacy = t.legacy || binary.LittleEndian.Uint64(entry[48:])&legacyBootable != 0
	}
}

// startsByMBR tells whether the first sector starts something. head has more than that.
func startsByMBR(head []byte) bool {
	code := head[:bootCodeBytes]
	if isZero(code) {
		return false
	}
	// xor ax,ax; mov ss,ax; mov sp,7c00h: how the code of Windows begins.
	windows := bytes.HasPrefix(code, []byte{0x33, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c})
	return !windows || hasActive(head)
}

// hasActive tells whether a partition of the MBR, other than the one that stands for the GPT, is active.
func hasActive(head []byte) bool {
	for i := range 4 {
		entry := head[mbrPartitions+16*i:]
		if entry[0] == 0x80 && entry[4] != protectiveType && entry[4] != 0 {
			return true
		}
	}
	return false
}
