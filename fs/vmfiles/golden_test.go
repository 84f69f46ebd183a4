package vmfiles_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"livemount/fs/vmfiles"
)

// update writes what the tests got over the golden files: go test ./fs/vmfiles -update.
var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s differs:\n%s", name, got)
	}
}

func captured(t testing.TB) *vmfiles.VMX {
	t.Helper()
	b, err := os.ReadFile("testdata/captured.vmx")
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, string(b))
}

func parse(t testing.TB, s string) *vmfiles.VMX {
	t.Helper()
	v, err := vmfiles.ParseVMX([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func disks(names ...string) []vmfiles.Disk {
	var list []vmfiles.Disk
	for _, n := range names {
		list = append(list, vmfiles.Disk{Name: n})
	}
	return list
}

func TestCapturedIsKeptWhole(t *testing.T) {
	b, err := os.ReadFile("testdata/captured.vmx")
	if err != nil {
		t.Fatal(err)
	}
	if got := captured(t).Bytes(); string(got) != string(b) {
		t.Errorf("other bytes:\n%s", got)
	}
}

func TestAdjustGolden(t *testing.T) {
	v := captured(t)
	list := vmfiles.Adjust(v, vmfiles.Machine{Name: "web01", Disks: disks("web01", "web01_1")})
	golden(t, "adjusted.vmx", v.Bytes())
	golden(t, "adjusted.notes", []byte(strings.Join(list, "\n")+"\n"))
}

func generated() vmfiles.Machine {
	return vmfiles.Machine{
		Name: "db 2", DisplayName: `db 2 "restored"`, GuestOS: "debian10-64", MemoryMiB: 4095, CPUs: 4,
		Firmware: vmfiles.FirmwareEFI, SecureBoot: true, UUID: "4218c3d4-9a01-7f22-0b6d-41e05a77c319",
		Disks: []vmfiles.Disk{{Name: "vda", Bus: "virtio", SizeBytes: 8 << 30}, {Name: "vdb", Bus: "virtio"}},
		NICs: []vmfiles.NIC{
			{MAC: "52:54:00:12:34:56", Model: "virtio"}, {MAC: "00:50:56:01:02:03", Model: "vmxnet3", Network: "prod"}, {},
		},
	}
}

func TestGenerateGolden(t *testing.T) {
	golden(t, "generated.vmx", vmfiles.Generate(generated()).Bytes())
	golden(t, "generated.notes", []byte(strings.Join(vmfiles.GenerateNotes(generated()), "\n")+"\n"))
	golden(t, "smallest.vmx", vmfiles.Generate(vmfiles.Machine{}).Bytes())
}

func TestDescriptorGolden(t *testing.T) {
	golden(t, "sda.vmdk", vmfiles.Descriptor(sda()))
}

func sda() vmfiles.Disk {
	return vmfiles.Disk{
		Name: "sda", SizeBytes: 128 << 30, Bus: "pvscsi", CID: 0x5352cace,
		UUID: [16]byte{0x60, 0x00, 0xc2, 0x97, 0xee, 0x00, 0x4e, 0xed, 0xcb, 0x09, 0xab, 0x10, 0x91, 0x3f, 0x7f, 0x99},
	}
}
