package vmfiles

import (
	"strconv"
	"strings"

	"livemount/internal/errs"
)

const (
	maxDescriptorBytes = 1 << 20
	// maxSectors bounds the sum of all extents: its bytes fit an int64.
	maxSectors = 1 << 53
)

// DescriptorInfo is what a descriptor says.
type DescriptorInfo struct {
	CreateType         string
	CID, ParentCID     string // hexadecimal, as written
	ParentFileNameHint string // "" for a disk without a parent
	Extents            []DescriptorExtent
	// Values has all values by their keys, in lower case: "encoding", "ddb.geometry.heads".
	Values map[string]string
}

// DescriptorExtent is a part of a disk. File is as written: it may point anywhere.
type DescriptorExtent struct {
	Access        string // RW, RDONLY or NOACCESS
	Sectors       int64  // of 512 bytes
	Type          string // FLAT, VMFS, SPARSE, ZERO…
	File          string // "" for ZERO
	OffsetSectors int64  // in the file
}

// SizeBytes is the size of the disk.
func (d *DescriptorInfo) SizeBytes() int64 {
	var n int64
	for _, e := range d.Extents {
		n += e.Sectors
	}
	return n * sectorBytes
}

// ParseDescriptor reads a descriptor of at most 1 MiB. Anything else, as a sparse disk that has its descriptor
// inside, is Invalid.
func ParseDescriptor(b []byte) (*DescriptorInfo, error) {
	if len(b) > maxDescriptorBytes {
		return nil, errs.New(errs.Invalid, "descriptor: %d bytes, more than %d", len(b), maxDescriptorBytes)
	}
	d := &DescriptorInfo{Values: map[string]string{}}
	number := 0
	for s := range strings.SplitSeq(string(b), "\n") {
		number++
		if err := d.take(trim(s)); err != nil {
			return nil, errs.New(errs.Invalid, "descriptor: line %d: %w", number, err)
		}
	}
	if d.Values["version"] == "" {
		return nil, errs.New(errs.Invalid, "descriptor: it has no version")
	}
	d.CreateType, d.ParentFileNameHint = d.Values["createtype"], d.Values["parentfilenamehint"]
	d.CID, d.ParentCID = d.Values["cid"], d.Values["parentcid"]
	return d, nil
}

// take reads a line. VMware wants the version to be the first that is not a comment.
func (d *DescriptorInfo) take(s string) error {
	if s == "" || s[0] == '#' {
		return nil
	}
	if access, rest, ok := strings.Cut(s, " "); ok && isAccess(access) {
		return d.takeExtent(access, trim(rest))
	}
	key, value, ok := strings.Cut(s, "=")
	key = fold(trim(key))
	switch {
	case !ok || !validKey(key):
		return errs.New(errs.Invalid, "%.40q is neither a value nor an extent", s)
	case len(d.Values) == 0 && key != "version":
		return errs.New(errs.Invalid, "it begins with %.40q, not with its version", s)
	}
	value, err := parseValue(trim(value))
	d.Values[key] = value
	return err
}

func isAccess(s string) bool { return s == "RW" || s == "RDONLY" || s == "NOACCESS" }

// takeExtent reads what follows the access: SECTORS TYPE ["FILE" [OFFSET]].
func (d *DescriptorInfo) takeExtent(access, s string) error {
	count, s, _ := strings.Cut(s, " ")
	kind, s, _ := strings.Cut(trim(s), " ")
	e := DescriptorExtent{Access: access, Type: kind}
	var err error
	if e.Sectors, err = sectorCount(count); err != nil {
		return err
	}
	if kind == "" || d.SizeBytes()/sectorBytes+e.Sectors > maxSectors {
		return errs.New(errs.Invalid, "an extent has no type, or the disk more than %d sectors", int64(maxSectors))
	}
	if s = trim(s); s != "" {
		if e.File, e.OffsetSectors, err = extentFile(s); err != nil {
			return err
		}
	}
	d.Extents = append(d.Extents, e)
	return nil
}

// extentFile reads "FILE" and what may follow: an offset, and for disks of a device its name.
func extentFile(s string) (string, int64, error) {
	name, rest, ok := strings.Cut(strings.TrimPrefix(s, `"`), `"`)
	if s[0] != '"' || !ok {
		return "", 0, errs.New(errs.Invalid, "%.40q is not a name in quotes", s)
	}
	offset, _, _ := strings.Cut(trim(rest), " ")
	if offset == "" {
		return name, 0, nil
	}
	n, err := sectorCount(offset)
	return name, n, err
}

func sectorCount(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > maxSectors {
		return 0, errs.New(errs.Invalid, "%.40q is not a number of sectors", s)
	}
	return n, nil
}
