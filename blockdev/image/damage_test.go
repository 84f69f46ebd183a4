package image_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"livemount/blockdev/image"
	"livemount/test/harness"
)

// TestDamagedImagesReadAsQemuOrNotAtAll flips bytes of sound images. What both we and QEMU can read then is
// the same; what we refuse, and QEMU fills with zeroes, is not compared.
func TestDamagedImagesReadAsQemuOrNotAtAll(t *testing.T) {
	qemuTools(t)
	dir, r := t.TempDir(), seeded(t)
	raw := filepath.Join(dir, "disk.raw")
	content(t, raw, 96<<10, r)
	var sound [][]byte
	for name, args := range map[string][]string{
		"zlib": {"-c", "-o", "cluster_size=512"}, "zstd": {"-c", "-o", "cluster_size=1k,compression_type=zstd"},
		"plain": {"-o", "cluster_size=512"}, "v2": {"-o", "cluster_size=512,compat=0.10"}, "sub": {"-o", "extended_l2=on,cluster_size=16k"},
	} {
		path := filepath.Join(dir, name+".qcow2")
		qimg(t, append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, args...), raw, path)...)
		qio(t, path, "qcow2", "write -P 7 1k 3k", "write -z 20k 5k", "discard 64k 16k")
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		sound = append(sound, b)
	}
	read := 0
	for range harness.Soak(60, 2000) {
		b := bytes.Clone(sound[r.IntN(len(sound))])
		flip(r, b)
		if readsAlike(t, filepath.Join(dir, "damaged.qcow2"), b) {
			read++
		}
	}
	t.Logf("%d could be read", read)
}

// flip damages up to three bytes: of the header, of the L1 table, of the first L2 table, or anywhere.
func flip(r *rand.Rand, b []byte) {
	l1 := int(binary.BigEndian.Uint64(b[40:]))
	l2 := int(binary.BigEndian.Uint64(b[l1:]) << 8 >> 8)
	parts := [][2]int{{0, 112}, {l1, 8 * int(binary.BigEndian.Uint32(b[36:]))}, {l2, 512}, {0, len(b)}}
	for range 1 + r.IntN(3) {
		part := parts[r.IntN(len(parts))]
		b[part[0]+r.IntN(part[1])] ^= 1 << r.IntN(8)
	}
}

// readsAlike reads the image and compares, unless one of the two readers refuses it.
func readsAlike(t *testing.T, path string, b []byte) bool {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	q, err := image.OpenQcow2(path, image.Qcow2Options{})
	if err != nil {
		return false
	}
	defer q.Close()
	if q.Size() > 1<<20 {
		return false
	}
	got := make([]byte, q.Size())
	if q.ReadAt(t.Context(), got, 0) != nil {
		return false
	}
	out := path + ".raw"
	if _, err := harness.Try("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, out); err != nil {
		return false
	}
	want, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	// QEMU takes the size of a disk down to whole sectors.
	if !bytes.Equal(got[:len(got)&^511], want) {
		keep := filepath.Join(os.TempDir(), "livemount-damaged.qcow2")
		os.WriteFile(keep, b, 0o600)
		t.Errorf("other bytes than QEMU from offset %d on; the image is kept as %s", firstDifference(got, want), keep)
	}
	return true
}
