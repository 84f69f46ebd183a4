package image

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"
)

// Header extensions. Source: QEMU, docs/interop/qcow2, section "Header extensions".
const (
	extEnd           = 0
	extBackingFormat = 0xe2792aca
	extDataFile      = 0x44415441
	extFeatureNames  = 0x6803f857
	featureNameBytes = 48
)

// readNames reads what lies behind the header in the first cluster: the extensions, the backing file's name.
func (h *header) readNames(ctx context.Context, f *Raw) error {
	b := make([]byte, min(h.cluster(), f.size))
	if err := f.ReadAt(ctx, b, 0); err != nil {
		return err
	}
	end := int64(len(b))
	if h.backingOff != 0 {
		if h.backingLen > min(maxName, end-h.backingOff) {
			return damaged(f.path, "the name of the backing file, %d bytes at offset %d, is not in the first cluster or too long",
				h.backingLen, h.backingOff)
		}
		h.backing = string(b[h.backingOff:][:h.backingLen])
		end = h.backingOff
	}
	if h.length >= end {
		return nil
	}
	return h.readExtensions(f.path, b[h.length:end])
}

func (h *header) readExtensions(path string, b []byte) error {
	for len(b) >= 8 {
		kind, n := binary.BigEndian.Uint32(b), int64(binary.BigEndian.Uint32(b[4:]))
		b = b[8:]
		if kind == extEnd {
			return nil
		}
		if n > int64(len(b)) {
			return damaged(path, "a header extension (%#x) of %d bytes does not fit the first cluster", kind, n)
		}
		h.takeExtension(kind, b[:n])
		b = b[min(int64(len(b)), (n+7)&^7):]
	}
	return nil
}

func (h *header) takeExtension(kind uint32, b []byte) {
	switch kind {
	case extBackingFormat:
		h.backingFormat = string(b)
	case extDataFile:
		h.dataFile = string(b)
	case extFeatureNames:
		h.featureNames = b
	}
}

// nameFeatures lists incompatible features by the names that the image has for them.
func (h *header) nameFeatures(set uint64) string {
	var list []string
	for ; set != 0; set &= set - 1 {
		bit := bits.TrailingZeros64(set)
		list = append(list, h.nameFeature(bit))
	}
	return strings.Join(list, ", ")
}

func (h *header) nameFeature(bit int) string {
	for t := h.featureNames; len(t) >= featureNameBytes; t = t[featureNameBytes:] {
		if t[0] == 0 && int(t[1]) == bit {
			name, _, _ := strings.Cut(string(t[2:featureNameBytes]), "\x00")
			return fmt.Sprintf("bit %d %q", bit, name)
		}
	}
	return fmt.Sprintf("bit %d", bit)
}
