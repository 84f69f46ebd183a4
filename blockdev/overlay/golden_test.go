package overlay

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"livemount/internal/clock"
	"livemount/internal/vfs"
	"livemount/keyring"
)

// goldenLog is the worked example of FORMAT.md: three records, then a checkpoint, then one record.
func goldenLog(t *testing.T, keys *keyring.Keys) image {
	u := &upper{}
	o := u.options(goldenOptions(vfs.NewMem()))
	o.Keys = keys
	l := mustCreate(t, o, []Node{{ID: 7, Size: 65536}})
	d := mustDevice(t, l, 7)
	must(t, d.WriteAt(bg(), []byte("hello, log"), 4096))
	must(t, d.Zero(bg(), 512, 1024))
	must(t, u.append(l, []byte("meta")))
	must(t, l.Sync(bg()))
	must(t, l.Clean(bg()))
	must(t, d.WriteAt(bg(), []byte("after"), 0))
	must(t, l.Close())
	return takeImage(t, o.FS)
}

func goldenOptions(fsys vfs.FS) Options {
	return Options{
		FS: fsys, Dir: testDir, SegmentBytes: segmentBytesMin, PrewriteBytes: -1, NoBackground: true,
		Mount: [16]byte{0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf},
		Clock: &clock.Fixed{T: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)},
	}
}

// hexdump shows the lines that are not all zero.
func (m image) hexdump() string {
	var names []string
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	var b strings.Builder
	for _, n := range names {
		fmt.Fprintf(&b, "%s, %d bytes\n", n, len(m[n]))
		for off := 0; off < len(m[n]); off += 16 {
			if line := m[n][off:min(off+16, len(m[n]))]; !bytes.Equal(line, make([]byte, len(line))) {
				fmt.Fprintf(&b, "%06x  % x\n", off, line)
			}
		}
	}
	return b.String()
}

func TestFormatIsTheGoldenBytes(t *testing.T) {
	checkGolden(t, "testdata/golden.hex", goldenLog(t, nil).hexdump())
}

func TestForkFormatIsTheGoldenBytes(t *testing.T) {
	checkGolden(t, "testdata/golden-fork.hex", goldenFork(t).hexdump())
}

// goldenFork is a fork of the golden log, as Fork leaves it.
func goldenFork(t *testing.T) image {
	m, u := goldenLog(t, nil), &upper{}
	o := u.options(goldenOptions(m.mount(t)))
	l, _ := mustOpen(t, o, []Node{{ID: 7, Size: 65536}})
	must(t, l.Fork(bg(), "/m/fork", [16]byte{0xb0, 0xb1, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xbb, 0xbc, 0xbd, 0xbe, 0xbf}))
	must(t, l.Close())
	return takeImageOf(t, o.FS, "/m/fork")
}

func checkGolden(t *testing.T, name, got string) {
	if os.Getenv("OVERLAY_GOLDEN") == "write" {
		must(t, os.WriteFile(name, []byte(got), 0o644))
	}
	want, err := os.ReadFile(name)
	must(t, err)
	if got != string(want) {
		t.Fatalf("the format changed; it is now\n%s", got)
	}
}

// parseHexdump is the reverse of hexdump.
func parseHexdump(t *testing.T, text string) image {
	m, name := image{}, ""
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 3 && fields[2] == "bytes" {
			n, err := strconv.Atoi(fields[1])
			must(t, err)
			name = strings.TrimSuffix(fields[0], ",")
			m[name] = make([]byte, n)
			continue
		}
		off, err := strconv.ParseInt(fields[0], 16, 64)
		must(t, err)
		b, err := hex.DecodeString(strings.Join(fields[1:], ""))
		must(t, err)
		copy(m[name][off:], b)
	}
	return m
}

// TestSealedGoldenLogIsRead reads the golden log as it was sealed once. It cannot be made again: salts are random.
func TestSealedGoldenLogIsRead(t *testing.T) {
	const name = "testdata/golden-sealed"
	if os.Getenv("OVERLAY_GOLDEN") == "write" {
		writeSealedGolden(t, name)
	}
	var files [3][]byte
	for i, ext := range []string{".key", ".json", ".hex"} {
		b, err := os.ReadFile(name + ext)
		must(t, err)
		files[i] = b
	}
	secret, err := keyring.KeyFile(files[0])
	must(t, err)
	slots, err := keyring.Parse(files[1])
	must(t, err)
	u := &upper{}
	o := u.options(goldenOptions(parseHexdump(t, string(files[2])).mount(t)))
	o.Keys, err = slots.Open([16]byte{1}, secret)
	must(t, err)
	l, rep := mustOpen(t, o, []Node{{ID: 7, Size: 65536}})
	got := readAllOf(t, mustDevice(t, l, 7))
	if string(got[:5]) != "after" || string(got[4096:][:10]) != "hello, log" || string(u.state) != "meta" || len(rep.Notes) > 0 {
		t.Fatalf("%q, %q, %q, %+v", got[:5], got[4096:][:10], u.state, rep)
	}
	must(t, l.Close())
}

func writeSealedGolden(t *testing.T, name string) {
	file := keyring.NewKeyFile()
	secret, err := keyring.KeyFile(file)
	must(t, err)
	slots, keys, err := keyring.Create([16]byte{1}, keyring.NewSlot{Secret: secret, Created: testTime})
	must(t, err)
	document, err := slots.MarshalJSON()
	must(t, err)
	must(t, os.WriteFile(name+".key", file, 0o644))
	must(t, os.WriteFile(name+".json", document, 0o644))
	must(t, os.WriteFile(name+".hex", []byte(goldenLog(t, keys).hexdump()), 0o644))
}

func TestLogWithACheckpointOfVersion1IsRead(t *testing.T) {
	usePlain(t)
	text, err := os.ReadFile("testdata/golden-1.hex")
	must(t, err)
	u := &upper{}
	o := u.options(goldenOptions(parseHexdump(t, string(text)).mount(t)))
	nodes := []Node{{ID: 7, Base: pattern(9000, 1), Size: 65536}}
	want := modelOf(t, nodes)[0]
	copy(want[4096:], "hello, log")
	clear(want[512 : 512+1024])
	copy(want, "after")
	for range 2 { // the second time it has been written anew
		u.state = nil
		l, rep := mustOpen(t, o, nodes)
		if rep.Rotten || len(rep.Notes) > 0 || string(u.state) != "meta" {
			t.Fatalf("%q, %+v", u.state, rep)
		}
		if !bytes.Equal(readAllOf(t, mustDevice(t, l, 7)), want) {
			t.Fatal("other bytes")
		}
		must(t, l.Clean(bg()))
		must(t, l.Close())
	}
	if h := checkpointHeadOf(t, o); h.version != checkpointVersion {
		t.Fatalf("version %d", h.version)
	}
}
