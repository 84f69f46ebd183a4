package image

import (
	"context"
	"encoding/binary"

	"livemount/internal/errs"
)

// Sizes and limits of the header. Source: QEMU, docs/interop/qcow2, sections "Header" and "Additional fields".
const (
	magic         = "QFI\xfb"
	headerV2      = 72
	headerV3      = 104
	headerMost    = 112 // with compression_type and its padding
	clusterBits0  = 9
	clusterBits1  = 21
	extendedBits0 = 14 // the smallest clusters that have subclusters
	maxDiskSize   = 64 << 40
	maxL1Bytes    = 32 << 20 // QEMU's own limit
	maxName       = 1023     // of a backing file
)

// Incompatible features: bits of the header's field of that name.
const (
	featureDirty uint64 = 1 << iota
	featureCorrupt
	featureDataFile
	featureCompression
	featureExtended
	featuresKnown = 1<<iota - 1
)

// header is what reading needs of a qcow2 header and its extensions.
type header struct {
	version     uint32
	clusterBits uint
	size        int64 // of the disk
	crypt       uint32
	l1Entries   int64
	l1Off       int64
	features    uint64 // incompatible
	length      int64
	zstd        bool
	backingOff  int64
	backingLen  int64

	backing       string // "" is none
	backingFormat string // "" is not recorded
	dataFile      string
	featureNames  []byte // the table, 48 bytes each
}

func (h *header) cluster() int64 { return 1 << h.clusterBits }

// has says whether an incompatible feature is in use.
func (h *header) has(feature uint64) bool { return h.features&feature != 0 }

// entryBytes is the size of an L2 entry.
func (h *header) entryBytes() int64 {
	if h.has(featureExtended) {
		return 16
	}
	return 8
}

// covered is the number of disk bytes that one L2 table maps.
func (h *header) covered() int64 { return h.cluster() / h.entryBytes() << h.clusterBits }

// damaged is the error for a structure that cannot be what a sound image holds.
func damaged(path, format string, args ...any) error {
	args = append([]any{path}, args...)
	return errs.WithTry(errs.New(errs.Corrupt, "qcow2 image %s: "+format, args...), "qemu-img check %s", path)
}

func unsupported(kind errs.Kind, path, format string, args ...any) error {
	args = append([]any{path}, args...)
	return errs.New(kind, "qcow2 image %s: "+format, args...)
}

// hasMagic says whether the file starts like a qcow2 image.
func (r *Raw) hasMagic(ctx context.Context) (bool, error) {
	var b [len(magic)]byte
	err := r.readPadded(ctx, b[:], 0)
	return string(b[:]) == magic, err
}

// readHeader reads and checks the header of an image that has the magic.
func readHeader(ctx context.Context, f *Raw) (header, error) {
	b := make([]byte, headerMost)
	if err := f.readPadded(ctx, b, 0); err != nil {
		return header{}, err
	}
	h, err := parseHeader(f, b)
	if err == nil {
		err = h.readNames(ctx, f)
	}
	if err == nil {
		err = h.checkFeatures(f.path, b)
	}
	if err == nil {
		err = h.checkTables(f)
	}
	return h, err
}

func parseHeader(f *Raw, b []byte) (header, error) {
	be := binary.BigEndian
	h := header{
		version: be.Uint32(b[4:]), crypt: be.Uint32(b[32:]), l1Entries: int64(be.Uint32(b[36:])), length: headerV2,
		backingLen: int64(be.Uint32(b[16:])),
	}
	switch {
	case h.version < 2:
		return h, errs.WithTry(unsupported(errs.Invalid, f.path, "version %d is the old qcow format", h.version),
			"qemu-img convert -O qcow2 %s NEW", f.path)
	case h.version > 3:
		return h, unsupported(errs.Newer, f.path, "version %d is not known, only 2 and 3", h.version)
	case h.version == 3:
		h.features, h.length = be.Uint64(b[72:]), int64(be.Uint32(b[100:]))
	}
	bits, size := be.Uint32(b[20:]), be.Uint64(b[24:])
	if bits < clusterBits0 || bits > clusterBits1 {
		return h, damaged(f.path, "clusters of 2^%d bytes, not 2^%d to 2^%d", bits, clusterBits0, clusterBits1)
	}
	if size > maxDiskSize {
		return h, unsupported(errs.Invalid, f.path, "the disk of %d bytes is larger than %d bytes", size, int64(maxDiskSize))
	}
	h.clusterBits, h.size = uint(bits), int64(size)
	if h.length < headerV2 || h.version == 3 && h.length < headerV3 || h.length > h.cluster() {
		return h, damaged(f.path, "a header of %d bytes", h.length)
	}
	return h, h.parsePlaces(f, b)
}

// parsePlaces takes the offsets over; as long as they are below the end of the file they fit an int64.
func (h *header) parsePlaces(f *Raw, b []byte) error {
	l1, backing := binary.BigEndian.Uint64(b[40:]), binary.BigEndian.Uint64(b[8:])
	if l1 > uint64(f.size) {
		return damaged(f.path, "the L1 table at offset %d is behind the end of the file at %d", l1, f.size)
	}
	if backing > uint64(h.cluster()) {
		return damaged(f.path, "the name of the backing file at offset %d is not in the first cluster", backing)
	}
	h.l1Off, h.backingOff = int64(l1), int64(backing)
	return nil
}

// checkFeatures refuses what changes the meaning of the image in a way that is not understood.
func (h *header) checkFeatures(path string, b []byte) error {
	if unknown := h.features &^ featuresKnown; unknown != 0 {
		return unsupported(errs.Newer, path, "it uses features that are not known: %s", h.nameFeatures(unknown))
	}
	switch {
	case h.crypt != 0:
		return errs.WithTry(unsupported(errs.Invalid, path, "it is encrypted (method %d)", h.crypt),
			"qemu-img convert with the key, or back up the disk inside the guest")
	case h.has(featureCorrupt):
		return damaged(path, "it is marked corrupt: QEMU found damage in it and stopped writing")
	case h.has(featureExtended) && h.clusterBits < extendedBits0:
		return damaged(path, "subclusters in clusters of %d bytes", h.cluster())
	}
	kind := byte(0)
	if h.length > headerV3 {
		kind = b[headerV3]
	}
	if h.has(featureCompression) != (kind != 0) {
		return damaged(path, "compression type %d contradicts the feature bit of other compressions", kind)
	}
	if kind > 1 {
		return unsupported(errs.Newer, path, "compression type %d is not known, only 0 (zlib) and 1 (zstd)", kind)
	}
	h.zstd = kind == 1
	return nil
}

// checkTables makes sure that every L1 entry that the disk needs is in the file.
func (h *header) checkTables(f *Raw) error {
	need := (h.size + h.covered() - 1) / h.covered()
	switch {
	case h.l1Entries*8 > maxL1Bytes:
		return damaged(f.path, "an L1 table of %d entries, more than %d", h.l1Entries, maxL1Bytes/8)
	case h.l1Entries < need:
		return damaged(f.path, "an L1 table of %d entries, a disk of %d bytes needs %d", h.l1Entries, h.size, need)
	case h.l1Off%h.cluster() != 0:
		return damaged(f.path, "the L1 table at offset %d is not at the start of a cluster", h.l1Off)
	case h.l1Off+need*8 > f.size:
		return damaged(f.path, "the L1 table at offset %d ends behind the end of the file at %d", h.l1Off, f.size)
	}
	return nil
}
