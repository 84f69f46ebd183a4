package crash

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"livemount/test/harness"
)

// writerMain is the process that writes to the disks of a mount until it is killed or the mount fails. It
// says "synced N" when an fsync has returned: the first N writes are acknowledged; and at its end "ended N
// WHY": N writes have returned. Arguments: seed, mode, paths of the disks. In mode full it tries again when
// there is no space.
func writerMain(args []string) int {
	seed, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil {
		return 2
	}
	w := &writer{full: args[1] == "full"}
	var sizes []int64
	for _, path := range args[2:] {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			fmt.Println("ended 0", err)
			return 1
		}
		end, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			fmt.Println("ended 0", err)
			return 1
		}
		w.files, sizes = append(w.files, f), append(sizes, end)
	}
	w.h = newHistory(seed, sizes)
	err = w.run()
	fmt.Println("ended", w.done, err)
	return 0
}

type writer struct {
	files  []*os.File
	h      *history
	full   bool
	noRoom bool // said already
	done   uint64
}

func (w *writer) run() error {
	syncs := rand.New(rand.NewPCG(w.h.seed, 2)) // not the history's: that must be the same without
	for {
		o := w.h.next()
		if err := w.try(func() error { return w.apply(o) }); err != nil {
			return err
		}
		w.done++
		if syncs.IntN(6) != 0 {
			continue
		}
		if err := w.try(func() error { return unix.Fdatasync(int(w.files[o.disk].Fd())) }); err != nil {
			return err
		}
		fmt.Println("synced", w.done)
	}
}

func (w *writer) apply(o op) error {
	f := w.files[o.disk]
	if o.punch {
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, o.off, o.n)
	}
	_, err := f.WriteAt(w.h.data(o), o.off)
	return err
}

// try repeats in mode full what found no space: doing it again changes nothing more.
func (w *writer) try(f func() error) error {
	for {
		err := f()
		if !w.full || !errors.Is(err, syscall.ENOSPC) {
			w.noRoom = false
			return err
		}
		if !w.noRoom {
			fmt.Println("nospace", w.done)
			w.noRoom = true
		}
	}
}

// writerProcess is a running writer, as the test sees it.
type writerProcess struct {
	cmd  *exec.Cmd
	done chan struct{}

	mu     sync.Mutex // guards what is below
	synced uint64
	ended  uint64
	why    string
	full   bool          // it met a full disk and has not written since
	event  chan struct{} // closed and made new at each line
}

func startWriter(t *testing.T, seed uint64, mode string, disks ...string) *writerProcess {
	t.Helper()
	args := append([]string{strconv.FormatUint(seed, 10), mode}, disks...)
	w := &writerProcess{cmd: harness.Child("writer", args...), done: make(chan struct{}), event: make(chan struct{})}
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	w.cmd.Stderr = os.Stderr
	out, err := w.cmd.StdoutPipe()
	if err == nil {
		err = w.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(w.done)
		for s := bufio.NewScanner(out); s.Scan(); {
			w.line(s.Text())
		}
		_ = w.cmd.Wait() // what it said before counts
	}()
	t.Cleanup(w.kill)
	return w
}

func (w *writerProcess) line(s string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	what, rest, _ := strings.Cut(s, " ")
	number, why, _ := strings.Cut(rest, " ")
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		w.why = "unreadable line " + s
		return
	}
	switch what {
	case "synced":
		w.synced, w.full = n, false
	case "nospace":
		w.full = true
	case "ended":
		w.ended, w.why = n, why
	}
	close(w.event)
	w.event = make(chan struct{})
}

func (w *writerProcess) kill() {
	_ = w.cmd.Process.Kill() // it is gone when this fails
	<-w.done
}

// state returns how many writes were acknowledged, whether the disk is full for it, and a channel that is
// closed when this changes.
func (w *writerProcess) state() (synced uint64, full bool, changed <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.synced, w.full, w.event
}

// until waits until the condition holds for what state returns.
func (w *writerProcess) until(t *testing.T, what string, cond func(synced uint64, full bool) bool) {
	t.Helper()
	for {
		synced, full, changed := w.state()
		if cond(synced, full) {
			return
		}
		select {
		case <-changed:
		case <-w.done:
			t.Fatalf("%s: the writer ended: %s", what, w.why)
		case <-t.Context().Done():
			t.Fatal(what)
		}
	}
}

// bounds returns how many writes must be there and how many can be. When the writer was killed itself, what
// it had written behind the last acknowledged is not known.
func (w *writerProcess) bounds() (least, most uint64) {
	<-w.done
	if w.why == "" {
		return w.synced, w.synced + 1_000_000
	}
	return w.synced, w.ended + 1
}
