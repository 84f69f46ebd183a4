package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cost is what a piece of work took. User and system time are those of the programs that did it; what the
// kernel did on behalf of others is not in it.
type cost struct {
	Wall, CPU time.Duration
	RSS       int64 // peak, bytes
}

// program is a command to be measured.
type program struct{ cmd *exec.Cmd }

func command(ctx context.Context, name string, args ...string) program {
	c := exec.CommandContext(ctx, name, args...)
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = 20 * time.Second
	return program{c}
}

func (p program) env(vars ...string) program {
	p.cmd.Env = append(os.Environ(), vars...)
	return p
}

func (p program) toStderr() error {
	p.cmd.Stdout, p.cmd.Stderr = os.Stderr, os.Stderr
	return p.cmd.Run()
}

// measure runs the program and says what it took.
func (p program) measure() (cost, error) {
	began := time.Now()
	out, err := p.cmd.CombinedOutput()
	if err != nil {
		return cost{}, fmt.Errorf("%s: %w\n%s", p.cmd, err, out)
	}
	return costOf(p.cmd.ProcessState, time.Since(began)), nil
}

func costOf(s *os.ProcessState, wall time.Duration) cost {
	c := cost{Wall: wall, CPU: s.UserTime() + s.SystemTime()}
	if u, ok := s.SysUsage().(*syscall.Rusage); ok {
		c.RSS = u.Maxrss << 10
	}
	return c
}

// background is a program that runs until it is stopped.
type background struct {
	cmd  *exec.Cmd
	done chan error
}

func (p program) start() (*background, error) {
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C reaches it through us, in order
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	r := &background{cmd: p.cmd, done: make(chan error, 1)}
	go func() { r.done <- p.cmd.Wait() }()
	return r, nil
}

// stop ends the program and waits for it.
func (r *background) stop() {
	r.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	r.wait()
}

// wait waits until the program has ended, and kills it when that takes long.
func (r *background) wait() {
	select {
	case <-r.done:
	case <-time.After(30 * time.Second):
		r.cmd.Process.Kill()
		<-r.done
	}
}

func (r *background) pid() int { return r.cmd.Process.Pid }

// cpu is the user and system time of a running process so far, all threads (proc(5), stat).
func cpu(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0, fmt.Errorf("stat of process %d: %q", pid, b)
	}
	user, err := strconv.ParseInt(f[11], 10, 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseInt(f[12], 10, 64)
	const perSecond = 100 // USER_HZ
	return time.Duration(user+system) * time.Second / perSecond, err
}

// busy is the time that all cores have worked so far, and that the hypervisor kept them waiting (proc(5), stat).
func busy() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	var user, nice, system, idle, iowait, irq, softirq, steal int64
	_, err = fmt.Sscanf(string(b), "cpu %d %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &iowait, &irq, &softirq, &steal)
	const perSecond = 100 // USER_HZ
	return time.Duration(user+nice+system+irq+softirq+steal) * time.Second / perSecond, err
}

// peak is the peak resident memory of a running process, in bytes.
func peak(pid int) (int64, error) { return memory(pid, "VmHWM:") }

// resident is the resident memory of a running process now, in bytes.
func resident(pid int) (int64, error) { return memory(pid, "VmRSS:") }

// memory reads a line of proc(5), status.
func memory(pid int, name string) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) == 3 && f[0] == name {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no %s", pid, name)
}

// dropCache makes everything be read from the disk again. It stands before each ingest, whoever does it.
func dropCache() error {
	syscall.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// allocated is the disk space that the files of a folder take, but for those whose base name is skipped.
func allocated(dir string, skip ...string) (int64, error) {
	var sum int64
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		for _, s := range skip {
			if info.Name() == s {
				return nil
			}
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() {
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum, err
}
