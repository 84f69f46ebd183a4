package vmfiles_test

import (
	"fmt"
	"strings"
	"testing"

	"livemount/fs/vmfiles"
)

// device is the part of a configuration for one hard disk.
func device(place, file string) string {
	return fmt.Sprintf("%s.present = \"TRUE\"\n%s.fileName = \"%s\"\n", place, place, file)
}

// TestAdjustFindsDisks names what each place holds afterwards; "" is a place that is switched off.
func TestAdjustFindsDisks(t *testing.T) {
	const ctl = "scsi0.present = \"TRUE\"\nscsi0.virtualDev = \"pvscsi\"\n"
	for _, c := range []struct {
		name, vmx string
		disks     []string
		want      map[string]string
		notes     int
	}{
		{"Place", ctl + device("scsi0:0", "a.vmdk") + device("scsi0:1", "b.vmdk"), []string{"scsi0:1", "scsi0-0"},
			map[string]string{"scsi0:0": "scsi0-0.vmdk", "scsi0:1": "scsi0-1.vmdk"}, 0},
		{"PlaceBeforeFile", ctl + device("scsi0:0", "b.vmdk") + device("scsi0:1", "scsi0:0.vmdk"), []string{"b", "SCSI0:0"},
			map[string]string{"scsi0:0": "SCSI0-0.vmdk", "scsi0:1": "b.vmdk"}, 1},
		{"File", ctl + device("scsi0:0", "a.vmdk") + device("scsi0:1", "b.vmdk"), []string{"b", "a"},
			map[string]string{"scsi0:0": "a.vmdk", "scsi0:1": "b.vmdk"}, 0},
		{"Snapshot", ctl + device("scsi0:0", "[ds 1] vm/a-000012.vmdk") + device("scsi0:1", `C:\vm\b-1.VMDK`), []string{"b-1", "a"},
			map[string]string{"scsi0:0": "a.vmdk", "scsi0:1": "b-1.vmdk"}, 0},
		{"NameWithSnapshot", ctl + device("scsi0:0", "a-000001.vmdk"), []string{"a-000001"},
			map[string]string{"scsi0:0": "a-000001.vmdk"}, 0},
		{"SafeFile", ctl + device("scsi0:0", "my disk.vmdk") + device("scsi0:1", "other.vmdk"), []string{"x", "my-disk"},
			map[string]string{"scsi0:0": "my-disk.vmdk", "scsi0:1": "x.vmdk"}, 1},
		{"SameFileInTwoFolders", ctl + device("scsi0:0", "/vmfs/volumes/1/a.vmdk") + device("scsi0:1", "/vmfs/volumes/2/a.vmdk"),
			[]string{"a_1", "a"}, map[string]string{"scsi0:0": "a.vmdk", "scsi0:1": "a_1.vmdk"}, 1},
		{"Order", ctl + device("scsi0:10", "z.vmdk") + device("sata0:0", "y.vmdk") + device("scsi0:2", "x.vmdk"),
			[]string{"one", "two", "three"}, map[string]string{"scsi0:2": "one.vmdk", "scsi0:10": "two.vmdk", "sata0:0": "three.vmdk"}, 3},
		{"NoOrderWhenNumbersDiffer", ctl + device("scsi0:0", "x.vmdk") + device("scsi0:1", "y.vmdk"), []string{"one"},
			map[string]string{"scsi0:0": "", "scsi0:1": "", "scsi0:2": "one.vmdk"}, 3},
		{"AbsentIsNoDevice", ctl + device("scsi0:0", "a.vmdk") + "scsi0:0.present = \"FALSE\"\n", []string{"a"},
			map[string]string{"scsi0:0": "", "scsi0:1": "a.vmdk"}, 1},
		{"OtherBuses", device("ide0:1", "a.vmdk") + device("nvme0:0", "b.vmdk"), []string{"a", "b"},
			map[string]string{"ide0:1": "a.vmdk", "nvme0:0": "b.vmdk"}, 0},
		{"TypeWithoutSuffix", device("sata0:0", "rdm") + "sata0:0.deviceType = \"rawDisk\"\n", []string{"a"},
			map[string]string{"sata0:0": "a.vmdk"}, 1},
		{"SevenIsTheAdapter", ctl + full(7), []string{"d0", "d1", "d2", "d3", "d4", "d5", "d6", "new"},
			map[string]string{"scsi0:6": "d6.vmdk", "scsi0:7": "", "scsi0:8": "new.vmdk"}, 1},
		{"NewController", device("ide0:0", "a.vmdk"), []string{"a", "b"},
			map[string]string{"ide0:0": "a.vmdk", "scsi0:0": "b.vmdk"}, 1},
		{"NoDevices", "", []string{"a"}, map[string]string{"scsi0:0": "a.vmdk"}, 1},
		{"NoDisks", ctl + device("scsi0:0", "a.vmdk"), nil, map[string]string{"scsi0:0": ""}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := parse(t, c.vmx)
			list := vmfiles.Adjust(v, vmfiles.Machine{Disks: disks(c.disks...)})
			if len(list) != c.notes {
				t.Errorf("%d notes, want %d: %q", len(list), c.notes, list)
			}
			for place, want := range c.want {
				got := get(v, place+".fileName")
				if get(v, place+".present") != "TRUE" {
					got = ""
				}
				if got != want {
					t.Errorf("%s has %q, want %q\n%s", place, got, want, v.Bytes())
				}
			}
		})
	}
}

