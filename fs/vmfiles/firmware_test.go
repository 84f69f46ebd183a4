package vmfiles_test

import (
	"encoding/binary"
	"encoding/hex"
	"path/filepath"
	"strings"
	"testing"

	"livemount/fs/vmfiles"
	"livemount/test/harness"
)

const (
	typeSystem   = "28732ac11ff8d211ba4b00a0c93ec93b"
	typeLinux    = "af3dc60f838472478e793d69d8477de4"
	typeBIOSBoot = "4861682149646f6e744e656564454649"
)

// gpt makes the beginning of a disk with partitions of the types.
func gpt(sector int, types ...string) []byte {
	b := make([]byte, 24<<10)
	copy(b[sector:], "EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00")
	binary.LittleEndian.PutUint64(b[sector+72:], 2)
	binary.LittleEndian.PutUint32(b[sector+80:], 128)
	binary.LittleEndian.PutUint32(b[sector+84:], 128)
	for i, s := range types {
		if _, err := hex.Decode(b[2*sector+128*i:], []byte(s)); err != nil {
			panic(err)
		}
	}
	copy(b[446:], "\x00\x00\x02\x00\xee") // protective
	copy(b[510:], "\x55\xaa")
	return b
}

// put writes s into b and returns it.
func put(b []byte, off int, s string) []byte {
	copy(b[off:], s)
	return b
}

func TestSniffFirmware(t *testing.T) {
	const windows = "\x33\xc0\x8e\xd0\xbc\x00\x7c\x8e\xc0"
	efi := func() []byte { return gpt(512, typeSystem, typeLinux) }
	for name, c := range map[string]struct {
		head []byte
		want string
	}{
		"EFI":                  {efi(), "efi"},
		"EFI4096":              {gpt(4096, typeLinux, typeSystem), "efi"},
		"EFIIn17KiB":           {efi()[:17<<10], "efi"},
		"LinuxOnly":            {gpt(512, typeLinux), "bios"},
		"BIOSBoot":             {gpt(512, typeBIOSBoot, typeLinux), "bios"},
		"Both":                 {gpt(512, typeBIOSBoot, typeSystem, typeLinux), "bios"},
		"BootCode":             {put(efi(), 0, "\xeb\x63\x90GRUB"), "bios"},
		"CodeOfWindows":        {put(efi(), 0, windows), "efi"},
		"CodeOfWindowsHybrid":  {put(put(efi(), 0, windows), 462, "\x80\x00\x00\x00\x07"), "bios"},
		"LegacyBootable":       {put(efi(), 1024+128+48, "\x04"), "bios"},
		"SystemLegacyBootable": {put(efi(), 1024+48, "\x04"), "efi"}, // firmware that is told so for its own sake
		"ActiveProtective":     {put(efi(), 446, "\x80"), "efi"},
		"MBR":                  {put(make([]byte, 1<<15), 446, "\x80\x00\x00\x00\x83"), "bios"},
		"Empty":                {nil, "bios"},
		"Zeroes":               {make([]byte, 1<<15), "bios"},
		"Short":                {efi()[:600], "bios"},
		"EntriesFarAway":       {put(efi(), 512+72, "\xff\xff\xff\xff\xff\xff\xff\xff"), "bios"},
		"EntriesTooSmall":      {put(efi(), 512+84, "\x01\x00"), "bios"},
		"EntriesTooLarge":      {put(efi(), 512+84, "\x00\x00\xff\xff"), "bios"},
		"ManyEntries":          {put(efi(), 512+80, "\xff\xff\xff\xff"), "efi"},
	} {
		if got := vmfiles.SniffFirmware(c.head); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// TestSniffFirmwareOfRealTable reads a table that was made by somebody else.
func TestSniffFirmwareOfRealTable(t *testing.T) {
	harness.Tools(t, "sfdisk fdisk", "sh dash")
	for script, want := range map[string]string{
		"label: gpt\\nsize=10M,type=U\\ntype=L\\n":                                                     "efi",
		"label: gpt\\nsize=1M,type=21686148-6449-6E6F-744E-656564454649\\nsize=10M,type=U\\ntype=L\\n": "bios",
		"label: gpt\\ntype=L\\n":           "bios",
		"label: dos\\ntype=83,bootable\\n": "bios",
	} {
		path := filepath.Join(harness.Dir(t), "disk")
		write(t, path, make([]byte, 32<<20))
		harness.Run(t, "sh", "-c", "printf '"+script+"' | sfdisk -q "+path)
		if got := vmfiles.SniffFirmware(read(t, path)[:17<<10]); got != want {
			t.Errorf("%s: %s, want %s", strings.ReplaceAll(script, "\\n", "; "), got, want)
		}
	}
}
