package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"livemount/server/api"
	"livemount/test/harness"
)

// machine is a QEMU without a guest, whose disks are written through its monitor.
type machine struct {
	t     *testing.T
	dir   string
	cmd   *exec.Cmd
	disks []string // file names
	size  int64

	mu     sync.Mutex // guards the fields below, and the second monitor
	conn   net.Conn
	in     *bufio.Reader
	writes []guestWrite
}

// guestWrite is the n-th write: its pattern is its number's low byte, and its number is its place in the list.
type guestWrite struct {
	disk    int
	off, n  int64
	pattern byte
}

func (m *machine) socket(name string) string { return filepath.Join(m.dir, name) }

func newMachine(t *testing.T, size int64) *machine {
	t.Helper()
	harness.Tools(t, "qemu-system-x86_64 qemu-system-x86", "qemu-img qemu-utils")
	m := &machine{t: t, dir: harness.Dir(t), size: size}
	for i, format := range []string{"qcow2", "raw"} {
		name := filepath.Join(m.dir, fmt.Sprintf("disk%d.%s", i, format))
		harness.Run(t, "qemu-img", "create", "-q", "-f", format, name, fmt.Sprint(size))
		m.disks = append(m.disks, name)
	}
	t.Cleanup(func() { m.stop(true) })
	m.start()
	return m
}

func (m *machine) start() {
	m.t.Helper()
	args := []string{"-S", "-display", "none", "-nodefaults", "-machine", "q35,accel=tcg", "-m", "32"}
	for i, name := range m.disks {
		args = append(args, "-drive", fmt.Sprintf("file=%s,format=%s,if=none,id=d%d", name, strings.TrimPrefix(filepath.Ext(name), "."), i), "-device", fmt.Sprintf("virtio-blk,drive=d%d", i))
	}
	for _, s := range []string{"qmp", "test"} {
		args = append(args, "-qmp", "unix:"+m.socket(s)+",server=on,wait=off")
	}
	m.cmd = exec.Command("qemu-system-x86_64", args...)
	m.cmd.Stderr = os.Stderr
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	harness.Poll(m.t, "QEMU's monitor", func() bool {
		conn, err := net.Dial("unix", m.socket("test"))
		m.conn = conn
		return err == nil
	})
	m.in = bufio.NewReader(m.conn)
	m.readLine()
	m.command(`{"execute":"qmp_capabilities"}`)
}

// stop ends QEMU, as a guest that powers off or as a crash.
func (m *machine) stop(kill bool) {
	if m.cmd == nil {
		return
	}
	m.conn.Close()
	if kill {
		_ = m.cmd.Process.Kill() // it is gone when this fails
	} else {
		_ = m.cmd.Process.Signal(os.Interrupt) // likewise
	}
	_ = m.cmd.Wait() // it says how it ended
	m.cmd = nil
	for _, s := range []string{"qmp", "test"} {
		_ = os.Remove(m.socket(s)) // so that the next start is waited for
	}
}

func (m *machine) readLine() []byte {
	b, err := m.in.ReadBytes('\n')
	if err != nil {
		m.t.Error(err)
	}
	return b
}

func (m *machine) command(text string) {
	if _, err := m.conn.Write([]byte(text + "\n")); err != nil {
		m.t.Error(err)
		return
	}
	for {
		var answer struct{ Return, Error json.RawMessage }
		if err := json.Unmarshal(m.readLine(), &answer); err != nil || answer.Error != nil {
			m.t.Errorf("%s: %s %v", text, answer.Error, err)
			return
		}
		if answer.Return != nil {
			if strings.Contains(string(answer.Return), "error") || strings.Contains(string(answer.Return), "fail") {
				m.t.Errorf("%s: the guest sees %s", text, answer.Return)
			}
			return
		}
	}
}

