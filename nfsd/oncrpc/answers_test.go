package oncrpc

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"livemount/internal/errs"
)

func TestCallsAreAnsweredOverTCPAndUDP(t *testing.T) {
	noLeak(t)
	r := newRig(t, Options{})
	where := map[string]string{"tcp": r.tcp(t), "udp": r.udp(t, "udp", "127.0.0.1:0").String()}
	for network, address := range where {
		c := dial(t, network, address)
		for _, n := range []int{0, 4, 4000, 4096, 5000, 60000} {
			args := bytes.Repeat([]byte{7}, n)
			got, err := c.Call(t.Context(), testProgram, testLow, procEcho, Cred{}, args)
			if err != nil || !bytes.Equal(got, args) {
				t.Errorf("%s, %d bytes: got %d, %v", network, n, len(got), err)
			}
		}
		if got, err := c.Call(t.Context(), testProgram, testLow, procNull, Cred{}, nil); err != nil || len(got) != 0 {
			t.Errorf("%s: null: %x, %v", network, got, err)
		}
	}
}

func TestRepliesOfEverySizeAreWhole(t *testing.T) {
	c := dial(t, "tcp", newRig(t, Options{}).tcp(t))
	for _, n := range []uint32{0, 1, 3, 3800, 3868, 3869, 4095, 4096, 65536, 69000, 70000, 1 << 20} {
		got, err := c.Call(t.Context(), testProgram, testLow, procRead, Cred{}, words(n))
		if err != nil || len(got) != 4+int(n+3)&^3 {
			t.Fatalf("%d bytes: got %d, %v", n, len(got), err)
		}
		for i, v := range got[4:] {
			if want := byte(i); v != want && i < int(n) || i >= int(n) && v != 0 {
				t.Fatalf("%d bytes: byte %d is %d", n, i, v)
			}
		}
	}
	_, err := c.Call(t.Context(), testProgram, testLow, procRead, Cred{}, words(2<<20))
	if !Failed(err, SystemErr) {
		t.Errorf("too long: %v", err)
	}
}

func TestRefusalsAreTheRFCs(t *testing.T) {
	address := newRig(t, Options{}).tcp(t)
	cred := func(flavor uint32, body ...uint32) []byte {
		return append(words(flavor, uint32(4*len(body))), words(body...)...)
	}
	call := func(rpc, prog, vers, proc uint32, cred []byte) []byte {
		return bytes.Join([][]byte{words(0xabcd, 0, rpc, prog, vers, proc), cred, words(0, 0)}, nil)
	}
	none := cred(AuthNone)
	sys := func(groups uint32) []byte {
		return cred(AuthSys, append([]uint32{1, 0, 5, 6, groups}, make([]uint32, groups)...)...)
	}
	accepted := func(stat ...uint32) []byte { return append(words(0xabcd, 1, 0, 0, 0), words(stat...)...) }
	refused := func(why ...uint32) []byte { return append(words(0xabcd, 1, 1), words(why...)...) }
	for _, x := range []struct {
		name      string
		ask, want []byte
	}{
		{"null", call(2, testProgram, 2, 0, none), accepted(0)},
		{"sys", call(2, testProgram, 2, 0, sys(16)), accepted(0)},
		{"program", call(2, 100003, 3, 0, none), accepted(1)},
		{"version", call(2, testProgram, 4, 0, none), accepted(2, testLow, testHigh)},
		{"old version", call(2, testProgram, 1, 0, none), accepted(2, testLow, testHigh)},
		{"version within", call(2, testProgram, 2, procOldVers, none), accepted(2, testLow, testHigh)},
		{"procedure", call(2, testProgram, 3, 99, none), accepted(3)},
		{"arguments", call(2, testProgram, 3, procGarbage, none), accepted(4)},
		{"system", call(2, testProgram, 3, procSystem, none), accepted(5)},
		{"panic", call(2, testProgram, 3, procPanic, none), accepted(5)},
		{"panic inline", call(2, testProgram, 3, procPanicIn, none), accepted(5)},
		{"RPC version", call(3, testProgram, 3, 0, none), refused(0, 2, 2)},
		{"RPC version alone", words(0xabcd, 0, 1), refused(0, 2, 2)},
		{"AUTH_SHORT", call(2, testProgram, 3, 0, cred(2, 7)), refused(1, 2)},
		{"RPCSEC_GSS", call(2, testProgram, 3, 0, cred(6, 1, 1, 0, 1)), refused(1, 2)},
		{"17 groups", call(2, testProgram, 3, 0, sys(17)), refused(1, 1)},
		{"groups missing", call(2, testProgram, 3, 0, cred(AuthSys, 1, 0, 5, 6, 3, 1)), refused(1, 1)},
		{"machine too long", call(2, testProgram, 3, 0, cred(AuthSys, 1, 256, 5, 6, 0)), refused(1, 1)},
		{"empty AUTH_SYS", call(2, testProgram, 3, 0, cred(AuthSys)), refused(1, 1)},
		{"too weak", call(2, testProgram, 3, procDeny, none), refused(1, 5)},
	} {
		c := connect(t, address)
		c.SetDeadline(time.Now().Add(patience))
		c.Write(record(x.ask))
		got := make([]byte, 4+len(x.want))
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, record(x.want)) {
			t.Errorf("%s: got %x, want %x, %v", x.name, got[4:], x.want, err)
		}
		c.Write(record(message(1, procNull)))
		if _, err := io.ReadFull(c, make([]byte, headerBytes)); err != nil {
			t.Errorf("%s: the connection is dead: %v", x.name, err)
		}
		c.Close()
	}
}

