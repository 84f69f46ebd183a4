package vmfiles

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strconv"
	"strings"

	"livemount/internal/errs"
)

const (
	maxLibvirtBytes = 4 << 20
	maxLibvirtDepth = 64
	maxCPUs         = 768
)

// domain is what is read of a libvirt domain. Source: libvirt, "Domain XML format".
type domain struct {
	XMLName xml.Name `xml:"domain"`
	Name    string   `xml:"name"`
	Title   string   `xml:"title"`
	UUID    string   `xml:"uuid"`
	Memory  struct {
		Unit  string `xml:"unit,attr"`
		Value string `xml:",chardata"`
	} `xml:"memory"`
	CPUs struct {
		Current string `xml:"current,attr"`
		Value   string `xml:",chardata"`
	} `xml:"vcpu"`
	OS         domainOS    `xml:"os"`
	Disks      []domainBus `xml:"devices>disk"`
	Interfaces []domainNIC `xml:"devices>interface"`
	System     struct {
		ID string `xml:"id,attr"`
	} `xml:"metadata>libosinfo>os"`
}

type domainOS struct {
	Firmware string `xml:"firmware,attr"`
	Type     struct {
		Arch string `xml:"arch,attr"`
	} `xml:"type"`
	Loader struct {
		Type   string `xml:"type,attr"`
		Secure string `xml:"secure,attr"`
		Path   string `xml:",chardata"`
	} `xml:"loader"`
	Features []struct {
		Name    string `xml:"name,attr"`
		Enabled string `xml:"enabled,attr"`
	} `xml:"firmware>feature"`
}

type domainBus struct {
	Device string `xml:"device,attr"`
	Target struct {
		Dev string `xml:"dev,attr"`
		Bus string `xml:"bus,attr"`
	} `xml:"target"`
}

type domainNIC struct {
	MAC struct {
		Address string `xml:"address,attr"`
	} `xml:"mac"`
	Model struct {
		Type string `xml:"type,attr"`
	} `xml:"model"`
}

// FromLibvirt returns what the XML of a libvirt domain tells of a machine, of at most 4 MiB: name, memory,
// processors, firmware, identity, the buses of its hard disks (named by their targets, "vda", of unknown size)
// and its network adapters. Networks are left out: a host of VMware has others. What the XML does not say, or
// says in a way that makes no sense, is zero; what is no domain is Invalid.
func FromLibvirt(b []byte) (Machine, error) {
	if len(b) > maxLibvirtBytes {
		return Machine{}, errs.New(errs.Invalid, "libvirt domain: %d bytes, more than %d", len(b), maxLibvirtBytes)
	}
	if err := checkDepth(b); err != nil {
		return Machine{}, errs.New(errs.Invalid, "libvirt domain: %w", err)
	}
	var d domain
	if err := xml.Unmarshal(b, &d); err != nil {
		return Machine{}, errs.New(errs.Invalid, "libvirt domain: %w", err)
	}
	return d.machine(), nil
}

// checkDepth bounds the nesting before anything is built of it.
func checkDepth(b []byte) error {
	d := xml.NewDecoder(bytes.NewReader(b))
	for depth := 0; ; {
		t, err := d.RawToken()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch t.(type) {
		case xml.StartElement:
			depth++
		case xml.EndElement:
			depth--
		}
		if depth > maxLibvirtDepth {
			return errs.New(errs.Invalid, "nested deeper than %d", maxLibvirtDepth)
		}
	}
}

func (d *domain) machine() Machine {
	m := Machine{
		Name: strings.TrimSpace(d.Name), DisplayName: strings.TrimSpace(d.Title), GuestOS: d.guestOS(),
		MemoryMiB: mebibytes(d.Memory.Value, d.Memory.Unit), CPUs: d.cpus(), Firmware: d.OS.firmware(),
	}
	m.SecureBoot = m.Firmware == FirmwareEFI && d.OS.secureBoot()
	if _, ok := parseUUID(strings.TrimSpace(d.UUID)); ok {
		m.UUID = strings.TrimSpace(d.UUID)
	}
	for _, disk := range d.Disks {
		if disk.Device == "" || disk.Device == "disk" {
			m.Disks = append(m.Disks, Disk{Name: disk.Target.Dev, Bus: disk.Target.Bus})
		}
	}
	for _, n := range d.Interfaces {
		m.NICs = append(m.NICs, NIC{MAC: n.MAC.Address, Model: n.Model.Type})
	}
	return m
}

// cpus is the number of processors that are switched on.
func (d *domain) cpus() int {
	for _, s := range []string{d.CPUs.Current, d.CPUs.Value} {
		if n, err := strconv.Atoi(strings.TrimSpace(s)); err == nil && n > 0 && n <= maxCPUs {
			return n
		}
	}
	return 0
}

func (o *domainOS) firmware() string {
	path := fold(o.Loader.Path)
	switch {
	case o.Firmware == FirmwareEFI:
		return FirmwareEFI
	case o.Firmware != "":
		return FirmwareBIOS
	case o.Loader.Type == "pflash", strings.Contains(path, "ovmf"), strings.Contains(path, "efi"):
		return FirmwareEFI
	}
	return FirmwareBIOS
}

// secureBoot believes the features of the firmware more than the loader, which is called secure when it could
// enforce Secure Boot. A machine without enrolled keys starts anything.
func (o *domainOS) secureBoot() bool {
	secure := o.Loader.Secure == "yes"
	for _, f := range o.Features {
		switch f.Name {
		case "secure-boot":
			secure = f.Enabled == "yes"
		case "enrolled-keys":
			if f.Enabled == "no" {
				return false
			}
		}
	}
	return secure
}

// guestOS is VMware's name for the system that libosinfo names with an address, "" when it says nothing. The
// names are those that hardware version 13 knows.
func (d *domain) guestOS() string {
	id := fold(d.System.ID)
	name := ""
	switch {
	case strings.Contains(id, "microsoft.com/win/2k3"):
		name = "winnetstandard"
	case strings.Contains(id, "microsoft.com/win/2k"):
		name = "windows9srv"
	case strings.Contains(id, "microsoft.com/win/xp"):
		name = "winxppro"
	case strings.Contains(id, "microsoft.com/win/"):
		name = "windows9"
	case strings.Contains(id, "ubuntu.com/"):
		name = "ubuntu"
	case strings.Contains(id, "debian.org/"):
		name = "debian10"
	case id == "":
		return ""
	default:
		name = "otherlinux"
	}
	if d.OS.Type.Arch == "i686" {
		return name
	}
	return name + "-64"
}

// mebibytes reads a size, rounded up; 0 when it makes no sense.
func mebibytes(value, unit string) int {
	n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
	factor := unitBytes(unit)
	if err != nil || n <= 0 || factor == 0 || n > math.MaxInt64/2/factor {
		return 0
	}
	return int((n*factor + 1<<20 - 1) >> 20)
}

// unitBytes is the unit of a size in libvirt, which takes KiB when there is none.
func unitBytes(unit string) int64 {
	switch unit {
	case "b", "bytes":
		return 1
	case "KB":
		return 1e3
	case "MB":
		return 1e6
	case "GB":
		return 1e9
	case "TB":
		return 1e12
	case "", "k", "KiB":
		return 1 << 10
	case "M", "MiB":
		return 1 << 20
	case "G", "GiB":
		return 1 << 30
	case "T", "TiB":
		return 1 << 40
	}
	return 0
}
