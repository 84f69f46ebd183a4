package image_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"livemount/blockdev"
	"livemount/blockdev/blocktest"
	"livemount/blockdev/image"
	"livemount/test/harness"
)

// qemu runs the tools that everything here is compared with.
func qemuTools(t testing.TB) {
	t.Helper()
	harness.Tools(t, "qemu-img qemu-utils", "qemu-io qemu-utils")
}

func qimg(t testing.TB, args ...string) string {
	t.Helper()
	return harness.Run(t, "qemu-img", args...)
}

// qio runs commands of qemu-io in an image.
func qio(t testing.TB, path, format string, commands ...string) {
	t.Helper()
	args := []string{"-f", format}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	harness.Run(t, "qemu-io", append(args, path)...)
}

// create makes an image with options of qemu-img ("" is none).
func create(t testing.TB, dir, name, options, size string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	args := []string{"create", "-q", "-f", "qcow2"}
	if options != "" {
		args = append(args, "-o", options)
	}
	qimg(t, append(args, path, size)...)
	return path
}

// overlay makes an image in front of another one, which has the format.
func overlay(t testing.TB, path, behind, format string, more ...string) string {
	t.Helper()
	qimg(t, append([]string{"create", "-q", "-f", "qcow2", "-b", behind, "-F", format, path}, more...)...)
	return path
}

// asQemu is the disk as QEMU reads it.
func asQemu(t testing.TB, path, format string) []byte {
	t.Helper()
	out := path + ".as-raw"
	qimg(t, "convert", "-f", format, "-O", "raw", path, out)
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(out)
	return b
}

func openQcow2(t testing.TB, path string) *image.Qcow2 {
	t.Helper()
	q, err := image.OpenQcow2(path, image.Qcow2Options{Dir: filepath.Dir(path)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return q
}

// readAll reads a disk in pieces whose size fits nothing.
func readAll(t testing.TB, r blockdev.Reader) []byte {
	t.Helper()
	b := make([]byte, r.Size())
	for off := 0; off < len(b); off += 1_000_003 {
		if err := r.ReadAt(t.Context(), b[off:min(len(b), off+1_000_003)], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// conforms compares an image with what QEMU reads, byte for byte, and lets the suite of blockdev look at it.
func conforms(t *testing.T, path string) {
	t.Helper()
	q, want := openQcow2(t, path), asQemu(t, path, "qcow2")
	if int64(len(want)) != q.Size() {
		t.Fatalf("%d bytes, QEMU reads %d", q.Size(), len(want))
	}
	if got := readAll(t, q); !bytes.Equal(got, want) {
		t.Fatalf("other bytes than QEMU from offset %d on", firstDifference(got, want))
	}
	blocktest.TestReader(t, q, want)
	if note, err := q.Changed(), q.Check(t.Context()); note != "" || err != nil {
		t.Errorf("unchanged image: %q, %v", note, err)
	}
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// mapped compares the extents with those of QEMU: what is data for one is data for the other.
func mapped(t *testing.T, path string) {
	t.Helper()
	q := openQcow2(t, path)
	var list []struct {
		Start, Length int64
		Data          bool
	}
	if err := json.Unmarshal([]byte(qimg(t, "map", "--output=json", "-f", "qcow2", path)), &list); err != nil {
		t.Fatal(err)
	}
	kinds := make([]bool, q.Size()/512)
	for e, err := range q.Extents(t.Context(), 0, q.Size()) {
		if err != nil {
			t.Fatal(err)
		}
		for i := e.Off / 512; i < e.End()/512; i++ {
			kinds[i] = e.Kind == blockdev.Data
		}
	}
	for _, m := range list {
		for i := m.Start / 512; i < (m.Start+m.Length)/512; i++ {
			if kinds[i] != m.Data {
				t.Fatalf("sector %d: data is %v, QEMU says %v", i, kinds[i], m.Data)
			}
		}
	}
}

// scribble returns random writes, zeroes and discards for qemu-io. Long ones make it compress.
func scribble(r *rand.Rand, size int64, n int) []string {
	var list []string
	for range n {
		off := r.Int64N(size/512) * 512
		length := min(size-off, (1+r.Int64N(1+size/512/int64(n)))*512)
		op := "write -P " + fmt.Sprint(1+r.IntN(255))
		switch r.IntN(8) {
		case 0:
			op = "write -z"
		case 1:
			op = "write -z -u"
		case 2:
			op = "discard"
		}
		list = append(list, fmt.Sprintf("%s %d %d", op, off, length))
	}
	return list
}

func seeded(t testing.TB) *rand.Rand { return rand.New(rand.NewPCG(harness.Seed(t), 1)) }

// content makes a raw disk: text that compresses, noise that does not, and holes.
func content(t testing.TB, path string, size int64, r *rand.Rand) {
	t.Helper()
	b := make([]byte, size)
	for off := int64(0); off < size; off += 32 << 10 {
		part := b[off:min(size, off+32<<10)]
		switch r.IntN(3) {
		case 0:
			copy(part, strings.Repeat(fmt.Sprintf("line %d of a log file\n", r.IntN(9)), len(part)/20))
		case 1:
			for i := range part {
				part[i] = byte(r.Uint32())
			}
		}
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