func TestWhatIsNoCallEndsTheConnection(t *testing.T) {
	noLeak(t)
	address := newRig(t, Options{}).tcp(t)
	long := bytes.Join([][]byte{words(1, 0, 2, testProgram, 3, 0, 1, 404), make([]byte, 404), words(0, 0)}, nil)
	for name, m := range map[string][]byte{
		"empty": {}, "short": {1, 2, 3}, "reply": words(1, 1, 0, 0, 0, 0), "xid": words(5), "no verifier": words(1, 0, 2, testProgram, 3, 0, 0, 0),
		"credentials over 400 bytes": long, "length over all": words(1, 0, 2, testProgram, 3, 0, 0, 1<<31),
	} {
		c := connect(t, address)
		c.Write(record(m))
		c.SetReadDeadline(time.Now().Add(patience))
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
		c.Close()
	}
}

func TestDropAnswersNothingAndGoesOn(t *testing.T) {
	r := newRig(t, Options{MaxInFlight: 2})
	address := r.tcp(t)
	c := connect(t, address)
	for range 10 { // more than may be in flight: a dropped request gives its slot back
		c.Write(record(message(1, procDrop)))
	}
	c.Write(record(message(2, procNull)))
	c.SetDeadline(time.Now().Add(patience))
	got := make([]byte, headerBytes)
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got[4:8], words(2)) {
		t.Errorf("%x, %v", got, err)
	}
}

func TestCallsSayWhoAsks(t *testing.T) {
	r := newRig(t, Options{})
	c := dial(t, "tcp", r.tcp(t))
	who := func(c *Client, cred Cred) string {
		got, err := c.Call(t.Context(), testProgram, testLow, procWho, cred, nil)
		if err != nil {
			t.Error(err)
		}
		return string(got)
	}
	if got := who(c, Sys("esx1", 10, 20, 30, 40)); got != "1 esx1 10 20 [30 40] 127.0.0.1 127.0.0.1 false" {
		t.Errorf("got %s", got)
	}
	if got := who(c, Cred{}); got != "0  0 0 [] 127.0.0.1 127.0.0.1 false" { // nothing is left of the call before
		t.Errorf("got %s", got)
	}
}

// TestDatagramsAreAnsweredFromTheAddressThatWasAsked uses that a connected socket takes nothing from others.
func TestDatagramsAreAnsweredFromTheAddressThatWasAsked(t *testing.T) {
	for _, network := range []string{"udp4", "udp"} {
		r := newRig(t, Options{})
		port := r.udp(t, network, ":0").Port
		for _, ip := range []string{"127.0.0.2", "127.0.0.1"} {
			c := dial(t, "udp", (&net.UDPAddr{IP: net.ParseIP(ip), Port: port}).String())
			got, err := c.Call(t.Context(), testProgram, testLow, procWho, Cred{}, nil)
			if err != nil || !strings.HasSuffix(string(got), ip+" true") {
				t.Errorf("%s %s: %s, %v", network, ip, got, err)
			}
		}
	}
}

func TestAnswersThatFitNoDatagramAreErrors(t *testing.T) {
	r := newRig(t, Options{})
	c := dial(t, "udp", r.udp(t, "udp", "127.0.0.1:0").String())
	if _, err := c.Call(t.Context(), testProgram, testLow, procRead, Cred{}, words(66000)); !Failed(err, SystemErr) {
		t.Error(err)
	}
}

func TestErrorsHaveKinds(t *testing.T) {
	c := dial(t, "tcp", newRig(t, Options{}).tcp(t))
	for proc, want := range map[uint32]errs.Kind{
		procDeny: errs.Denied, procGarbage: errs.Invalid, 99: errs.Invalid, procSystem: errs.Other, procOldVers: errs.Invalid,
	} {
		if _, err := c.Call(t.Context(), testProgram, testLow, proc, Cred{}, nil); !errs.Is(err, want) {
			t.Errorf("procedure %d: %v is not %s", proc, err, want)
		}
	}
	_, err := c.Call(t.Context(), testProgram, 9, 0, Cred{}, nil)
	var reply *ReplyError
	if !errors.As(err, &reply) || reply.Low != testLow || reply.High != testHigh || reply.Status != ProgMismatch {
		t.Errorf("version: %v", err)
	}
	if _, err := c.Call(t.Context(), 1, 9, 0, Cred{}, nil); !errs.Is(err, errs.NotFound) {
		t.Errorf("program: %v", err)
	}
}