func full(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(device(fmt.Sprintf("scsi0:%d", i), fmt.Sprintf("d%d.vmdk", i)))
	}
	return b.String()
}

func TestAdjustNewControllerIsAsTheOldOne(t *testing.T) {
	vmx := "scsi0.present = \"TRUE\"\nscsi0.virtualDev = \"pvscsi\"\n" + full(7)
	for i := 8; i < 16; i++ {
		vmx += device(fmt.Sprintf("scsi0:%d", i), fmt.Sprintf("d%d.vmdk", i))
	}
	v := parse(t, vmx)
	m := vmfiles.Machine{Disks: disks("new")}
	for i := range 16 {
		m.Disks = append(m.Disks, disks(fmt.Sprintf("d%d", i))...)
	}
	vmfiles.Adjust(v, m) // d7 is new as well
	if get(v, "scsi1.virtualDev") != "pvscsi" || get(v, "scsi1:0.fileName") != "new.vmdk" || get(v, "scsi1:1.fileName") != "d7.vmdk" {
		t.Errorf("%s", v.Bytes())
	}
}

func TestAdjustControllerFitsTheGuest(t *testing.T) {
	for guest, want := range map[string]string{
		"windows2019srv-64": "lsisas1068", "Longhorn-64": "lsisas1068", "winnetstandard": "lsilogic", "debian10-64": "lsilogic", "": "lsilogic",
	} {
		v := parse(t, "guestOS = \""+guest+"\"\n")
		vmfiles.Adjust(v, vmfiles.Machine{Disks: disks("a")})
		if got := vmfiles.BusOf(v, "a"); got != want {
			t.Errorf("%q: %q, want %q", guest, got, want)
		}
	}
}

func TestBusOf(t *testing.T) {
	v := parse(t, "scsi1.virtualDev = \"LsiLogic\"\n"+device("scsi1:0", "a.vmdk")+device("ide0:0", "b.vmdk")+device("sata0:0", "c.vmdk")+
		device("nvme0:0", "d-e.vmdk")+device("sata0:1", "f.vmdk")+"sata0:1.present = \"FALSE\"\n")
	for disk, want := range map[string]string{"a": "lsilogic", "b": "ide", "c": "sata", "d e": "nvme", "f": "", "g": ""} {
		if got := vmfiles.BusOf(v, disk); got != want {
			t.Errorf("%q: %q, want %q", disk, got, want)
		}
	}
}

// TestAdjustLeavesNothingOutside has what is removed as "-".
func TestAdjustLeavesNothingOutside(t *testing.T) {
	for _, c := range []struct{ key, value, want string }{
		{"nvram", "/vmfs/volumes/x/a b.nvram", "a b.nvram"},
		{"nvram", `[ds] vm\a.nvram`, "a.nvram"},
		{"nvram", "[ds] a.nvram", "a.nvram"},
		{"nvram", "a.nvram", "a.nvram"},
		{"nvram", "../", "-"},
		{"nvram", "..", "-"},
		{"nvram", "/vmfs/volumes/x/disk-flat.vmdk", "-"},
		{"nvram", "web.vmx", "-"},
		{"extendedConfigFile", `C:a.vmxf`, "a.vmxf"},
		{"vmxstats.filename", "/x/a.scoreboard", "a.scoreboard"},
		{"vmxstats.filename", "", ""},
		{"sched.swap.derivedName", "/vmfs/volumes/x/a.vswp", "-"},
		{"SCHED.SWAP.DERIVEDNAME", "a.vswp", "-"},
		{"workingDir", ".", "-"},
		{"migrate.hostLog", "./a.hlog", "-"},
		{"checkpoint.vmState", "a.vmss", "-"},
		{"checkpoint.vmState", "", ""},
		{"sound.fileName", "-1", "-1"},
		{"bios440.filename", "/vmfs/volumes/x/rom", "-"},
		{"bios440.filename", "./rom", "rom"},
		{"sharedFolder0.hostPath", `\\server\share`, "-"},
		{"scsi0:3.fileName", "/vmfs/volumes/x/old.vmdk", "-"}, // not present
		{"scsi999:0.fileName", "/vmfs/volumes/x/old.vmdk", "-"},
		{"vendor.thing", "/vmfs/volumes/x/y", "-"},
		{"vendor.thing", "/opt/y", "/opt/y"},
		{"guestinfo.path", "/vmfs/y", "/vmfs/y"},
		{"annotation", "/vmfs/volumes", "/vmfs/volumes"},
	} {
		v := &vmfiles.VMX{}
		v.Set(c.key, c.value)
		vmfiles.Adjust(v, vmfiles.Machine{})
		got, ok := v.Get(c.key)
		if !ok {
			got = "-"
		}
		if got != c.want {
			t.Errorf("%s = %q: %q, want %q", c.key, c.value, got, c.want)
		}
	}
}