// bitmap is the name of ours on a disk. The caller holds mu.
func (m *machine) bitmap(disk int) string {
	if _, err := m.conn.Write([]byte(`{"execute":"query-block"}` + "\n")); err != nil {
		m.t.Fatal(err)
	}
	for {
		var answer struct {
			Return []struct {
				Device   string
				Inserted struct {
					Bitmaps []struct{ Name string } `json:"dirty-bitmaps"`
				}
			}
		}
		if err := json.Unmarshal(m.readLine(), &answer); err != nil {
			m.t.Fatal(err)
		}
		for _, b := range answer.Return {
			if b.Device == fmt.Sprint("d", disk) && len(b.Inserted.Bitmaps) > 0 {
				return b.Inserted.Bitmaps[0].Name
			}
		}
	}
}

// write is a write of the guest.
func (m *machine) write(rng *rand.Rand) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := guestWrite{disk: rng.IntN(2), off: rng.Int64N(m.size/4096-16) * 4096, n: (1 + rng.Int64N(15)) * 4096, pattern: byte(1 + rng.IntN(255))}
	m.command(fmt.Sprintf(`{"execute":"human-monitor-command","arguments":{"command-line":"qemu-io d%d \"write -q -P %d %d %d\""}}`, w.disk, w.pattern, w.off, w.n))
	m.writes = append(m.writes, w)
}

// fill writes all of both disks.
func (m *machine) fill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.disks {
		w := guestWrite{disk: i, n: m.size, pattern: byte(77 + i)}
		m.command(fmt.Sprintf(`{"execute":"human-monitor-command","arguments":{"command-line":"qemu-io d%d \"write -q -P %d 0 %d\""}}`, w.disk, w.pattern, w.n))
		m.writes = append(m.writes, w)
	}
}

func (m *machine) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.writes)
}

// states calls f with what the disks were after each of the writes from first to last.
func (m *machine) states(first, last int, f func(n int, disks [2][]byte) bool) {
	disks := [2][]byte{make([]byte, m.size), make([]byte, m.size)}
	m.mu.Lock()
	defer m.mu.Unlock()
	for n := 0; n <= last; n++ {
		if n >= first && f(n, disks) {
			return
		}
		if n < len(m.writes) {
			w := m.writes[n]
			copy(disks[w.disk][w.off:], bytes.Repeat([]byte{w.pattern}, int(w.n)))
		}
	}
}

// backup takes the machine in, and proves that the point is what the disks were at one moment of it.
func (m *machine) backup(d *harness.Daemon, more ...string) api.Backup {
	m.t.Helper()
	first := m.count()
	var b api.Backup
	d.Must(&b, append([]string{"backup", "vm", "--qmp", m.socket("qmp")}, more...)...)
	m.check(d, b.Point, first, m.count())
	return b
}

func (m *machine) check(d *harness.Daemon, point string, first, last int) {
	m.t.Helper()
	var got [2][]byte
	for i := range got {
		file := filepath.Join(m.dir, "got")
		d.Must(nil, "export", "vm@id:"+point, "--disk", fmt.Sprintf("d%d", i), "-o", file, "--force")
		b, err := os.ReadFile(file)
		if err != nil {
			m.t.Fatal(err)
		}
		got[i] = b
	}
	found := -1
	m.states(first, last, func(n int, disks [2][]byte) bool {
		if bytes.Equal(disks[0], got[0]) && bytes.Equal(disks[1], got[1]) {
			found = n
		}
		return found >= 0
	})
	if found < 0 {
		m.t.Fatalf("point %s is the disks of no moment between write %d and %d", point, first, last)
	}
}

func modes(b api.Backup) string {
	var list []string
	for _, d := range b.Disks {
		list = append(list, d.Mode)
	}
	return strings.Join(list, " ")
}

