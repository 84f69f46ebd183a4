package snapshotchain

import (
	"encoding/binary"

	"livemount/internal/errs"
)

// dirLeaves is how many leaves a directory page names (2 GiB of a disk).
const dirLeaves = 256

// maxDirPages bounds a disk to 64 TiB.
const maxDirPages = 64 << 40 / (LeafBytes * dirLeaves)

// MaxDiskBytes is the largest disk.
const MaxDiskBytes = maxDirPages * dirLeaves * LeafBytes

// dirPage holds for each of 256 leaves the version that a point sees; 0 is none in this lineage.
type dirPage [dirLeaves]Seq

// encodeSeqs stores sequence numbers as runs of (length, number).
func encodeSeqs(seqs []Seq) []byte {
	var b []byte
	for i := 0; i < len(seqs); {
		j := i + 1
		for j < len(seqs) && seqs[j] == seqs[i] {
			j++
		}
		b = binary.AppendUvarint(b, uint64(j-i))
		b = binary.AppendUvarint(b, uint64(seqs[i]))
		i = j
	}
	return b
}

// decodeSeqs fills out, which must be exactly as long as what was encoded.
func decodeSeqs(b []byte, out []Seq) error {
	d := &varints{b: b}
	for i := 0; i < len(out); {
		n := d.uint(uint64(len(out) - i))
		s := Seq(d.uint(1<<32 - 1))
		if d.err != nil || n == 0 {
			return errs.New(errs.Corrupt, "directory is malformed at entry %d", i)
		}
		for range n {
			out[i] = s
			i++
		}
	}
	if len(d.b) != 0 {
		return errs.New(errs.Corrupt, "directory is longer than its disk")
	}
	return nil
}

// dirPagesOf is how many directory pages a disk of this size has.
func dirPagesOf(size int64) int {
	return int((size + LeafBytes*dirLeaves - 1) / (LeafBytes * dirLeaves))
}