func TestAdjustDevices(t *testing.T) {
	for _, c := range []struct{ vmx, key, want string }{
		{device("ide1:0", "/dev/cdrom") + "ide1:0.deviceType = \"atapi-cdrom\"\n", "ide1:0.fileName", "emptyBackingString"},
		{device("ide1:0", "/dev/cdrom") + "ide1:0.deviceType = \"atapi-cdrom\"\n", "ide1:0.clientDevice", "TRUE"},
		{device("sata0:0", "a.iso"), "sata0:0.startConnected", "FALSE"},
		{device("sata0:0", "emptyBackingString") + "sata0:0.deviceType = \"atapi-cdrom\"\n", "sata0:0.deviceType", "atapi-cdrom"},
		{device("scsi0:2", "/dev/sg0") + "scsi0:2.deviceType = \"scsi-passthru\"\n", "scsi0:2.present", "FALSE"},
		{"floppy0.fileName = \"vmware-null-remote-floppy\"\n", "floppy0.startConnected", ""},
		{"floppy1.fileName = \"/a.flp\"\nfloppy1.fileType = \"file\"\n", "floppy1.fileType", ""},
		{"floppy1.present = \"FALSE\"\nfloppy1.fileName = \"/a.flp\"\n", "floppy1.fileName", ""},
		{device("scsi0:0", "a.vmdk") + "scsi0:0.redo = \"a.REDO\"\n", "scsi0:0.redo", ""},
		{device("scsi0:0", "a.vmdk") + "scsi0:0.deviceType = \"rawDisk\"\n", "scsi0:0.deviceType", "scsi-hardDisk"},
		{device("ide0:0", "a.vmdk") + "ide0:0.deviceType = \"rawDisk\"\n", "ide0:0.deviceType", "disk"},
		{"serial0.present = \"TRUE\"\nserial0.fileType = \"pipe\"\nserial0.pipe.endPoint = \"client\"\n", "serial0.pipe.endPoint", ""},
		{"serial0.present = \"TRUE\"\nserial0.fileName = \"scsi0-0.vmdk\"\n", "serial0.fileName", "serial0.out"},
		{"serial0.present = \"FALSE\"\nserial0.fileName = \"/dev/ttyS0\"\n", "serial0.fileName", ""},
		{"parallel1.present = \"TRUE\"\nparallel1.fileName = \"/dev/lp0\"\n", "parallel1.startConnected", "FALSE"},
	} {
		v := parse(t, c.vmx)
		vmfiles.Adjust(v, vmfiles.Machine{Disks: disks("a")})
		if got := get(v, c.key); got != c.want {
			t.Errorf("%q: %s is %q, want %q", c.vmx, c.key, got, c.want)
		}
	}
}

func TestAdjustDisplayName(t *testing.T) {
	for _, c := range []struct{ old, name, display, want string }{
		{"web", "web", "web at noon", "web"}, // nobody asked for another name
		{"web", "web:branch", "web at noon", "web at noon"},
		{"web", "other", "", "web"},
		{"", "web", "wéb", "wéb"},
	} {
		v := &vmfiles.VMX{}
		v.Set("displayName", c.old)
		vmfiles.Adjust(v, vmfiles.Machine{Name: c.name, DisplayName: c.display})
		if got := get(v, "displayName"); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
	v := parse(t, ".encoding = \"windows-1252\"\ndisplayName = \"caf\xe9\"\n")
	vmfiles.Adjust(v, vmfiles.Machine{Name: "x", DisplayName: "café"})
	if got := get(v, "displayName"); got != "caf-" {
		t.Errorf("%q in another encoding", got)
	}
}

func TestAdjustTwiceChangesNothing(t *testing.T) {
	v, m := captured(t), vmfiles.Machine{Name: "web01", Disks: disks("web01", "web01_1", "third")}
	vmfiles.Adjust(v, m)
	once := string(v.Bytes())
	if list := vmfiles.Adjust(v, m); len(list) != 0 || string(v.Bytes()) != once {
		t.Errorf("%q\n%s", list, v.Bytes())
	}
}

func TestAdjustNotesAreBounded(t *testing.T) {
	v := &vmfiles.VMX{}
	for i := range 10_000 {
		v.Set(fmt.Sprintf("k%d.path", i), "/x")
	}
	if list := vmfiles.Adjust(v, vmfiles.Machine{}); len(list) != 201 || !strings.Contains(list[200], "9800 more") || len(v.Keys()) != 0 {
		t.Errorf("%d notes, the last %q", len(list), list[len(list)-1])
	}
}

// TestAdjustCostFollowsSize takes minutes when a device costs a pass over the file.
func TestAdjustCostFollowsSize(t *testing.T) {
	var b strings.Builder
	for i := range 45_000 {
		b.WriteString(device(fmt.Sprintf("scsi%d:%d", i/200, i%200), "/x/a.vmdk"))
	}
	v := parse(t, b.String())
	vmfiles.Adjust(v, vmfiles.Machine{Disks: disks("a", "b", "c")})
}
