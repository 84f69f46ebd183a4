package vmfiles_test

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"livemount/fs/vmfiles"
	"livemount/internal/errs"
)

func invalid(t *testing.T, err error) {
	t.Helper()
	if !errs.Is(err, errs.Invalid) {
		t.Errorf("an error of kind %v: %v", errs.KindOf(err), err)
	}
}

// FuzzParseVMX finds that what is read and written again is the same, and that nothing leads outside of the
// folder when it was adjusted.
func FuzzParseVMX(f *testing.F) {
	b, err := os.ReadFile("testdata/captured.vmx")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(vmfiles.Generate(generated()).Bytes())
	f.Add([]byte("a = \"b|22\" # c\r\n\xff=\xfe\n.x=|zz\n"))
	f.Add([]byte(device("scsi0:0", "[x] C:/..") + device("ide9:255", "/vmfs/a-000001.vmdk") + device("serial3", "./../x")))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := vmfiles.ParseVMX(b)
		if err != nil {
			invalid(t, err)
			return
		}
		again := parse(t, string(v.Bytes()))
		if !reflect.DeepEqual(v, again) {
			t.Fatalf("written as %q, which is %+v, not %+v", v.Bytes(), again, v)
		}
		vmfiles.Adjust(v, vmfiles.Machine{Name: "m", DisplayName: "n", Disks: disks("scsi0:0", "a", "b")})
		inside(t, v)
		if !reflect.DeepEqual(v, parse(t, string(v.Bytes()))) {
			t.Fatalf("adjusted, written as %q", v.Bytes())
		}
	})
}

func inside(t *testing.T, v *vmfiles.VMX) {
	t.Helper()
	for _, key := range v.Keys() {
		lower := strings.ToLower(key)
		if strings.HasPrefix(lower, "guestinfo.") || !strings.HasSuffix(lower, "filename") && lower != "nvram" && lower != "workingdir" {
			continue
		}
		if s := get(v, key); strings.ContainsAny(s, `/\`) || strings.HasPrefix(s, "[") || s == ".." {
			t.Fatalf("%s = %q leads outside", key, s)
		}
	}
}

func FuzzParseDescriptor(f *testing.F) {
	f.Add(vmfiles.Descriptor(sda()))
	f.Add([]byte("version=1\r\nRW 5 FLAT \"a b\" 7 x\nRDONLY 1 ZERO\nddb.x = \"|22\" # c\n"))
	f.Add([]byte("version=3\nRW 9007199254740992 FLAT \"x\"\nRW 1 SPARSE \"y\"\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := vmfiles.ParseDescriptor(b)
		if err != nil {
			invalid(t, err)
			return
		}
		if d.SizeBytes() < 0 || d.Values["version"] == "" {
			t.Fatalf("%+v", d)
		}
	})
}

func FuzzFromLibvirt(f *testing.F) {
	f.Add([]byte(domain))
	f.Add([]byte("<domain><memory unit='TiB'>8388607</memory><vcpu current='0'>1</vcpu></domain>"))
	f.Add([]byte("<domain><devices><disk/><interface><mac address='01:02:03:04:05:06'/></interface></devices></domain>"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := vmfiles.FromLibvirt(b)
		if err != nil {
			invalid(t, err)
			return
		}
		v := vmfiles.Generate(m)
		if !reflect.DeepEqual(v, parse(t, string(v.Bytes()))) {
			t.Fatalf("%+v: written as %q", m, v.Bytes())
		}
		for _, d := range m.Disks {
			descriptor(t, vmfiles.Descriptor(d))
		}
		inside(t, v)
	})
}

func FuzzSniffFirmware(f *testing.F) {
	f.Add(gpt(512, typeSystem, typeLinux))
	f.Add(gpt(4096, typeBIOSBoot, typeSystem))
	f.Add(put(gpt(512, typeSystem), 0, "\x33\xc0\x8e\xd0\xbc\x00\x7c"))
	f.Add(gpt(512)[:604])
	f.Fuzz(func(t *testing.T, b []byte) {
		if got := vmfiles.SniffFirmware(b); got != vmfiles.FirmwareBIOS && got != vmfiles.FirmwareEFI {
			t.Errorf("%q", got)
		}
	})
}
