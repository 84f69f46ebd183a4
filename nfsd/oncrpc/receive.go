package oncrpc

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"

	"livemount/internal/errs"
	"livemount/nfsd/xdr"
)

// answerBytesMax is the longest reply that a Client takes.
const answerBytesMax = 2 << 20

// receive is the goroutine that reads replies. It ends with the connection.
func (c *Client) receive() {
	next := c.datagrams()
	if c.stream {
		next = records(c.raw)
	}
	for {
		message, err := next()
		if err != nil {
			c.end(errs.New(errs.Unreachable, "receive: %w", err))
			return
		}
		xid, a, ok := decodeReply(message)
		switch {
		case ok:
			c.deliver(xid, a)
		case c.stream:
			c.end(errs.New(errs.Invalid, "receive: a message is no reply"))
			return
		}
	}
}

// datagrams returns a function that reads the next one. Each is a new slice.
func (c *Client) datagrams() func() ([]byte, error) {
	data := make([]byte, datagramBytesMax+1)
	return func() ([]byte, error) {
		n, err := c.raw.Read(data)
		return append([]byte(nil), data[:n]...), err
	}
}

// records returns a function that reads the next record. Each is a new slice.
func records(raw net.Conn) func() ([]byte, error) {
	in := bufio.NewReaderSize(raw, readerBytes)
	return func() ([]byte, error) { return readReply(in) }
}

func readReply(in io.Reader) ([]byte, error) {
	var message []byte
	for {
		var mark [markBytes]byte
		if _, err := io.ReadFull(in, mark[:]); err != nil {
			return nil, err
		}
		v := binary.BigEndian.Uint32(mark[:])
		size, have := int(v&^markLast), len(message)
		if size == 0 && v&markLast == 0 || size > answerBytesMax-have {
			return nil, errs.New(errs.Invalid, "a fragment of %d bytes after %d", size, have)
		}
		message = append(message, make([]byte, size)...)
		if _, err := io.ReadFull(in, message[have:]); err != nil {
			return nil, inside(err)
		}
		if v&markLast != 0 {
			return message, nil
		}
	}
}

// decodeReply takes a reply apart. It is false when the message is none.
func decodeReply(message []byte) (xid uint32, _ answer, ok bool) {
	d := xdr.NewDecoder(message)
	xid = d.Uint32()
	if d.Uint32() != msgReply {
		return 0, answer{}, false
	}
	var failure *ReplyError
	switch d.Uint32() {
	case msgAccepted:
		d.Uint32()
		d.Opaque(authBytesMax)
		failure = decodeAccepted(&d)
	case msgDenied:
		failure = decodeDenied(&d)
	default:
		return 0, answer{}, false
	}
	if failure != nil {
		return xid, answer{err: errs.As(failure.kind(), failure)}, d.OK()
	}
	return xid, answer{results: d.Rest()}, d.OK()
}

func decodeAccepted(d *xdr.Decoder) *ReplyError {
	switch s := Status(d.Uint32()); s {
	case Success:
		return nil
	case ProgMismatch:
		return &ReplyError{Status: s, Low: d.Uint32(), High: d.Uint32()}
	default: // what the RFC does not know is no better than a system error
		return &ReplyError{Status: min(s, SystemErr)}
	}
}

func decodeDenied(d *xdr.Decoder) *ReplyError {
	if d.Uint32() == rejectVersion {
		return &ReplyError{Status: rpcMismatch, Low: d.Uint32(), High: d.Uint32()}
	}
	return &ReplyError{Status: Denied(AuthStat(d.Uint32()))}
}
