package nbd

import (
	"bytes"
	"context"
	"encoding/json"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livemount/blockdev"
	"livemount/blockdev/blocktest"
	"livemount/internal/errs"
)

// run runs a peer; make test installs them.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	var out, stderr bytes.Buffer
	c := exec.Command(name, args...)
	c.Stdout, c.Stderr = &out, &stderr
	if err := c.Run(); err != nil {
		t.Fatalf("%s %s: %v: %s%s (test/setup/install.sh test)", name, strings.Join(args, " "), err, out.String(), stderr.String())
	}
	return out.String()
}

// peer starts a server that listens on the socket, and waits until it does.
func peer(t testing.TB, socket, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(bg())
	c := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	must(t, c.Start())
	gone := make(chan struct{})
	go func() { _ = c.Wait(); close(gone) }()
	t.Cleanup(func() { cancel(); <-gone })
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if c, err := net.Dial("unix", socket); err == nil {
			must(t, c.Close())
			return
		}
		select {
		case <-tick.C:
		case <-gone:
			t.Fatalf("%s ended: %s", name, stderr.String())
		}
	}
}

// patchy is a disk with data, and with holes between.
func patchy(t testing.TB, size int64) ([]byte, *blockdev.Mem) {
	rng, b, m := rand.New(rand.NewPCG(4, 4)), make([]byte, size), blockdev.NewMem(size)
	for off := int64(0); off+300<<10 < size; off += 1 << 20 {
		for i := range b[off:][:rng.IntN(300<<10)] {
			b[off+int64(i)] = byte(rng.Uint32())
		}
	}
	must(t, m.WriteAt(bg(), b, 0))
	return b, m
}

func TestOthersReadOurExports(t *testing.T) {
	b, m := patchy(t, 9<<20+512)
	u := serve(t, shelf{"disk": {Disk: m, Description: "a disk"}, "fixed": {Disk: m, ReadOnly: true}}, ServerOptions{})
	dir := t.TempDir()
	var info struct {
		Exports []struct {
			Name     string   `json:"export-name"`
			Size     int64    `json:"export-size"`
			Multi    bool     `json:"can_multi_conn"`
			ReadOnly bool     `json:"is_read_only"`
			Contexts []string `json:"contexts"`
		} `json:"exports"`
	}
	must(t, json.Unmarshal([]byte(run(t, "nbdinfo", "--json", u.String())), &info))
	if e := info.Exports[0]; e.Size != m.Size() || !e.Multi || e.ReadOnly || len(e.Contexts) != 1 || e.Contexts[0] != contextAllocation {
		t.Errorf("nbdinfo: %+v", e)
	}
	if out := run(t, "nbdinfo", "--list", u.String()); !strings.Contains(out, `export="fixed"`) || !strings.Contains(out, "a disk") {
		t.Errorf("nbdinfo --list: %s", out)
	}
	for name, args := range map[string][]string{
		"nbdcopy":  {"nbdcopy", u.String(), filepath.Join(dir, "nbdcopy")},
		"qemu-img": {"qemu-img", "convert", "-f", "raw", "-O", "raw", u.String(), filepath.Join(dir, "qemu-img")},
	} {
		run(t, args[0], args[1:]...)
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%s read other bytes: %v", name, err)
		}
	}
	checkMap(t, run(t, "nbdinfo", "--map", "--json", u.String()), b)
	run(t, "qemu-io", "-f", "raw", "-c", "write -P 0xab 4097 70000", "-c", "write -f -P 0xcd 200000 1M", "-c", "discard 2M 1M", "-c", "write -z 5M 1M", "-c", "flush",
		"-c", "read -P 0xab 4097 70000", "-c", "read -P 0xcd 200000 1M", "-c", "read -P 0 2M 1M", "-c", "read -P 0 5M 1M", u.String())
	got := make([]byte, 70000)
	must(t, m.ReadAt(bg(), got, 4097))
	if !bytes.Equal(got, bytes.Repeat([]byte{0xab}, 70000)) {
		t.Error("qemu-io wrote something else")
	}
	fixed := u
	fixed.Export = "fixed"
	if out, err := exec.Command("qemu-io", "-f", "raw", "-c", "write 0 4096", fixed.String()).CombinedOutput(); err == nil && !strings.Contains(string(out), "ermi") {
		t.Errorf("a read-only export was written: %s", out)
	}
}

