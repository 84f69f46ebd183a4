package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// startDaemon starts livemountd and waits until it answers: daemon [ARG…]
func startDaemon(ts *testscript.TestScript, neg bool, args []string) {
	d := ts.Value(daemonKey{}).(*daemonOf)
	if neg || d.cmd != nil {
		ts.Fatalf("a daemon runs already")
	}
	if len(args) == 0 {
		args = []string{"--data", ts.MkAbs("store")}
	}
	log, err := os.OpenFile(ts.MkAbs("daemon.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	ts.Check(err)
	defer log.Close()
	d.cmd = exec.Command(filepath.Join(os.Getenv(binEnv), "livemountd"), args...)
	d.cmd.Dir, d.cmd.Stderr = ts.MkAbs("."), log
	d.cmd.Env = append(os.Environ(), "TZ=UTC")
	// When the test itself is killed, the daemon stops and unmounts.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	ts.Check(d.cmd.Start())
	for range 200 {
		c := exec.Command(filepath.Join(os.Getenv(binEnv), "mountctl"), "status")
		c.Env = append(os.Environ(), "LIVEMOUNT_SERVER="+ts.Getenv("LIVEMOUNT_SERVER"))
		if c.Run() == nil {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	ts.Fatalf("livemountd did not start:\n%s", ts.ReadFile("daemon.log"))
}

// stopDaemon ends livemountd with SIGTERM, or with kill -9: end [-9]. (testscript has a stop of its own, which ends the script.)
func stopDaemon(ts *testscript.TestScript, neg bool, args []string) {
	sig := syscall.SIGTERM
	if len(args) == 1 && args[0] == "-9" {
		sig = syscall.SIGKILL
	}
	if err := ts.Value(daemonKey{}).(*daemonOf).stop(sig); (err != nil) != neg {
		ts.Fatalf("livemountd ended: %v", err)
	}
}

// makeDisk makes a disk of 8 MiB whose first bytes are random, the same for the same seed: disk FILE SEED
func makeDisk(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), nil, 0o600))
	ts.Check(os.Truncate(ts.MkAbs(args[0]), 8<<20))
	writeAt(ts, args[0], 0, 1<<20, args[1])
}

// writeDisk overwrites a part of a disk, durably: write FILE OFFSET LENGTH SEED
func writeDisk(ts *testscript.TestScript, _ bool, args []string) {
	off, err := strconv.ParseInt(args[1], 0, 64)
	ts.Check(err)
	n, err := strconv.Atoi(args[2])
	ts.Check(err)
	writeAt(ts, args[0], off, n, args[3])
}

func writeAt(ts *testscript.TestScript, name string, off int64, n int, seed string) {
	f, err := os.OpenFile(ts.MkAbs(name), os.O_WRONLY, 0)
	ts.Check(err)
	defer f.Close()
	var key [32]byte
	copy(key[:], seed)
	b := make([]byte, n)
	rand.NewChaCha8(key).Read(b)
	_, err = f.WriteAt(b, off)
	ts.Check(err)
	ts.Check(f.Sync())
}

// makeHole makes a sparse file: holes FILE BYTES
func makeHole(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.ParseInt(args[1], 0, 64)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), nil, 0o600))
	ts.Check(os.Truncate(ts.MkAbs(args[0]), n))
}

// makeExtents writes a list of that many extents: extents FILE COUNT
func makeExtents(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, `%c{"offset":%d,"length":1}`, "[,"[min(i, 1)], 2*i)
	}
	b.WriteByte(']')
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b.Bytes(), 0o600))
}

// fails runs a program that must fail, and compares all that it says:
// fails CODE MESSAGE ADVICE PROGRAM ARG… An advice of - means that there is none.
func fails(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 4 {
		ts.Fatalf("usage: fails CODE MESSAGE ADVICE PROGRAM ARG…")
	}
	err := ts.Exec(args[3], args[4:]...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		ts.Fatalf("it did not fail: %v", err)
	}
	if got := strconv.Itoa(exit.ExitCode()); got != args[0] {
		ts.Fatalf("exit code %s, not %s: %s", got, args[0], ts.ReadFile("stderr"))
	}
	want := filepath.Base(args[3]) + ": " + args[1] + "\n"
	if args[2] != "-" {
		want += "Try: " + args[2] + "\n"
	}
	if got := plain(ts, ts.ReadFile("stderr")); got != want {
		ts.Fatalf("it says:\n%swant:\n%s", got, want)
	}
	if out := ts.ReadFile("stdout"); out != "" && !strings.Contains(strings.Join(args, " "), "json") {
		ts.Fatalf("standard output is not empty: %s", out)
	}
}

