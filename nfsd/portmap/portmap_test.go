package portmap_test

import (
	"context"
	"net"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"livemount/internal/errs"
	"livemount/nfsd/oncrpc"
	"livemount/nfsd/portmap"
	"livemount/nfsd/xdr"
	"livemount/test/harness"
)

func nfs() []portmap.Mapping {
	return []portmap.Mapping{
		{Prog: 100003, Vers: 3, Proto: portmap.TCP, Port: 2049},
		{Prog: 100005, Vers: 3, Proto: portmap.TCP, Port: 20048},
		{Prog: 100005, Vers: 3, Proto: portmap.UDP, Port: 20048},
		{Prog: 100005, Vers: 1, Proto: portmap.UDP, Port: 20047},
	}
}

// serve serves programs over TCP and UDP on one port until the test ends.
func serve(t *testing.T, address string, programs ...oncrpc.Program) string {
	t.Helper()
	s, err := oncrpc.NewServer(oncrpc.Options{Programs: programs})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	where := l.Addr().(*net.TCPAddr)
	u, err := net.ListenUDP("udp", &net.UDPAddr{IP: where.IP, Port: where.Port})
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	for _, run := range []func() error{
		func() error { return s.ServeTCP(context.Background(), l) }, func() error { return s.ServeUDP(context.Background(), u) },
	} {
		served.Go(func() {
			if err := run(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		s.Close()
		served.Wait()
	})
	return where.String()
}

func dial(t *testing.T, network, address string) *oncrpc.Client {
	t.Helper()
	c, err := oncrpc.Dial(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func call(t *testing.T, c *oncrpc.Client, vers, proc uint32, args ...uint32) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	return c.Call(ctx, portmap.Number, vers, proc, oncrpc.Cred{}, words(args...))
}

func words(v ...uint32) []byte {
	var e xdr.Encoder
	for _, w := range v {
		e.Uint32(w)
	}
	return e.B
}

func TestPortsAreTold(t *testing.T) {
	address := serve(t, "127.0.0.1:0", portmap.Program(nfs()))
	for _, network := range []string{"tcp", "udp"} {
		c := dial(t, network, address)
		for _, x := range []struct{ prog, vers, proto, want uint32 }{
			{100003, 3, 6, 2049}, {100003, 4, 6, 2049}, {100003, 3, 17, 0}, {100005, 3, 17, 20048}, {100005, 1, 17, 20047}, {100005, 1, 6, 20048},
			{100021, 4, 6, 0}, {100003, 3, 1 << 30, 0},
		} {
			got, err := call(t, c, 2, 3, x.prog, x.vers, x.proto, 0)
			if err != nil || string(got) != string(words(x.want)) {
				t.Errorf("%s %v: %x, %v", network, x, got, err)
			}
		}
	}
	want := append(nfs(), portmap.Mapping{Prog: 100000, Vers: 2, Proto: portmap.TCP, Port: 111},
		portmap.Mapping{Prog: 100000, Vers: 2, Proto: portmap.UDP, Port: 111})
	if got, err := portmap.List(t.Context(), address); err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestNothingElseIsServed(t *testing.T) {
	address := serve(t, "127.0.0.1:0", portmap.Program(nfs()))
	c := dial(t, "tcp", address)
	for _, proc := range []uint32{1, 2} {
		if got, err := call(t, c, 2, proc, 100003, 3, 6, 9); err != nil || string(got) != string(words(0)) {
			t.Errorf("procedure %d: %x, %v", proc, got, err)
		}
	}
	for _, proc := range []uint32{5, 6} {
		if _, err := call(t, c, 2, proc, 100003, 3, 0, 0); !oncrpc.Failed(err, oncrpc.ProcUnavail) {
			t.Errorf("procedure %d: %v", proc, err)
		}
	}
	if _, err := call(t, c, 2, 3, 100003, 3); !oncrpc.Failed(err, oncrpc.GarbageArgs) {
		t.Errorf("short arguments: %v", err)
	}
	for _, vers := range []uint32{1, 3, 4} {
		if _, err := call(t, c, vers, 3, 100003, 3, 6, 0); !oncrpc.Failed(err, oncrpc.ProgMismatch) {
			t.Errorf("version %d: %v", vers, err)
		}
	}
}

// TestNobodyIsCalledForOthers sends CALLIT over UDP and then something else, whose answer is the only one.
func TestNobodyIsCalledForOthers(t *testing.T) {
	c := dial(t, "udp", serve(t, "127.0.0.1:0", portmap.Program(nfs())))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.Call(ctx, portmap.Number, 2, 5, oncrpc.Cred{}, words(100003, 3, 0, 0)); !errs.Is(err, errs.Unreachable) {
		t.Errorf("CALLIT: %v", err)
	}
	if _, err := call(t, c, 2, 0); err != nil {
		t.Error(err)
	}
}

// TestRefusalsOfRpcbindHaveKinds uses our own port mapper, which refuses SET.
func TestRefusalsOfRpcbindHaveKinds(t *testing.T) {
	needPorts(t)
	for _, x := range []struct {
		there []portmap.Mapping
		want  errs.Kind
	}{{nil, errs.Denied}, {[]portmap.Mapping{{Prog: 100003, Vers: 3, Proto: portmap.TCP, Port: 9}}, errs.Busy}} {
		address := serve(t, "127.0.0.1:0", portmap.Program(x.there))
		if err := portmap.Register(t.Context(), address, nfs()); !errs.Is(err, x.want) {
			t.Errorf("register: %v is not %s", err, x.want)
		}
	}
	address := serve(t, "127.0.0.1:0", portmap.Program(nfs()))
	if err := portmap.Unregister(t.Context(), address, nfs()); !errs.Is(err, errs.Denied) {
		t.Errorf("unregister: %v", err)
	}
	if err := portmap.Unregister(t.Context(), address, []portmap.Mapping{{Prog: 100003, Vers: 3, Proto: portmap.TCP, Port: 9}}); err != nil {
		t.Errorf("unregister what is another's: %v", err)
	}
	if err := portmap.Register(t.Context(), "127.0.0.1:1", nfs()); !errs.Is(err, errs.Unreachable) {
		t.Errorf("nobody there: %v", err)
	}
	if err := portmap.Register(t.Context(), serve(t, "127.0.0.1:0"), nfs()); !errs.Is(err, errs.NotFound) {
		t.Errorf("no port mapper: %v", err)
	}
}

func needPorts(t *testing.T) {
	t.Helper()
	harness.NeedRoot(t)
}

// apart moves the test into a network of its own, where port 111 is free. What the test's goroutine opens and
// starts from now on is there. Its thread ends with the test.
func apart(t *testing.T) {
	t.Helper()
	needPorts(t)
	harness.Tools(t, "ip iproute2", "rpcinfo rpcbind", "rpcbind rpcbind", "unshare util-linux", "mount mount")
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	harness.Run(t, "ip", "link", "set", "lo", "up")
}

// rpcinfo is what rpcinfo -p says of this network, a line for each mapping.
func rpcinfo(t *testing.T) []string {
	t.Helper()
	out := harness.Run(t, "rpcinfo", "-p", "127.0.0.1")
	spaces := regexp.MustCompile(` +`)
	var list []string
	for line := range strings.Lines(out) {
		f := strings.Fields(spaces.ReplaceAllString(line, " "))
		if len(f) >= 4 && f[0] != "program" {
			list = append(list, strings.Join(f[:4], " "))
		}
	}
	slices.Sort(list)
	return list
}

func lines() []string {
	return []string{"100003 3 tcp 2049", "100005 1 udp 20047", "100005 3 tcp 20048", "100005 3 udp 20048"}
}

func TestRpcinfoReadsOurList(t *testing.T) {
	apart(t)
	serve(t, portmap.Local, portmap.Program(nfs()))
	want := append([]string{"100000 2 tcp 111", "100000 2 udp 111"}, lines()...)
	if got := rpcinfo(t); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// rpcbind runs Debian's in this network until the test ends. Its files are in a /run of its own; it lets go of the FUSE
// mounts of other tests, which it would keep busy.
func rpcbind(t *testing.T) {
	t.Helper()
	c := exec.Command("unshare", "-m", "sh", "-c", "umount -a -l -t fuse.livemount; mount -t tmpfs tmpfs /run && exec rpcbind -f")
	var said strings.Builder
	c.Stdout, c.Stderr = &said, &said
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
		if t.Failed() {
			t.Logf("rpcbind: %s", &said)
		}
	})
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, err := portmap.List(t.Context(), portmap.Local)
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func TestRpcbindTakesOurList(t *testing.T) {
	apart(t)
	if err := portmap.Register(t.Context(), portmap.Local, nfs()); !errs.Is(err, errs.Unreachable) {
		t.Errorf("before rpcbind is there: %v", err)
	}
	rpcbind(t)
	own := rpcinfo(t)
	old := nfs()
	old[0].Port = 9999
	for _, list := range [][]portmap.Mapping{old, nfs(), nfs()} { // what a killed server left is replaced
		if err := portmap.Register(t.Context(), portmap.Local, list); err != nil {
			t.Fatal(err)
		}
	}
	want := slices.Concat(own, lines())
	slices.Sort(want)
	if got := rpcinfo(t); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := portmap.Unregister(t.Context(), portmap.Local, nfs()); err != nil {
		t.Error(err)
	}
	if got := rpcinfo(t); !slices.Equal(got, own) {
		t.Errorf("after Unregister %q, want %q", got, own)
	}
}

// TestNobodyElseReplacesOurs has a client without a privileged port, as any user of the machine has.
func TestNobodyElseReplacesOurs(t *testing.T) {
	apart(t)
	rpcbind(t)
	if err := portmap.Register(t.Context(), portmap.Local, nfs()); err != nil {
		t.Fatal(err)
	}
	ours := rpcinfo(t)
	c := dial(t, "tcp", portmap.Local)
	for _, proc := range []uint32{2, 1} {
		if _, err := call(t, c, 2, proc, 100003, 3, 6, 9999); err != nil { // what it answers depends on its version
			t.Errorf("procedure %d: %v", proc, err)
		}
	}
	if got := rpcinfo(t); !slices.Equal(got, ours) {
		t.Errorf("got %q, want %q", got, ours)
	}
}