// checkMap compares what nbdinfo says of the allocation with the bytes.
func checkMap(t *testing.T, text string, b []byte) {
	t.Helper()
	var runs []struct {
		Offset, Length int64
		Type           int
	}
	must(t, json.Unmarshal([]byte(text), &runs))
	at := int64(0)
	for _, r := range runs {
		if r.Offset != at || r.Type != 0 && !blockdev.IsZero(b[at:at+r.Length]) {
			t.Fatalf("run %+v at %d", r, at)
		}
		at += r.Length
	}
	if at != int64(len(b)) || len(runs) < 5 {
		t.Fatalf("%d runs, %d bytes", len(runs), at)
	}
}

func TestWeReadOthersExports(t *testing.T) {
	b, _ := patchy(t, 9<<20+512)
	dir := t.TempDir()
	file := filepath.Join(dir, "disk.raw")
	must(t, os.WriteFile(file, b, 0o600))
	for name, args := range map[string][]string{
		"qemu-nbd": {"qemu-nbd", "-f", "raw", "-t", "-e", "8", "-k", "SOCKET", file},
		"nbdkit":   {"nbdkit", "-f", "-U", "SOCKET", "file", file},
		"slow":     {"nbdkit", "-f", "-U", "SOCKET", "--filter=delay", "file", file, "rdelay=5ms", "wdelay=5ms"},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			for i := range args {
				args[i] = strings.Replace(args[i], "SOCKET", socket, 1)
			}
			peer(t, socket, args[0], args[1:]...)
			c := open(t, URI{Network: "unix", Address: socket}, ClientOptions{})
			// qemu-nbd shows a file in whole sectors
			blocktest.TestReader(t, c, append(b, make([]byte, c.Size()-int64(len(b)))...))
		})
	}
}

func TestWeWriteToOthersExports(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	peer(t, socket, "nbdkit", "-f", "-U", socket, "--filter=cow", "memory", "4M")
	c := open(t, URI{Network: "unix", Address: socket}, ClientOptions{Writable: true})
	p := bytes.Repeat([]byte{5}, 1<<20)
	must(t, c.WriteAt(bg(), p, 12345))
	must(t, c.Zero(bg(), 20000, 100000))
	must(t, c.Sync(bg()))
	clear(p[20000-12345:][:100000])
	got := make([]byte, len(p))
	if err := c.ReadAt(bg(), got, 12345); err != nil || !bytes.Equal(got, p) {
		t.Fatal("other bytes", err)
	}
}

func TestErrorsOfOthersAreTold(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	peer(t, socket, "nbdkit", "-f", "-U", socket, "--filter=error", "memory", "4M", "error=ENOSPC", "error-rate=100%")
	c := open(t, URI{Network: "unix", Address: socket}, ClientOptions{})
	if err := c.WriteAt(bg(), make([]byte, 100), 0); !errs.Is(err, errs.NoSpace) {
		t.Fatal(err)
	}
}

func TestPeerThatHangsIsLeftAfterTheTimeout(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	peer(t, socket, "nbdkit", "-f", "-U", socket, "--filter=delay", "memory", "4M", "rdelay=60")
	c := open(t, URI{Network: "unix", Address: socket}, ClientOptions{Timeout: 300 * time.Millisecond})
	if err := c.ReadAt(bg(), make([]byte, 100), 0); !errs.Is(err, errs.Unreachable) {
		t.Fatal(err)
	}
}

func TestDirtyBitmapOfQEMUIsExact(t *testing.T) {
	dir := t.TempDir()
	img, socket := filepath.Join(dir, "d.qcow2"), filepath.Join(dir, "s")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", img, "64M")
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 10M", img)
	run(t, "qemu-img", "bitmap", "--add", "-g", "64K", img, "since")
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 2 1M 64K", "-c", "write -P 3 30M 1M", "-c", "write -z 5M 64K", img)
	peer(t, socket, "qemu-nbd", "-f", "qcow2", "-r", "-t", "-B", "since", "-k", socket, img)
	const name = "qemu:dirty-bitmap:since"
	c := open(t, URI{Network: "unix", Address: socket}, ClientOptions{Contexts: []string{name}})
	var got []blockdev.Extent
	off := int64(0)
	for st, err := range c.Status(bg(), name, 0, c.Size()) {
		must(t, err)
		if st.Flags != 0 {
			got = append(got, blockdev.Extent{Off: off, Len: st.Len})
		}
		off += st.Len
	}
	want := []blockdev.Extent{{Off: 1 << 20, Len: 64 << 10}, {Off: 5 << 20, Len: 64 << 10}, {Off: 30 << 20, Len: 1 << 20}}
	if off != c.Size() || len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Fatalf("%v of %d bytes, want %v", got, off, want)
	}
}
