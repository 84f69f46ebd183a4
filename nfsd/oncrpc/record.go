package oncrpc

import (
	"context"
	"encoding/binary"
	"io"

	"livemount/internal/errs"
)

const (
	emptyFragmentsMax = 64      // of a record
	directBytes       = 8 << 10 // reads of this length pass by the buffer of the connection
)

// readRecord reads a request, RFC 5531 section 11. Its first byte is there already. The buffer is as large
// as what has arrived, not as what was announced.
func (c *conn) readRecord(ctx context.Context) (*buffer, error) {
	if !c.complete() {
		c.flush()
		if err := c.expect(); err != nil {
			return nil, err
		}
	}
	b := c.server.buffers.small()
	var err error
	for empty := 0; empty <= emptyFragmentsMax; {
		var size int
		var last bool
		if size, last, err = c.readMark(len(b.b)); err != nil {
			break
		}
		if b, err = c.readFragment(ctx, b, size); err != nil {
			break
		}
		if last {
			return b, nil
		}
		if size == 0 {
			empty++
		}
	}
	c.server.buffers.give(b)
	if err == nil {
		err = errs.New(errs.Invalid, "a record of too many empty fragments")
	}
	return nil, err
}

// complete says that a whole record is in memory, as nearly all small ones are.
func (c *conn) complete() bool {
	n := c.in.Buffered()
	if n < markBytes {
		return false
	}
	mark, _ := c.in.Peek(markBytes)
	v := binary.BigEndian.Uint32(mark)
	return v&markLast != 0 && uint64(v&^markLast)+markBytes <= uint64(n)
}

// expect sets the time that the rest of a record may take.
func (c *conn) expect() error {
	return c.raw.SetReadDeadline(c.server.options.Clock.Now().Add(c.server.options.ReadTimeout))
}

// readMark reads the header of a fragment and checks its size with what the record has already.
func (c *conn) readMark(have int) (size int, last bool, err error) {
	mark, err := c.in.Peek(markBytes)
	if err != nil {
		return 0, false, inside(err)
	}
	v := binary.BigEndian.Uint32(mark)
	c.in.Discard(markBytes) // they were just seen
	size = int(v &^ markLast)
	if size > c.server.options.RecordBytesMax-have {
		return 0, false, errs.New(errs.Invalid, "a record of %d bytes is over the limit of %d", have+size, c.server.options.RecordBytesMax)
	}
	return size, v&markLast != 0, nil
}

// readFragment appends size bytes to b, which is exchanged for a larger one each time it is full. It returns
// the buffer that is in use now, also after an error.
func (c *conn) readFragment(ctx context.Context, b *buffer, size int) (*buffer, error) {
	for size > 0 {
		have := len(b.b)
		if have == cap(b.b) {
			var err error
			if b, err = c.enlarge(ctx, b); err != nil {
				return b, err
			}
		}
		part := b.b[have:min(have+size, cap(b.b))]
		n, err := c.readSome(part)
		b.b = b.b[:have+n]
		size -= n
		if err != nil {
			return b, inside(err)
		}
	}
	return b, nil
}

// readSome reads at least one byte. Long reads go right to their place.
func (c *conn) readSome(p []byte) (int, error) {
	if c.in.Buffered() == 0 && len(p) >= directBytes {
		return c.raw.Read(p)
	}
	return c.in.Read(p)
}

// enlarge moves a full buffer into one of the next class and returns the one that is in use then. While it
// waits, nothing is read; this is no fault of the client, so its time begins anew.
func (c *conn) enlarge(ctx context.Context, b *buffer) (*buffer, error) {
	c.flush()
	larger, err := c.server.buffers.take(ctx, b.class+1, c.own, true)
	if err != nil {
		return b, err
	}
	larger.b = append(larger.b, b.b...)
	c.server.buffers.give(b)
	return larger, c.expect()
}

// inside is the error of a read inside of a record, where the end is no good end.
func inside(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