// TestRunningQEMU: a machine that writes all the time is backed up, and each point is its disks at one moment, whatever is killed.
func TestRunningQEMU(t *testing.T) {
	seed := harness.Seed(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	d, _ := started(t)
	m := newMachine(t, 16<<20)
	for range 100 {
		m.write(rng)
	}
	stop := writing(m, seed)
	if b := m.backup(d); modes(b) != "full full" {
		t.Fatalf("%+v", b)
	}
	for range harness.Soak(20, 200) {
		if b := m.backup(d); modes(b) != "list list" || len(b.Notes) > 0 {
			t.Fatalf("%+v", b)
		}
	}
	stop()
	if b := m.backup(d); b.Disks[0].ReadBytes > 16<<20 {
		t.Fatalf("%+v", b)
	}
	if b := m.backup(d); b.Disks[0].ReadBytes+b.Disks[1].ReadBytes > 0 { // nothing was written since
		t.Fatalf("%+v", b)
	}

	t.Log("killed in the middle: the next backup has what it needs, and nothing is left")
	stop = writing(m, seed+1)
	for range harness.Soak(5, 50) {
		cmd := d.Command("backup", "vm", "--qmp", m.socket("qmp"))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		anywhere := time.NewTimer(time.Duration(rng.IntN(60)) * time.Millisecond)
		<-anywhere.C
		d.Kill()
		_ = cmd.Wait() // it says that the daemon is gone
		d.Start()
		if b := m.backup(d); modes(b) != "list list" {
			t.Fatalf("%+v", b)
		}
	}
	stop()
	left, err := filepath.Glob(filepath.Join(m.dir, "livemount-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}

	t.Log("powered off: the bitmap of the qcow2 is there, that of the raw file is not")
	m.stop(false)
	m.start()
	m.write(rng)
	if b := m.backup(d); modes(b) != "list compare" || len(b.Notes) != 1 || !strings.Contains(b.Notes[0], "d1 was compared") {
		t.Fatalf("%+v", b)
	}
	m.stop(true)
	m.start()
	if b := m.backup(d); modes(b) != "compare compare" || len(b.Notes) != 2 {
		t.Fatalf("after a crash: %+v", b)
	}
	if b := m.backup(d); modes(b) != "list list" {
		t.Fatalf("%+v", b)
	}

	t.Log("a bitmap that stopped without a successor is of no use")
	m.mu.Lock()
	m.command(`{"execute":"human-monitor-command","arguments":{"command-line":"info version"}}`)
	name := m.bitmap(0)
	m.command(`{"execute":"block-dirty-bitmap-disable","arguments":{"node":"d0","name":"` + name + `"}}`)
	m.mu.Unlock()
	m.write(rng)
	if b := m.backup(d); !strings.HasPrefix(modes(b), "compare ") {
		t.Fatalf("%+v", b)
	}
}

// TestQEMUDisksThatChangePlaces: a bitmap is that of its disk, whatever the disk is called.
func TestQEMUDisksThatChangePlaces(t *testing.T) {
	d, _ := started(t)
	m := newMachine(t, 4<<20)
	second := filepath.Join(m.dir, "disk1.qcow2")
	harness.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", second, fmt.Sprint(m.size))
	m.stop(false)
	m.disks[1] = second
	m.start()
	m.fill()
	m.backup(d)
	m.stop(false)
	m.disks[0], m.disks[1] = m.disks[1], m.disks[0]
	m.start()
	m.writes[0].pattern, m.writes[1].pattern = m.writes[1].pattern, m.writes[0].pattern
	if b := m.backup(d); modes(b) != "compare compare" {
		t.Fatalf("%+v", b)
	}
}

// writing lets the guest write until stop is called.
func writing(m *machine, seed uint64) (stop func()) {
	done, quit := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		rng := rand.New(rand.NewPCG(seed, 9))
		for {
			select {
			case <-quit:
				return
			default:
				m.write(rng)
			}
		}
	}()
	return func() { close(quit); <-done }
}

// TestQEMUScratchFull: when there is too little room for what the guest overwrites there is no point, and the guest notices
// nothing.
func TestQEMUScratchFull(t *testing.T) {
	d, _ := started(t)
	m := newMachine(t, 128<<20)
	m.fill()
	m.backup(d)
	small := harness.Dir(t)
	harness.Run(t, "mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", small)
	r := d.Ctl("backup", "vm", "--qmp", m.socket("qmp"), "--scratch-dir", small)
	harness.Run(t, "umount", small)
	if r.Code != 15 || !strings.Contains(r.Err, "Try: --scratch-dir") {
		t.Fatalf("%+v", r)
	}

	harness.Run(t, "mount", "-t", "tmpfs", "-o", "size=360m", "tmpfs", small)
	t.Cleanup(func() { harness.Run(t, "umount", small) })
	stop := writing(m, 5)
	failed := 0
	for range 5 {
		var r harness.Result
		var backup sync.WaitGroup
		backup.Go(func() {
			r = d.Ctl("backup", "vm", "--qmp", m.socket("qmp"), "--full", "--scratch-dir", small)
		})
		harness.Poll(t, "a scratch file", func() bool {
			names, err := filepath.Glob(filepath.Join(small, "livemount-scratch-1.qcow2"))
			return err != nil || len(names) > 0
		})
		fill := filepath.Join(small, "fill") // somebody else takes the room
		harness.Run(t, "fallocate", "-l", "250M", fill)
		backup.Wait()
		if err := os.Remove(fill); err != nil {
			t.Fatal(err)
		}
		switch {
		case r.Code == 15 && strings.Contains(r.Err, "given up before writes of the guest fail"):
			failed++
		case r.Code != 0 && r.Code != 15:
			t.Fatalf("%+v", r)
		}
	}
	stop()
	if failed == 0 {
		t.Error("no backup was given up: nothing was tested")
	}
	if b := m.backup(d); modes(b) != "list list" {
		t.Fatalf("%+v", b)
	}
}

// lyingQMP stands between a client and QEMU, and answers the n-th command itself, with an error.
func lyingQMP(t *testing.T, m *machine, path string) (set func(n int), count func() int) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	at, seen := 0, 0
	var conns sync.WaitGroup
	t.Cleanup(func() { l.Close(); conns.Wait() })
	conns.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer client.Close()
				qemu, err := net.Dial("unix", m.socket("qmp"))
				if err != nil {
					return
				}
				defer qemu.Close()
				go func() { _, _ = io.Copy(client, qemu); client.Close() }()
				in := bufio.NewReader(client)
				for {
					line, err := in.ReadBytes('\n')
					if err != nil {
						return
					}
					mu.Lock()
					seen++
					lie := seen == at
					mu.Unlock()
					if !lie {
						_, err = qemu.Write(line)
					} else {
						var c struct{ ID string }
						_ = json.Unmarshal(line, &c) // it is ours
						_, err = fmt.Fprintf(client, `{"id":%q,"error":{"class":"GenericError","desc":"injected"}}`+"\n", c.ID)
					}
					if err != nil {
						return
					}
				}
			})
		}
	})
	return func(n int) {
			mu.Lock()
			defer mu.Unlock()
			at, seen = n, 0
		}, func() int {
			mu.Lock()
			defer mu.Unlock()
			return seen
		}
}