// plain replaces what differs from run to run.
func plain(ts *testscript.TestScript, s string) string {
	s = strings.ReplaceAll(s, ts.Getenv("WORK"), "WORK")
	s = regexp.MustCompile(`\b[0-9a-f]{16}\b`).ReplaceAllString(s, "ID")
	return regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`).ReplaceAllString(s, "TIME")
}

// get sets a variable to what a regular expression finds in standard output: get NAME REGEXP
func get(ts *testscript.TestScript, _ bool, args []string) {
	m := regexp.MustCompile(args[1]).FindStringSubmatch(ts.ReadFile("stdout"))
	if m == nil {
		ts.Fatalf("nothing matches %s", args[1])
	}
	ts.Setenv(args[0], m[1])
}

// ambiguous sets a variable to a digit that two ids of points in standard output begin with.
func ambiguous(ts *testscript.TestScript, _ bool, args []string) {
	seen := map[string]bool{}
	for _, m := range regexp.MustCompile(`"point": "([0-9a-f])`).FindAllStringSubmatch(ts.ReadFile("stdout"), -1) {
		if seen[m[1]] {
			ts.Setenv(args[0], m[1])
			return
		}
		seen[m[1]] = true
	}
	ts.Fatalf("no two ids begin alike")
}

// normalize writes the JSON in standard output to a file, with placeholders for ids (numbered, so that
// equal ones stay equal), times, durations and what depends on the machine: json FILE
func normalize(ts *testscript.TestScript, _ bool, args []string) {
	var v any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &v))
	n := &normalizer{work: ts.Getenv("WORK"), nfsPort: ts.Getenv("NFSPORT"), ids: map[string]string{}}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	ts.Check(e.Encode(n.value("", v)))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b.Bytes(), 0o600))
}

type normalizer struct {
	work    string
	nfsPort string
	ids     map[string]string
}

func (n *normalizer) value(key string, v any) any {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range order(v) {
			v[k] = n.value(k, v[k])
		}
		return v
	case []any:
		for i := range v {
			v[i] = n.value(key, v[i])
		}
		return v
	case string:
		return n.text(v)
	case float64:
		switch {
		case strings.Contains(key, "second"):
			return "SECONDS"
		case key == "port" || key == "mount_port":
			return "PORT"
		case key == "free_bytes" || key == "stored_bytes" || key == "written_bytes" || key == "metadata_bytes" || key == "overlay_bytes" || key == "fetched_bytes" || key == "ratio",
			key == "freed_bytes" || key == "live_bytes" || key == "dead_bytes" || key == "due_bytes" || key == "bytes" || key == "pointers" || key == "chunks":
			return "N"
		}
	}
	return v
}

// order returns the keys as the output has them, sorted, so that ids are numbered the same each time.
func order(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (n *normalizer) text(s string) string {
	if _, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return "TIME"
	}
	if regexp.MustCompile(`^([0-9a-f]{16}|[0-9a-f]{32}|[0-9a-f]{64})$`).MatchString(s) {
		if n.ids[s] == "" {
			n.ids[s] = fmt.Sprintf("ID%d", len(n.ids)+1)
		}
		return n.ids[s]
	}
	s = regexp.MustCompile(`(@id:)[0-9a-f]{16}\b`).ReplaceAllString(s, "${1}ID")
	s = regexp.MustCompile(`(/web-)[0-9a-f]{8}\b`).ReplaceAllString(s, "${1}ID")
	return strings.NewReplacer(n.work, "WORK", "port="+n.nfsPort, "port=PORT").Replace(s)
}
