package image_test

import (
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"livemount/blockdev/image"
	"livemount/internal/errs"
)

// Places in the crafted image: clusters of 512 bytes, one of each kind of table.
const (
	craftL1     = 512
	craftL2     = 1024
	craftData   = 1536
	craftPacked = 2048
	craftCounts = 2560 // table of reference counts, then its block
	craftEnd    = 3584
	craftDisk   = 32 << 10
)

func put32(b []byte, at int, v uint32) { binary.BigEndian.PutUint32(b[at:], v) }
func put64(b []byte, at int, v uint64) { binary.BigEndian.PutUint64(b[at:], v) }

// deflated is n bytes of zeroes as a cluster is compressed.
func deflated(n int) []byte {
	var b bytes.Buffer
	w, _ := flate.NewWriter(&b, 9)
	w.Write(make([]byte, n))
	w.Close()
	return b.Bytes()
}

func zstandard(n int) []byte {
	w, _ := zstd.NewWriter(nil)
	return w.EncodeAll(make([]byte, n), nil)
}

// craft makes a sound image: cluster 0 of the disk is stored, 1 compressed, 2 a zero cluster.
func craft() []byte {
	b := make([]byte, craftEnd)
	copy(b, "QFI\xfb")
	put32(b, 4, 3)
	put32(b, 20, 9)
	put64(b, 24, craftDisk)
	put32(b, 36, 1)
	put64(b, 40, craftL1)
	put64(b, 48, craftCounts)
	put32(b, 56, 1)
	put64(b, craftCounts, craftCounts+512)
	for i := range craftEnd / 512 {
		b[craftCounts+512+i*2+1] = 1
	}
	put32(b, 96, 4)
	put32(b, 100, 112)
	put64(b, craftL1, craftL2|1<<63)
	put64(b, craftL2, craftData|1<<63)
	put64(b, craftL2+8, craftPacked|1<<62)
	put64(b, craftL2+16, 1)
	copy(b[craftData:], "data")
	copy(b[craftPacked:], deflated(512))
	return b
}

