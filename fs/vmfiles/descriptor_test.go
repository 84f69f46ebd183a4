package vmfiles_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"livemount/fs/vmfiles"
	"livemount/internal/errs"
	"livemount/test/harness"
)

// TestQEMUReadsFlatDisk opens what we write with a reader of somebody else.
func TestQEMUReadsFlatDisk(t *testing.T) {
	harness.Tools(t, "qemu-img qemu-utils")
	r := rand.New(rand.NewPCG(harness.Seed(t), 1))
	for _, bus := range []string{"lsilogic", "pvscsi", "buslogic", "ide", "sata", ""} {
		dir := harness.Dir(t)
		d := vmfiles.Disk{Name: "my disk:0", SizeBytes: 3<<20 + 1 + r.Int64N(511), Bus: bus, CID: r.Uint32()}
		flat := make([]byte, d.Sectors()*512)
		for i := range d.SizeBytes {
			flat[i] = byte(r.Uint32())
		}
		path := filepath.Join(dir, vmfiles.DescriptorName(d.Name))
		write(t, path, vmfiles.Descriptor(d))
		write(t, filepath.Join(dir, vmfiles.FlatName(d.Name)), flat)

		var info struct {
			Format  string
			Size    int64 `json:"virtual-size"`
			Special struct {
				Data struct {
					CreateType string `json:"create-type"`
					CID        int64  `json:"cid"`
					ParentCID  int64  `json:"parent-cid"`
				}
			} `json:"format-specific"`
		}
		if err := json.Unmarshal([]byte(harness.Run(t, "qemu-img", "info", "--output=json", path)), &info); err != nil {
			t.Fatal(err)
		}
		data := info.Special.Data
		if info.Format != "vmdk" || info.Size != int64(len(flat)) || data.CreateType != "vmfs" ||
			data.CID != int64(d.CID) || data.ParentCID != 0xffffffff {
			t.Errorf("bus %q: QEMU says %+v", bus, info)
		}
		harness.Run(t, "qemu-img", "compare", "-s", "-f", "vmdk", "-F", "raw", path, filepath.Join(dir, vmfiles.FlatName(d.Name)))
	}
}

