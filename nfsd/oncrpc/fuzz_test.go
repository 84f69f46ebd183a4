package oncrpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

func seeds(f *testing.F, wrap func([]byte) []byte) {
	sys := Sys("esx1", 1, 2, 3, 4)
	for _, m := range [][]byte{
		message(1, procNull), message(2, procEcho, 1, 2, 3, 4), message(3, procRead, words(5000)...), message(4, procPanicIn),
		message(5, procDrop), message(6, procDeny), appendCall(nil, 7, testProgram, 2, procWho, &sys, nil), appendCall(nil, 8, 1, 2, 3, &sys, nil),
		appendCall(nil, 9, testProgram, 9, 0, &sys, nil), words(10, 0, 3), words(11, 1, 0, 0, 0, 0), words(12, 0, 2, 5, 5, 5, 6, 0, 0, 0), {},
	} {
		f.Add(wrap(m))
	}
}

func FuzzCallHeader(f *testing.F) {
	seeds(f, func(m []byte) []byte { return m })
	s, err := NewServer(Options{Programs: []Program{{Number: testProgram, Low: testLow, High: testHigh}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, m []byte) {
		request := s.buffers.small()
		request.b = append(request.b, m...)
		c := s.newCall(nil, request)
		status, inline, ok := s.begin(c)
		if ok && (c.Args.Len() > len(m) || len(c.Cred.Groups()) > 16 || len(c.Cred.Machine) > 255 || !inline && status != Success) {
			t.Errorf("%s of %d bytes: %v", status, len(m), c.Cred)
		}
		if !ok {
			return
		}
		c.seal(status)
		xid, a, reply := decodeReply(c.Out.B[markBytes:])
		if !reply || xid != c.XID || (a.err == nil) != (status == Success) || status != Success && !Failed(a.err, status) {
			t.Errorf("%s became %x: %v", status, c.Out.B, a.err)
		}
	})
}

func FuzzReply(f *testing.F) {
	for _, m := range [][]byte{
		words(1, 1, 0, 0, 0, 0, 5), words(1, 1, 0, 0, 0, 2, 3, 4), words(1, 1, 1, 0, 2, 2), words(1, 1, 1, 1, 5), words(1, 1, 0, 0, 0, 99), words(1, 0), {},
	} {
		f.Add(m)
	}
	f.Fuzz(func(t *testing.T, m []byte) {
		if _, a, ok := decodeReply(m); ok && a.err == nil && len(a.results) > len(m) {
			t.Error("results are longer than the message")
		}
		for in := bytes.NewReader(m); ; {
			if _, err := readReply(in); err != nil {
				break
			}
		}
	})
}

// FuzzStream sends bytes to a connection, ends it and reads what comes back: replies and no part of one.
func FuzzStream(f *testing.F) {
	seeds(f, record)
	whole := record(message(1, procNull))
	f.Add(bytes.Repeat(whole, 50))
	f.Add(append(words(0, 3), whole...))
	f.Add(append(words(4, 99, 36), whole[8:]...))
	f.Add(append(words(markLast|5000), make([]byte, 5000)...))
	f.Add(words(markLast|(1<<20), 1, 0, 2))
	f.Add(append(record(message(1, procRead, words(200000)...)), record(message(2, procTwice))...))
	r := newRig(f, Options{})
	close(r.gate)
	// A socket file has the half-close of TCP and leaves no ports behind.
	l, err := net.Listen("unix", filepath.Join(f.TempDir(), "s"))
	if err != nil {
		f.Fatal(err)
	}
	r.run(f, func() error { return r.ServeTCP(context.Background(), l) })
	f.Fuzz(func(t *testing.T, b []byte) {
		raw, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		raw.SetDeadline(time.Now().Add(patience))
		var sender sync.WaitGroup
		defer sender.Wait()
		sender.Go(func() {
			raw.Write(b)
			raw.(*net.UnixConn).CloseWrite()
		})
		checkReplies(t, raw)
	})
}

func checkReplies(t *testing.T, in io.Reader) {
	t.Helper()
	for {
		m, err := readReply(in)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			t.Fatal("the connection hangs")
		case errors.Is(err, io.ErrUnexpectedEOF):
			t.Fatal("a reply is cut")
		case err != nil: // the end, or a reset because the server left bytes unread
			return
		}
		if _, _, ok := decodeReply(m); !ok {
			t.Fatalf("no reply: %x", m)
		}
	}
}