func writeImage(t testing.TB, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCraftedImageIsSound(t *testing.T) {
	qemuTools(t)
	path := writeImage(t, craft())
	conforms(t, path)
	mapped(t, path)
}

// extend turns the crafted image into one with subclusters, which need clusters of 16 KiB.
func extend(entry, bitmap uint64) []byte {
	b := make([]byte, 4<<14)
	copy(b, craft()[:112])
	put32(b, 20, 14)
	put64(b, 72, 1<<4)
	put64(b, 40, 1<<14)
	put64(b, 1<<14, 2<<14|1<<63)
	put64(b, 2<<14, entry)
	put64(b, 2<<14+8, bitmap)
	return b
}

type hostile struct {
	name string
	kind errs.Kind
	says string
	edit func(b []byte) []byte
}

// edit32 and edit64 make an edit of one field.
func edit32(at int, v uint32) func([]byte) []byte {
	return func(b []byte) []byte { put32(b, at, v); return b }
}

func edit64(at int, v uint64) func([]byte) []byte {
	return func(b []byte) []byte { put64(b, at, v); return b }
}

func hostileHeaders() []hostile {
	return []hostile{
		{"Empty", errs.Invalid, "does not start like", func([]byte) []byte { return nil }},
		{"NoMagic", errs.Invalid, "does not start like", edit32(0, 0)},
		{"OnlyMagic", errs.Invalid, "version 0", func(b []byte) []byte { return b[:4] }},
		{"Version1", errs.Invalid, "version 1", edit32(4, 1)},
		{"Version4", errs.Newer, "version 4", edit32(4, 4)},
		{"ClustersTooSmall", errs.Corrupt, "clusters of 2^8", edit32(20, 8)},
		{"ClustersTooLarge", errs.Corrupt, "clusters of 2^22", edit32(20, 22)},
		{"ClustersAbsurd", errs.Corrupt, "clusters of", edit32(20, 1<<32-1)},
		{"DiskTooLarge", errs.Invalid, "larger than", edit64(24, 64<<40+1)},
		{"DiskNegative", errs.Invalid, "larger than", edit64(24, 1<<63)},
		{"Encrypted", errs.Invalid, "encrypted", edit32(32, 2)},
		{"L1TooShort", errs.Corrupt, "needs 1", edit32(36, 0)},
		{"L1TooShortForHugeDisk", errs.Corrupt, "needs", edit64(24, 64<<40)},
		{"L1TooLong", errs.Corrupt, "more than 4194304", edit32(36, 1<<32-1)},
		{"L1Misaligned", errs.Corrupt, "start of a cluster", edit64(40, 520)},
		{"L1BehindTheEnd", errs.Corrupt, "behind the end", edit64(40, 1<<40)},
		{"L1AtTheEnd", errs.Corrupt, "behind the end", edit64(40, craftEnd)},
		{"L1Negative", errs.Corrupt, "behind the end", edit64(40, 1<<63)},
		{"HeaderTooShort", errs.Corrupt, "header of 72", edit32(100, 72)},
		{"HeaderTooLong", errs.Corrupt, "header of 65536", edit32(100, 65536)},
		{"MarkedCorrupt", errs.Corrupt, "marked corrupt", edit64(72, 2)},
		{"UnknownFeature", errs.Newer, "bit 40", edit64(72, 1<<40)},
		{"NamedFeature", errs.Newer, `bit 40 "time travel"`, func(b []byte) []byte {
			put64(b, 72, 1<<40)
			put32(b, 112, 0x6803f857)
			put32(b, 116, 48)
			copy(b[120:], "\x00\x28time travel")
			return b
		}},
		{"SmallSubclusters", errs.Corrupt, "subclusters", edit64(72, 1<<4)},
		{"CompressionWithoutBit", errs.Corrupt, "compression type 1", edit32(104, 1<<24)},
		{"CompressionBitWithoutType", errs.Corrupt, "compression type 0", edit64(72, 8)},
		{"CompressionUnknown", errs.Newer, "compression type 9", func(b []byte) []byte { b[104] = 9; put64(b, 72, 8); return b }},
		{"ExtensionTooLong", errs.Corrupt, "does not fit", func(b []byte) []byte { put32(b, 112, 5); put32(b, 116, 1<<31); return b }},
		{"BackingNameBehindCluster", errs.Corrupt, "first cluster", edit64(8, 513)},
		{"BackingNameTooLong", errs.Corrupt, "too long", func(b []byte) []byte { put64(b, 8, 200); put32(b, 16, 1<<32-1); return b }},
		{"BackingFile", errs.Invalid, `"base"`, func(b []byte) []byte { put64(b, 8, 200); put32(b, 16, 4); copy(b[200:], "base"); return b }},
		{"BackingFormatUnknown", errs.Invalid, `"vmdk"`, func(b []byte) []byte {
			put64(b, 8, 200)
			put32(b, 16, 4)
			copy(b[200:], "base")
			put32(b, 112, 0xe2792aca)
			put32(b, 116, 4)
			copy(b[120:], "vmdk")
			return b
		}},
		{"DataFileWithoutName", errs.Invalid, "does not name", edit64(72, 4)},
	}
}

func hostileTables() []hostile {
	return []hostile{
		{"L2Misaligned", errs.Corrupt, "start of a cluster", func(b []byte) []byte {
			b = append(b, make([]byte, 1<<16)...)
			put32(b, 20, 10) // clusters of 1 KiB; the tables stay where they were
			put64(b, 40, 1024)
			put64(b, 1024, 512)
			return b
		}},
		{"L2BehindTheEnd", errs.Corrupt, "behind the end", edit64(craftL1, 1<<40)},
		{"L2CutOff", errs.Corrupt, "behind the end", func(b []byte) []byte { return b[:craftData-8] }},
		{"ClusterBehindTheEnd", errs.Corrupt, "behind the end", edit64(craftL2, 1<<50|1<<63)},
		{"ZeroClusterInVersion2", errs.Corrupt, "version 2", func(b []byte) []byte { put32(b, 4, 2); put64(b, craftL2, 1); return b }},
		{"ClusterMisaligned", errs.Corrupt, "start of a cluster", func([]byte) []byte { return extend(3<<14|512|1<<63, 1) }},
		{"SubclustersBoth", errs.Corrupt, "contradict", func([]byte) []byte { return extend(3<<14|1<<63, 1<<32|1) }},
		{"SubclustersOfNothing", errs.Corrupt, "contradict", func([]byte) []byte { return extend(0, 1<<7) }},
		{"PackedBehindTheEnd", errs.Corrupt, "behind the end", edit64(craftL2, 1<<62|1<<50)},
		{"PackedNoise", errs.Corrupt, "compressed cluster", edit64(craftL2, 1<<62|craftData)},
		{"PackedTooShort", errs.Corrupt, "511 of 512", func(b []byte) []byte {
			copy(b[craftPacked:], deflated(511))
			put64(b, craftL2, 1<<62|craftPacked)
			return b
		}},
		{"PackedCutOff", errs.Corrupt, "compressed cluster", func(b []byte) []byte {
			put64(b, craftL2, 1<<62|craftPacked)
			return b[:craftPacked+3]
		}},
		{"ZstdNoise", errs.Corrupt, "zstd", zstdImage([]byte("no frame at all"))},
		{"ZstdTooShort", errs.Corrupt, "zstd", zstdImage(zstandard(511))},
		{"ZstdBomb", errs.Corrupt, "zstd", zstdImage(zstandard(1 << 17))},
		{"ZstdCutOff", errs.Corrupt, "zstd", zstdImage(zstandard(512)[:9])},
	}
}

func zstdImage(frame []byte) func([]byte) []byte {
	return func(b []byte) []byte {
		put64(b, 72, 8)
		b[104] = 1
		put64(b, craftL2, 1<<62|craftPacked)
		clear(b[craftPacked:])
		copy(b[craftPacked:], frame)
		return b
	}
}

// TestHostileImagesAreRefused opens and reads images that lie. QEMU is not asked: it takes some of them.
func TestHostileImagesAreRefused(t *testing.T) {
	for _, c := range append(hostileHeaders(), hostileTables()...) {
		t.Run(c.name, func(t *testing.T) {
			path := writeImage(t, c.edit(craft()))
			dir := ""
			if c.name == "BackingFormatUnknown" {
				dir = filepath.Dir(path)
			}
			q, err := image.OpenQcow2(path, image.Qcow2Options{Dir: dir})
			if err == nil {
				defer q.Close()
				err = q.ReadAt(t.Context(), make([]byte, 512), 0)
			}
			if !errs.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
				t.Fatalf("got %v, want a %v error that names the file and says %q", err, c.kind, c.says)
			}
			if c.kind == errs.Corrupt && errs.TryOf(err) == "" {
				t.Errorf("no advice in %v", err)
			}
		})
	}
}

