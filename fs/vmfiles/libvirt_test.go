package vmfiles_test

import (
	"reflect"
	"strings"
	"testing"

	"livemount/fs/vmfiles"
	"livemount/internal/errs"
)

const domain = `<?xml version="1.0"?>
<!-- WARNING: an auto-generated file -->
<domain type='kvm' id='3'>
  <name>web01</name>
  <uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>
  <title>Front end</title>
  <metadata>
    <libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">
      <libosinfo:os id="http://debian.org/debian/12"/>
    </libosinfo:libosinfo>
  </metadata>
  <memory unit='KiB'>4194305</memory>
  <currentMemory unit='KiB'>1048576</currentMemory>
  <vcpu placement='static' current='2'>8</vcpu>
  <os firmware='efi'>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <firmware><feature enabled='yes' name='enrolled-keys'/><feature enabled='yes' name='secure-boot'/></firmware>
    <loader readonly='yes' secure='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.ms.fd</loader>
    <nvram>/var/lib/libvirt/qemu/nvram/web01_VARS.fd</nvram>
  </os>
  <devices>
    <disk type='file' device='disk'><source file='/a.qcow2'/><target dev='vda' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <disk type='block'><target dev='sdb' bus='scsi'/></disk>
    <interface type='network'><mac address='52:54:00:6b:3c:58'/><source network='default'/><model type='virtio'/></interface>
    <interface type='bridge'><source bridge='br0'/></interface>
  </devices>
</domain>
`

func TestFromLibvirt(t *testing.T) {
	got, err := vmfiles.FromLibvirt([]byte(domain))
	want := vmfiles.Machine{
		Name: "web01", DisplayName: "Front end", GuestOS: "debian10-64", MemoryMiB: 4097, CPUs: 2, Firmware: "efi", SecureBoot: true,
		UUID:  "4dea22b3-1d52-d8f3-2516-782e98ab3fa0",
		Disks: []vmfiles.Disk{{Name: "vda", Bus: "virtio"}, {Name: "sdb", Bus: "scsi"}},
		NICs:  []vmfiles.NIC{{MAC: "52:54:00:6b:3c:58", Model: "virtio"}, {}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestFromLibvirtParts(t *testing.T) {
	for in, want := range map[string]vmfiles.Machine{
		"":                           {},
		"<memory>1048576</memory>":   {MemoryMiB: 1024},
		"<memory unit='GiB'>2":       {MemoryMiB: 2048},
		"<memory unit='b'>1":         {MemoryMiB: 1},
		"<memory unit='MB'>1000":     {MemoryMiB: 954},
		"<memory unit='KB'>1000000":  {MemoryMiB: 954},
		"<memory unit='GB'>1":        {MemoryMiB: 954},
		"<memory unit='TB'>1":        {MemoryMiB: 953675},
		"<memory unit='MiB'>7":       {MemoryMiB: 7},
		"<memory unit='parsec'>1":    {},
		"<memory unit='TiB'>9999999": {},
		"<memory>-1":                 {},
		"<vcpu>4":                    {CPUs: 4},
		"<vcpu>99999":                {},
		"<uuid>hello":                {},
		"<os firmware='bios'><loader type='pflash'/>":                                        {},
		"<os><loader type='pflash'>x":                                                        {Firmware: "efi"},
		"<os><loader>/usr/share/ovmf/OVMF.fd":                                                {Firmware: "efi"},
		"<os><loader>/usr/share/seabios/bios.bin":                                            {},
		"<os firmware='efi'><loader secure='yes'/>":                                          {Firmware: "efi", SecureBoot: true},
		"<os><loader secure='yes'/>":                                                         {},
		"<os firmware='efi'><firmware><feature enabled='no' name='enrolled-keys'/>":          {Firmware: "efi"},
		"<os firmware='efi'><firmware><feature enabled='yes' name='secure-boot'/>":           {Firmware: "efi", SecureBoot: true},
		"<os><type arch='i686'/></os><metadata><libosinfo><os id='http://ubuntu.com/u/10'/>": {GuestOS: "ubuntu"},
		"<metadata><libosinfo><os id='http://microsoft.com/win/10'/>":                        {GuestOS: "windows9-64"},
		"<metadata><libosinfo><os id='http://microsoft.com/win/2k19'/>":                      {GuestOS: "windows9srv-64"},
		"<metadata><libosinfo><os id='http://archlinux.org/archlinux/rolling'/>":             {GuestOS: "otherlinux-64"},
	} {
		if want.Firmware == "" {
			want.Firmware = "bios"
		}
		xml := "<domain>" + closed(in) + "</domain>"
		if got, err := vmfiles.FromLibvirt([]byte(xml)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v, want %+v", xml, got, err, want)
		}
	}
}

// closed appends the end tags that are missing.
func closed(s string) string {
	var open []string
	for part := range strings.SplitSeq(s, "<") {
		tag, _, _ := strings.Cut(part, ">")
		name, _, _ := strings.Cut(tag, " ")
		switch {
		case strings.HasPrefix(tag, "/"):
			open = open[:len(open)-1]
		case tag != "" && !strings.HasSuffix(tag, "/"):
			open = append(open, name)
		}
	}
	for i := len(open) - 1; i >= 0; i-- {
		s += "</" + open[i] + ">"
	}
	return s
}

func TestFromLibvirtHostile(t *testing.T) {
	for name, s := range map[string]string{
		"Empty":     "",
		"NoDomain":  "<network/>",
		"Cut":       domain[:len(domain)/2],
		"Deep":      "<domain>" + strings.Repeat("<a>", 100) + strings.Repeat("</a>", 100) + "</domain>",
		"Entity":    "<!DOCTYPE d [<!ENTITY x 'y'>]><domain><name>&x;</name></domain>",
		"TooLong":   "<domain>" + strings.Repeat(" ", 4<<20) + "</domain>",
		"NotUTF8":   "<domain><name>\xff</name></domain>",
		"OtherText": "hello",
	} {
		if m, err := vmfiles.FromLibvirt([]byte(s)); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
}
