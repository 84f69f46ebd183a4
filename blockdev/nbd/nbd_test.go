package nbd

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"livemount/blockdev"
	"livemount/blockdev/blocktest"
	"livemount/internal/errs"
)

func bg() context.Context { return context.Background() }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// shelf is a set of exports.
type shelf map[string]*Export

func (s shelf) Open(_ context.Context, name string) (*Export, error) {
	e := s[name]
	if e == nil {
		return nil, errs.New(errs.NotFound, "no export %q", name)
	}
	c := *e
	return &c, nil
}

func (s shelf) List(context.Context) (list []Info, err error) {
	for name, e := range s {
		list = append(list, Info{Name: name, Description: e.Description})
	}
	return list, nil
}

// serve begins to serve on a unix socket.
func serve(t testing.TB, exports Exports, o ServerOptions) URI {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	must(t, err)
	ctx, cancel := context.WithCancel(bg())
	var wg sync.WaitGroup
	s := NewServer(exports, o)
	wg.Go(func() {
		if err := s.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return URI{Network: "unix", Address: path, Export: "disk"}
}

func open(t testing.TB, u URI, o ClientOptions) *Client {
	t.Helper()
	c, err := Open(bg(), u, o)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func TestClientAndServerAreADevice(t *testing.T) {
	for name, s := range map[string]ServerOptions{"default": {}, "one at a time": {MaxInFlight: 1, BufferBytes: 1}} {
		t.Run(name, func(t *testing.T) {
			const size = 5<<20 + 1234
			blocktest.TestDevice(t, func() blockdev.Device {
				return open(t, serve(t, shelf{"disk": {Disk: blockdev.NewMem(size)}}, s), ClientOptions{})
			}, size)
		})
	}
}

func TestReadOnlyExportTakesNothing(t *testing.T) {
	m := blockdev.NewMem(1 << 20)
	u := serve(t, shelf{"disk": {Disk: m, ReadOnly: true}}, ServerOptions{})
	c := open(t, u, ClientOptions{})
	if !c.ReadOnly() {
		t.Fatal("it is not read-only")
	}
	for i, err := range []error{c.WriteAt(bg(), []byte("x"), 0), c.WriteAt(bg(), make([]byte, 512<<10), 0), c.Zero(bg(), 0, 10)} {
		if err == nil {
			t.Errorf("change %d was taken", i)
		}
	}
	must(t, c.ReadAt(bg(), make([]byte, 10), 0))
	if _, err := Open(bg(), u, ClientOptions{Writable: true}); !errs.Is(err, errs.Denied) {
		t.Errorf("opened for writing: %v", err)
	}
}

func TestUnknownExportIsNotFound(t *testing.T) {
	u := serve(t, shelf{"disk": {Disk: blockdev.NewMem(1)}, "other": {Disk: blockdev.NewMem(2), Description: "second"}}, ServerOptions{})
	list, err := List(bg(), u, ClientOptions{})
	if err != nil || len(list) != 2 {
		t.Fatalf("%v: %v", list, err)
	}
	u.Export = "none"
	if _, err := Open(bg(), u, ClientOptions{}); !errs.Is(err, errs.NotFound) {
		t.Fatal(err)
	}
	u.Export = "disk"
	if _, err := Open(bg(), u, ClientOptions{Contexts: []string{"qemu:dirty-bitmap:x"}}); !errs.Is(err, errs.NotFound) {
		t.Fatal(err)
	}
}

// sick fails reads that touch one byte.
type sick struct {
	*blockdev.Mem
	at  int64
	err error
}

func (s *sick) ReadAt(ctx context.Context, p []byte, off int64) error {
	if off <= s.at && s.at < off+int64(len(p)) {
		return s.err
	}
	return s.Mem.ReadAt(ctx, p, off)
}

func (s *sick) Sync(context.Context) error { return s.err }

func TestErrorsOfTheDiskAreErrorsOfTheRequestAlone(t *testing.T) {
	d := &sick{blockdev.NewMem(8 << 20), 3 << 20, errs.New(errs.Corrupt, "rotten")}
	must(t, d.Mem.WriteAt(bg(), bytes.Repeat([]byte{7}, 8<<20), 0))
	c := open(t, serve(t, shelf{"disk": {Disk: d}}, ServerOptions{Log: slog.New(slog.DiscardHandler)}), ClientOptions{Connections: 1})
	for _, n := range []int64{4096, 100 << 10, 5 << 20} {
		if err := c.ReadAt(bg(), make([]byte, n), 3<<20-n/2); err == nil || errs.Is(err, errs.Unreachable) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	p := make([]byte, 1<<20)
	if err := c.ReadAt(bg(), p, 0); err != nil || p[100] != 7 {
		t.Error(err)
	}
	if c.Sync(bg()) == nil {
		t.Error("a flush that failed was acknowledged")
	}
	err := c.links[0].do(bg(), &call{request: request{cmd: cmdWrite, flags: reqFUA, length: 1}}, []byte{1})
	if err == nil {
		t.Error("a write with FUA was acknowledged, and is not on disk")
	}
}

func TestManyCallersShareTheConnections(t *testing.T) {
	m := blockdev.NewMem(16 << 20)
	c := open(t, serve(t, shelf{"disk": {Disk: m}}, ServerOptions{}), ClientOptions{Connections: 3})
	var wg sync.WaitGroup
	for w := range int64(16) {
		wg.Go(func() {
			p, got := bytes.Repeat([]byte{byte(w + 1)}, 300<<10), make([]byte, 300<<10)
			for i := range int64(20) {
				off := w<<20 + i*1000
				if err := errors.Join(c.WriteAt(bg(), p, off), c.ReadAt(bg(), got, off)); err != nil || !bytes.Equal(p, got) {
					t.Errorf("worker %d: %v", w, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestCancelEndsAWait(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	must(t, err)
	defer l.Close()
	ctx, cancel := context.WithCancel(bg())
	var wg sync.WaitGroup
	wg.Go(func() {
		raw, err := l.Accept()
		if err == nil {
			cancel() // and says nothing
			<-ctx.Done()
			raw.Close()
		}
	})
	if _, err := Open(ctx, URI{Network: "unix", Address: l.Addr().String()}, ClientOptions{}); err == nil {
		t.Error("opened a server that says nothing")
	}
	wg.Wait()
}

func TestURIs(t *testing.T) {
	for text, want := range map[string]URI{
		"nbd://host":                                    {Network: "tcp", Address: "host:10809", Hostname: "host"},
		"nbd://host:99/a/b@c":                           {Network: "tcp", Address: "host:99", Hostname: "host", Export: "a/b@c"},
		"nbd://[::1]:99/x":                              {Network: "tcp", Address: "[::1]:99", Hostname: "::1", Export: "x"},
		"nbd+unix:///x?socket=/run/a.sock":              {Network: "unix", Address: "/run/a.sock", Export: "x"},
		"nbds://h/x?tls-certificates=/pki":              {Network: "tcp", Address: "h:10809", Hostname: "h", TLS: true, Export: "x", Certificates: "/pki"},
		"nbds+unix:///?socket=/s&tls-hostname=some.com": {Network: "unix", Address: "/s", TLS: true, Hostname: "some.com"},
		"nbd+unix:////x?socket=relative":                {Network: "unix", Address: "relative", Export: "/x"},
	} {
		got, err := ParseURI(text)
		if err != nil || got != want {
			t.Errorf("%s is %+v, %v", text, got, err)
		}
		again, err := ParseURI(got.String())
		if err != nil || again != want {
			t.Errorf("%s became %s, which is %+v, %v", text, got, again, err)
		}
	}
	for _, text := range []string{"", "x", "http://h", "nbd://", "nbd+unix:///x", "nbd+unix://host/x?socket=/s", "nbd://h?tls-psk-file=/k", "nbd://h/%zz", "nbd://h:x/"} {
		if got, err := ParseURI(text); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q is %+v, %v", text, got, err)
		}
	}
}