// TestQEMUDescriptorParses reads what somebody else writes.
func TestQEMUDescriptorParses(t *testing.T) {
	harness.Tools(t, "qemu-img qemu-utils")
	dir := harness.Dir(t)
	base, top := filepath.Join(dir, "base.vmdk"), filepath.Join(dir, "top.vmdk")
	harness.Run(t, "qemu-img", "create", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentFlat", base, "5G")
	harness.Run(t, "qemu-img", "create", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", "-b", base, "-F", "vmdk", top)
	d := descriptor(t, read(t, base))
	if d.SizeBytes() != 5<<30 || len(d.Extents) != 3 || d.CreateType != "twoGbMaxExtentFlat" || d.ParentFileNameHint != "" {
		t.Errorf("%+v", d)
	}
	if e := d.Extents[0]; e.Access != "RW" || e.Type != "FLAT" || e.File != "base-f001.vmdk" || e.OffsetSectors != 0 {
		t.Errorf("%+v", e)
	}
	if over := descriptor(t, read(t, top)); over.ParentFileNameHint != base || over.ParentCID != d.CID {
		t.Errorf("%+v on %+v", over, d)
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func descriptor(t testing.TB, b []byte) *vmfiles.DescriptorInfo {
	t.Helper()
	d, err := vmfiles.ParseDescriptor(b)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDescriptorGeometry(t *testing.T) {
	for _, c := range []struct {
		bus                        string
		size                       int64
		cylinders, heads, perTrack int
	}{
		{"lsilogic", 0, 1, 64, 32},
		{"lsilogic", 1, 1, 64, 32},
		{"lsilogic", 512 << 20, 512, 64, 32},
		{"lsilogic", 1<<30 - 512, 1023, 64, 32},
		{"lsilogic", 1 << 30, 512, 128, 32},
		{"lsilogic", 2<<30 - 512, 1023, 128, 32},
		{"lsilogic", 2 << 30, 261, 255, 63},
		{"pvscsi", 8 << 30, 1044, 255, 63},
		{"", 128 << 30, 16709, 255, 63}, // as in a descriptor of ESXi
		{"sata", 2 << 40, 267349, 255, 63},
		{"ide", 40 << 30, 83220, 16, 63}, // as VMware Workstation logs it
		{"ide", 1 << 20, 2, 16, 63},
	} {
		v := descriptor(t, vmfiles.Descriptor(vmfiles.Disk{Name: "x", SizeBytes: c.size, Bus: c.bus})).Values
		got := v["ddb.geometry.cylinders"] + "/" + v["ddb.geometry.heads"] + "/" + v["ddb.geometry.sectors"]
		if want := fmt.Sprintf("%d/%d/%d", c.cylinders, c.heads, c.perTrack); got != want {
			t.Errorf("%d bytes on %q: %s, want %s", c.size, c.bus, got, want)
		}
	}
}

func TestDescriptorIdentity(t *testing.T) {
	for cid, want := range map[uint32]string{0: "fffffffe", 0xffffffff: "fffffffe", 1: "00000001", 0xabcdef01: "abcdef01"} {
		d := descriptor(t, vmfiles.Descriptor(vmfiles.Disk{Name: "x", CID: cid}))
		if d.CID != want || d.ParentCID != "ffffffff" || !strings.HasSuffix(d.Values["ddb.longcontentid"], want) {
			t.Errorf("CID %x: %s on %s, %s", cid, d.CID, d.ParentCID, d.Values["ddb.longcontentid"])
		}
		if id, ok := d.Values["ddb.uuid"]; ok {
			t.Errorf("a disk without an uuid has %s", id)
		}
	}
	if a, b := vmfiles.Descriptor(sda()), vmfiles.Descriptor(sda()); !bytes.Equal(a, b) {
		t.Error("the same disk has two descriptors")
	}
}

func TestSectorsRoundUp(t *testing.T) {
	for size, want := range map[int64]int64{-1: 0, 0: 0, 1: 1, 511: 1, 512: 1, 513: 2, 1<<63 - 1: 1 << 54} {
		if got := (vmfiles.Disk{SizeBytes: size}).Sectors(); got != want {
			t.Errorf("%d bytes: %d sectors, want %d", size, got, want)
		}
	}
}

func TestDescriptorSnapshot(t *testing.T) {
	d := descriptor(t, []byte("# Disk DescriptorFile\r\nversion=3\r\nCID=fffffffe\r\nparentCID=5352cace\r\n"+
		"createType=\"vmfsSparse\"\r\nparentFileNameHint=\"web 01.vmdk\"\r\nRW 16777216 VMFSSPARSE \"web 01-000001-delta.vmdk\"\r\n"+
		"RW 5 ZERO\r\nRDONLY 7 FLAT \"/dev/sdb\" 63 trailing\r\n"))
	if d.ParentFileNameHint != "web 01.vmdk" || d.CID != "fffffffe" || d.SizeBytes() != (16777216+12)*512 {
		t.Errorf("%+v", d)
	}
	if e := d.Extents[2]; e.Access != "RDONLY" || e.OffsetSectors != 63 || e.File != "/dev/sdb" || d.Extents[1].File != "" {
		t.Errorf("%+v", d.Extents)
	}
}

func TestDescriptorHostile(t *testing.T) {
	for name, s := range map[string]string{
		"Empty":          "",
		"OnlyComments":   "# Disk DescriptorFile\n",
		"Sparse":         "KDMV\x01\x00\x00\x00",
		"NoVersionFirst": "CID=fffffffe\nversion=1\n",
		"Text":           "version=1\nhello\n",
		"NegativeSize":   "version=1\nRW -1 FLAT \"x\"\n",
		"HugeSize":       "version=1\nRW 99999999999999999999 FLAT \"x\"\n",
		"HugeSum":        "version=1\nRW 9007199254740992 FLAT \"x\"\nRW 9007199254740992 FLAT \"x\"\n",
		"NoType":         "version=1\nRW 1\n",
		"NoQuotes":       "version=1\nRW 1 FLAT x\n",
		"OpenQuotes":     "version=1\nRW 1 FLAT \"x\n",
		"BadOffset":      "version=1\nRW 1 FLAT \"x\" -5\n",
		"OpenValue":      "version=1\ncreateType=\"vmfs\n",
		"TooLong":        "version=1\n" + strings.Repeat("#\n", 1<<20),
	} {
		if d, err := vmfiles.ParseDescriptor([]byte(s)); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %+v, %v", name, d, err)
		}
	}
}
