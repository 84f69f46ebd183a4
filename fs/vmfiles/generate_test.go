package vmfiles_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"livemount/fs/vmfiles"
)

// TestGenerateController names bus, model and first place for the buses that the guest had.
func TestGenerateController(t *testing.T) {
	for _, c := range []struct {
		guest       string
		buses       []string
		bus, places string
	}{
		{"", []string{"virtio", "virtio"}, "lsilogic", "scsi0:0 scsi0:1"},
		{"windows9-64", []string{"virtio"}, "lsisas1068", "scsi0:0"},
		{"windows9-64", []string{"sata", "sata"}, "sata", "sata0:0 sata0:1"},
		{"", []string{"sata", "virtio"}, "lsilogic", "scsi0:0 scsi0:1"},
		{"", []string{"ide", "ide", "ide", "ide"}, "ide", "ide0:0 ide0:1 ide1:0 ide1:1"},
		{"", []string{"ide", "ide", "ide", "ide", "ide"}, "lsilogic", "scsi0:0 scsi0:1 scsi0:2 scsi0:3 scsi0:4"},
		{"", []string{"nvme"}, "nvme", "nvme0:0"},
		{"", []string{"pvscsi"}, "pvscsi", "scsi0:0"},
		{"", []string{"hostile\nbus"}, "lsilogic", "scsi0:0"},
	} {
		m := vmfiles.Machine{GuestOS: c.guest}
		for i, bus := range c.buses {
			m.Disks = append(m.Disks, vmfiles.Disk{Name: fmt.Sprintf("d%d", i), Bus: bus})
		}
		v := vmfiles.Generate(m)
		for i, place := range strings.Fields(c.places) {
			name := fmt.Sprintf("d%d", i)
			if get(v, place+".fileName") != name+".vmdk" || vmfiles.BusOf(v, name) != c.bus {
				t.Errorf("%+v: disk %s\n%s", c, name, v.Bytes())
			}
		}
	}
}

func TestGenerateManyDisks(t *testing.T) {
	var m vmfiles.Machine
	for i := range 61 {
		m.Disks = append(m.Disks, vmfiles.Disk{Name: fmt.Sprintf("d%d", i)})
	}
	v := vmfiles.Generate(m)
	if get(v, "scsi0:15.fileName") != "d14.vmdk" || get(v, "scsi3:15.fileName") != "d59.vmdk" || get(v, "scsi0:7.fileName") != "" {
		t.Errorf("%s", v.Bytes())
	}
	if list := vmfiles.GenerateNotes(m); len(list) != 1 || !strings.Contains(list[0], `"d60"`) {
		t.Errorf("%q", list)
	}
}

func TestGenerateNumbers(t *testing.T) {
	for in, want := range map[int]string{math.MinInt: "2048", 0: "2048", 1: "4", 4: "4", 4097: "4100", 1 << 20: "1048576"} {
		if got := get(vmfiles.Generate(vmfiles.Machine{MemoryMiB: in}), "memSize"); got != want {
			t.Errorf("%d MiB: %s, want %s", in, got, want)
		}
	}
}

func TestGenerateAddresses(t *testing.T) {
	for mac, want := range map[string]string{
		"00:50:56:3f:ff:ff": "static 00:50:56:3f:ff:ff ",
		"00-50-56-98-1E-83": "static 00:50:56:98:1e:83 FALSE",
		"00:0c:29:01:02:03": "static 00:0c:29:01:02:03 FALSE",
		"52:54:00:01:02:03": "static 52:54:00:01:02:03 FALSE",
		"01:00:5e:01:02:03": "generated  ",
		"00:00:00:00:00:00": "generated  ",
		"hello":             "generated  ",
		"":                  "generated  ",
	} {
		v := vmfiles.Generate(vmfiles.Machine{NICs: []vmfiles.NIC{{MAC: mac}}})
		got := get(v, "ethernet0.addressType") + " " + get(v, "ethernet0.address") + " " + get(v, "ethernet0.checkMACAddress")
		if got != want {
			t.Errorf("%q: %q, want %q", mac, got, want)
		}
	}
	if list := vmfiles.GenerateNotes(vmfiles.Machine{NICs: make([]vmfiles.NIC, 12)}); len(list) != 1 {
		t.Errorf("%q", list)
	}
}

// TestGeneratedNeedsNoAdjusting finds that both agree on what a fit configuration is.
func TestGeneratedNeedsNoAdjusting(t *testing.T) {
	m := generated()
	v := vmfiles.Generate(m)
	before := string(v.Bytes())
	m.DisplayName = ""
	if list := vmfiles.Adjust(v, m); len(list) != 0 || string(v.Bytes()) != before {
		t.Errorf("%q\n%s", list, v.Bytes())
	}
}
