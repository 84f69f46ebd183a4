package cli

import (
	"io"
	"net"
	"os"
	"strconv"
	"sync/atomic"

	"github.com/rogpeppe/go-internal/testscript"
)

// relay stands between mountctl and livemountd, at unix:relay.sock, until so many bytes of answers have come
// through. Then it cuts all connections and goes on; or is gone, with its socket; or hangs for good:
// relay BYTES cut|gone|hang
func startRelay(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.ParseInt(args[0], 0, 64)
	ts.Check(err)
	path := ts.MkAbs("relay.sock")
	os.Remove(path)
	l, err := net.Listen("unix", path)
	ts.Check(err)
	r := &relay{to: ts.MkAbs("store/livemountd.sock"), mode: args[1], l: l, over: make(chan struct{})}
	r.left.Store(n)
	ts.Defer(func() { l.Close() })
	go r.serve()
}

type relay struct {
	to, mode string
	l        net.Listener
	left     atomic.Int64
	over     chan struct{} // never closed: who hangs waits for it
}

func (r *relay) serve() {
	for {
		c, err := r.l.Accept()
		if err != nil {
			return
		}
		go r.pass(c)
	}
}

func (r *relay) pass(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("unix", r.to)
	if err != nil {
		return
	}
	defer server.Close()
	go io.Copy(server, client)
	b := make([]byte, 64<<10)
	for {
		n, err := server.Read(b)
		left := r.left.Add(-int64(n))
		if left < 0 && left+int64(n) >= 0 { // now, and only once
			client.Write(b[:left+int64(n)])
			r.stop()
			return
		}
		if _, werr := client.Write(b[:n]); err != nil || werr != nil {
			return
		}
	}
}

func (r *relay) stop() {
	switch r.mode {
	case "hang":
		<-r.over
	case "gone":
		r.l.Close()
	}
}
