package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"livemount/nfsd/oncrpc"
	"livemount/nfsd/xdr"
	"livemount/test/nfsclient"
)

// nfsCall is a call, encoded once: each one that is sent differs in its xid and its offset only.
type nfsCall struct {
	b      []byte // record mark, header and arguments
	offset int    // where the file offset is; 0 when there is none
	data   []byte // of a WRITE, behind b
	// check looks at the first bytes behind the status of an answer, and at the length of all.
	check func(head []byte, length int) error
}

const (
	markBytes  = 4
	headBytes  = 28 // of an answer up to its status, with an empty verifier
	statusAt   = 24
	acceptedAt = 20
)

// newNFSCall encodes a call. The arguments end with what args appends; data follows.
func newNFSCall(proc uint32, handle, data []byte, args func(e *xdr.Encoder)) *nfsCall {
	var e xdr.Encoder
	for _, v := range []uint32{0, 0, 0, 2, nfsclient.NFS, 3, proc, oncrpc.AuthSys, 20, 0, 0, 0, 0, 0, 0, 0} {
		e.Uint32(v) // mark, xid, CALL, RPC version, program, AUTH_SYS of root without a name, no verifier
	}
	e.Opaque(handle)
	c := &nfsCall{data: data, check: func([]byte, int) error { return nil }}
	if args != nil {
		c.offset = len(e.B)
		args(&e)
	}
	c.b = e.B
	binary.BigEndian.PutUint32(c.b, 1<<31|uint32(len(c.b)+len(data)-markBytes))
	return c
}

func getattrCall(handle []byte) *nfsCall { return newNFSCall(nfsclient.Getattr, handle, nil, nil) }

func readCall(handle []byte, n int) *nfsCall {
	c := newNFSCall(nfsclient.Read, handle, nil, func(e *xdr.Encoder) {
		e.Uint64(0)
		e.Uint32(uint32(n))
	})
	c.check = func(_ []byte, length int) error {
		if length < headBytes+16+n {
			return fmt.Errorf("the answer of a READ of %d bytes has %d", n, length)
		}
		return nil
	}
	return c
}

// writeCall writes data, whose length must be a multiple of 4.
func writeCall(handle, data []byte, how uint32) *nfsCall {
	c := newNFSCall(nfsclient.Write, handle, data, func(e *xdr.Encoder) {
		e.Uint64(0)
		e.Uint32(uint32(len(data)))
		e.Uint32(how)
		e.Uint32(uint32(len(data)))
	})
	c.check = func(head []byte, length int) error {
		if length != headBytes+len(head) || len(head) < 16 {
			return fmt.Errorf("the answer of a WRITE has %d bytes", length)
		}
		tail := head[len(head)-16:]
		n, committed := binary.BigEndian.Uint32(tail), binary.BigEndian.Uint32(tail[4:])
		if int(n) != len(data) || committed < how {
			return fmt.Errorf("WRITE took %d of %d bytes, and made them as durable as %d", n, len(data), committed)
		}
		return nil
	}
	return c
}

// pipe is one connection of a client that does as little as it can, so that the server is what is measured: one
// goroutine sends as many calls as there were answers, in one system call when they are small, and drops the data of
// answers in the kernel.
type pipe struct {
	conn  net.Conn
	raw   syscall.RawConn
	in    *bufio.Reader
	out   []byte
	xid   uint32
	spare []byte
	// other gets the xid of an answer to a call that run did not send: its highest bit is set.
	other func(xid uint32)
}

// newPipe uses a connection. Few bytes are read at once where answers are long, because what is read is copied.
func newPipe(conn net.Conn, long bool) (*pipe, error) {
	size := 256 << 10
	if long {
		size = 4 << 10
	}
	raw, err := conn.(*net.TCPConn).SyscallConn()
	return &pipe{conn: conn, raw: raw, in: bufio.NewReaderSize(conn, size), spare: make([]byte, 1<<20)}, err
}