func TestHarmlessImagesAreRead(t *testing.T) {
	for name, edit := range map[string]func([]byte) []byte{
		"L2PointsToItself": func(b []byte) []byte { put64(b, craftL2, craftL2|1<<63); return b },
		"L1IsItsOwnL2":     edit64(craftL1, craftL1|1<<63),
		"DeflateBombIsCut": func(b []byte) []byte { copy(b[craftPacked:craftCounts], deflated(400<<10)); return b },
		"TwoZstdFrames":    zstdImage(append(zstandard(256), zstandard(256)...)),
		// A window of 128 MiB, one block of 512 equal bytes: the window takes no memory.
		"ZstdLargeWindow":   zstdImage([]byte("\x28\xb5\x2f\xfd\x00\x88\x03\x10\x00\x00")),
		"ZstdBeforeGarbage": zstdImage(append(zstandard(512), 0xff, 0xff, 0xff)),
	} {
		t.Run(name, func(t *testing.T) {
			q := openQcow2(t, writeImage(t, edit(craft())))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if err := q.ReadAt(t.Context(), make([]byte, 1024), 0); err != nil {
				t.Error(err)
			}
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
				t.Errorf("it took %d bytes of memory", n)
			}
		})
	}
}

// manyTables is an image of 128 GiB, all of whose 4 million L1 entries point to one table, in which every
// other cluster is zeroes.
func manyTables() []byte {
	const l1 = 4096
	b := append(craft(), make([]byte, l1-craftEnd+32<<20)...)
	put64(b, 24, 128<<30)
	put32(b, 36, 4<<20)
	put64(b, 40, l1)
	for at := l1; at < len(b); at += 8 {
		put64(b, at, craftL2|1<<63)
	}
	for i := range 64 {
		put64(b, craftL2+8*i, uint64(i%2))
	}
	return b
}

func TestHostileDiskOfManyTablesEndsWithItsContext(t *testing.T) {
	q := openQcow2(t, writeImage(t, manyTables()))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	for _, err := range q.Extents(ctx, 0, q.Size()) {
		if n++; n == 1000 {
			cancel()
		}
		if err != nil && !errs.Is(err, errs.Canceled) {
			t.Fatal(err)
		}
	}
	if n < 1000 || n > 1001 {
		t.Errorf("%d extents", n)
	}
}

func TestHostileDiskOfManyRangesIsNotListed(t *testing.T) {
	b := manyTables()
	put64(b, 8, 200)
	put32(b, 16, 4)
	copy(b[200:], "base")
	path := writeImage(t, b)
	base := filepath.Join(filepath.Dir(path), "base")
	if err := os.WriteFile(base, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(base, 128<<30); err != nil {
		t.Fatal(err)
	}
	id := openLater(t, base, "raw").Identity()
	if list, ok := ranges(t, openLater(t, path, ""), id); ok || id == "" {
		t.Errorf("identity %q, a list of %d ranges", id, len(list))
	}
}