// TestQMPThatAnswersWithErrors: whichever command of a backup QEMU refuses, there is no point or a right one, and the next backup
// is complete.
func TestQMPThatAnswersWithErrors(t *testing.T) {
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	d, _ := started(t)
	m := newMachine(t, 4<<20)
	m.write(rng)
	m.backup(d)
	path := filepath.Join(m.dir, "liar")
	set, count := lyingQMP(t, m, path)
	set(0)
	d.Must(nil, "backup", "vm", "--qmp", path)
	commands := count()
	failed := 0
	for n := 1; n <= commands+3; n++ {
		before := m.count()
		m.write(rng)
		set(n)
		r := d.Ctl("backup", "vm", "--qmp", path)
		if r.Code == 13 || r.Code == 1 && !strings.Contains(r.Err, "injected") {
			t.Fatalf("command %d: %+v", n, r)
		}
		if r.Code != 0 {
			failed++
		} else {
			pts := d.Points("vm")
			m.check(d, pts[len(pts)-1].Point, before+1, m.count())
		}
		m.write(rng)
		m.backup(d)
	}
	t.Logf("%d commands, %d backups failed", commands, failed)
	if b := m.backup(d); modes(b) != "list list" || b.Disks[0].ReadBytes+b.Disks[1].ReadBytes > 0 {
		t.Fatalf("%+v", b)
	}
	left, err := filepath.Glob(filepath.Join(m.dir, "livemount-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}