// run keeps depth calls under way, at the offsets that next gives, until over says that there were enough, and waits for
// the answers of all. It returns how many there were.
func (p *pipe) run(c *nfsCall, depth int, next func() int64, over func(sent int) bool) (int, error) {
	sent, done := 0, 0
	for more := depth; ; {
		if more > 0 {
			if err := p.send(c, more, next); err != nil {
				return done, err
			}
			sent += more
		}
		got, err := p.receive(c)
		if err != nil {
			return done, err
		}
		done += got
		if more = got; over(sent) {
			more = 0
			if done == sent {
				return done, nil
			}
		}
	}
}

func (p *pipe) send(c *nfsCall, n int, next func() int64) error {
	p.out = p.out[:0]
	for range n {
		at := len(p.out)
		p.out = append(p.out, c.b...)
		p.xid++
		binary.BigEndian.PutUint32(p.out[at+markBytes:], p.xid)
		if c.offset > 0 {
			binary.BigEndian.PutUint64(p.out[at+c.offset:], uint64(next()))
		}
	}
	if len(c.data) == 0 {
		_, err := p.conn.Write(p.out)
		return err
	}
	var v net.Buffers
	for i := range n {
		v = append(v, p.out[i*len(c.b):(i+1)*len(c.b)], c.data)
	}
	_, err := v.WriteTo(p.conn)
	return err
}

// receive takes answers, at least one of a call of run, and all that are there already.
func (p *pipe) receive(c *nfsCall) (int, error) {
	for got := 0; ; {
		own, err := p.answer(c)
		if err != nil {
			return got, err
		}
		if own {
			got++
		}
		if got > 0 && !p.complete() {
			return got, nil
		}
	}
}

// complete says whether a whole answer is in memory.
func (p *pipe) complete() bool {
	n := p.in.Buffered()
	if n < markBytes {
		return false
	}
	mark, _ := p.in.Peek(markBytes) // it is there
	return int(binary.BigEndian.Uint32(mark)&^(1<<31))+markBytes <= n
}

// answer takes one answer, and says whether it is that of a call of run.
func (p *pipe) answer(c *nfsCall) (bool, error) {
	mark, err := p.in.Peek(markBytes)
	if err != nil {
		return false, err
	}
	length := int(binary.BigEndian.Uint32(mark) &^ (1 << 31))
	head, err := p.in.Peek(markBytes + min(length, 256))
	if err != nil {
		return false, err
	}
	head = head[markBytes:]
	if len(head) < headBytes || binary.BigEndian.Uint32(head[acceptedAt:]) != 0 || binary.BigEndian.Uint32(head[statusAt:]) != 0 {
		return false, fmt.Errorf("the answer is no success: %x", head)
	}
	xid := binary.BigEndian.Uint32(head)
	if xid>>31 != 0 {
		p.other(xid)
	} else if err := c.check(head[headBytes:], length); err != nil {
		return false, err
	}
	return xid>>31 == 0, p.drop(markBytes + length)
}

// drop skips bytes, without copying them when they are many: Linux throws away what MSG_TRUNC asks for of a TCP stream.
func (p *pipe) drop(n int) error {
	here := min(n, p.in.Buffered())
	if _, err := p.in.Discard(here); err != nil {
		return err
	}
	for n -= here; n > 0; {
		got := 0
		var err error
		wait := p.raw.Read(func(fd uintptr) bool {
			got, _, err = unix.Recvfrom(int(fd), p.spare[:min(n, len(p.spare))], unix.MSG_TRUNC|unix.MSG_DONTWAIT)
			return err != unix.EAGAIN
		})
		if err == nil {
			err = wait
		}
		if err == nil && got == 0 {
			err = fmt.Errorf("the server ended the connection inside of an answer")
		}
		if err != nil {
			return err
		}
		n -= got
	}
	return nil
}

// limit ends what takes far longer than it may.
func (p *pipe) limit(d time.Duration) error { return p.conn.SetDeadline(time.Now().Add(d)) }
