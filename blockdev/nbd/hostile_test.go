package nbd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"livemount/blockdev"
	"livemount/internal/clock"
	"livemount/internal/errs"
)

// scripted is a connection whose peer says what it says, whatever it is told, and then ends.
type scripted struct {
	io.Reader
	out bytes.Buffer
	mu  sync.Mutex
}

func (s *scripted) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(p)
}
func (s *scripted) Close() error                     { return nil }
func (s *scripted) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (s *scripted) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (s *scripted) SetDeadline(time.Time) error      { return nil }
func (s *scripted) SetReadDeadline(time.Time) error  { return nil }
func (s *scripted) SetWriteDeadline(time.Time) error { return nil }

// talk lets a client talk with what a server says, and ask for some things.
func talk(b []byte) error {
	raw := &scripted{Reader: bytes.NewReader(b)}
	o := ClientOptions{}
	o.setDefaults()
	l := &link{o: &o, raw: raw, w: raw, in: bufio.NewReaderSize(raw, readerBytes), min: 1, max: maxRequest}
	if err := l.hello(); err != nil {
		return err
	}
	if err := l.negotiate(URI{}); err != nil {
		return err
	}
	l.calls, l.stopped = map[uint64]*call{}, make(chan struct{})
	read := &call{request: request{cmd: cmdRead, length: 4096}, into: make([]byte, 4096), done: make(chan struct{})}
	status := &call{request: request{cmd: cmdBlockStatus, length: 1 << 20}, done: make(chan struct{})}
	for _, c := range []*call{read, status} {
		if err := l.register(c); err != nil {
			return err
		}
	}
	l.receive()
	<-read.done
	<-status.done
	return firstError(read.err, status.err)
}

// said is what a good server says to talk.
func said() []byte {
	be := binary.BigEndian
	b := be.AppendUint64(nil, magicServer)
	b = be.AppendUint64(b, magicOption)
	b = be.AppendUint16(b, flagFixedNewstyle|flagNoZeroes)
	b = appendAnswer(b, optStructuredReply, ansAck, nil)
	b = appendAnswer(b, optSetMetaContext, ansMetaContext, append([]byte{0, 0, 0, 1}, contextAllocation...))
	b = appendAnswer(b, optSetMetaContext, ansAck, nil)
	b = appendAnswer(b, optGo, ansInfo, be.AppendUint16(be.AppendUint64([]byte{0, 0}, 1<<30), sendHasFlags))
	b = appendAnswer(b, optGo, ansInfo, blockSizes())
	return appendAnswer(b, optGo, ansAck, nil)
}

func dataChunk(flags uint16, off uint64, n int) []byte {
	b := (&chunk{flags: flags, kind: chunkData, cookie: 1, length: uint32(8 + n)}).encode(nil)
	return append(binary.BigEndian.AppendUint64(b, off), make([]byte, n)...)
}

func holeChunk(flags uint16, off uint64, n uint32) []byte {
	b := (&chunk{flags: flags, kind: chunkHole, cookie: 1, length: 12}).encode(nil)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(b, off), n)
}

func statusChunk(flags uint16, context uint32, runs ...uint32) []byte {
	b := (&chunk{flags: flags, kind: chunkBlockStatus, cookie: 2, length: uint32(4 + 4*len(runs))}).encode(nil)
	b = binary.BigEndian.AppendUint32(b, context)
	for _, r := range runs {
		b = binary.BigEndian.AppendUint32(b, r)
	}
	return b
}

func join(list ...[]byte) []byte { return bytes.Join(list, nil) }

func TestGoodAnswersAreTaken(t *testing.T) {
	for i, b := range [][]byte{
		join(dataChunk(chunkDone, 0, 4096), statusChunk(chunkDone, 1, 1<<20, 0)),
		join(statusChunk(chunkDone, 1, 1<<21, 3), dataChunk(0, 2048, 2048), holeChunk(0, 0, 2048), (&chunk{flags: chunkDone, cookie: 1}).encode(nil)),
		join(dataChunk(0, 0, 10), failure(&request{cmd: cmdRead, cookie: 1}, 10, errs.New(errs.Corrupt, "rotten")), failure(&request{cookie: 2}, 0, errs.New(errs.Invalid, "no"))),
	} {
		if err := talk(append(said(), b...)); err != nil {
			t.Errorf("answer %d: %v", i, err)
		}
	}
}

func TestLiesAreErrors(t *testing.T) {
	good := said()
	cases := map[string][]byte{
		"nothing":              {},
		"another protocol":     []byte("SSH-2.0-OpenSSH_9.6 and much more of the same"),
		"old style":            append(binary.BigEndian.AppendUint64([]byte("NBDMAGIC"), 0x420281861253), make([]byte, 200)...),
		"short read":           join(good, dataChunk(chunkDone, 0, 4000), statusChunk(chunkDone, 1, 1<<20, 0)),
		"long read":            join(good, dataChunk(chunkDone, 0, 5000)),
		"read elsewhere":       join(good, dataChunk(chunkDone, 1<<40, 4096)),
		"read twice":           join(good, dataChunk(0, 0, 4096), dataChunk(chunkDone, 0, 4096)),
		"overlap":              join(good, dataChunk(0, 0, 3000), dataChunk(chunkDone, 2999, 1097)),
		"no bytes":             join(good, dataChunk(0, 0, 0)),
		"hole that is too big": join(good, holeChunk(chunkDone, 0, 1<<31)),
		"unknown cookie":       join(good, (&chunk{flags: chunkDone, cookie: 9}).encode(nil)),
		"unknown type":         join(good, (&chunk{flags: chunkDone, kind: 77, cookie: 1}).encode(nil)),
		"simple for a read":    join(good, appendSimple(nil, 0, 1), make([]byte, 4096)),
		"empty part":           join(good, (&chunk{cookie: 1}).encode(nil)),
		"status of nothing":    join(good, statusChunk(chunkDone, 1, 0, 0)),
		"too much status":      join(good, statusChunk(chunkDone, 1, 1<<20, 0, 512, 0)),
		"other context":        join(good, statusChunk(chunkDone, 7, 1<<20, 0)),
		"status twice":         join(good, statusChunk(0, 1, 1<<20, 0), statusChunk(chunkDone, 1, 1<<20, 0)),
		"odd status":           join(good, (&chunk{flags: chunkDone, kind: chunkBlockStatus, cookie: 2, length: 13}).encode(nil), make([]byte, 13)),
		"no status":            join(good, (&chunk{flags: chunkDone, cookie: 2}).encode(nil)),
		"huge part":            join(good, (&chunk{kind: chunkData, cookie: 1, length: 1<<32 - 1}).encode(nil)),
		"huge error":           join(good, (&chunk{kind: chunkError, cookie: 1, length: 1<<32 - 1}).encode(nil)),
		"error without a code": join(good, (&chunk{kind: chunkError, cookie: 1, length: 6}).encode(nil), make([]byte, 6)),
		"no size":              appendAnswer(said()[:len(said())-20-12-20-14-20], optGo, ansAck, nil),
	}
	for name, b := range cases {
		if err := talk(b); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	whole := join(good, dataChunk(chunkDone, 0, 4096), statusChunk(chunkDone, 1, 1<<20, 0))
	for n := range len(whole) - 1 { // the peer goes at any moment
		if err := talk(whole[:n]); err == nil {
			t.Fatalf("%d of %d bytes were enough", n, len(whole))
		}
	}
}

func FuzzClient(f *testing.F) {
	f.Add(join(said(), dataChunk(chunkDone, 0, 4096), statusChunk(chunkDone, 1, 1<<20, 0)))
	f.Add(join(said(), holeChunk(0, 0, 2048), dataChunk(chunkDone, 2048, 2048), statusChunk(chunkDone, 1, 4096, 0, 1<<20, 3)))
	f.Add(join(said(), failure(&request{cmd: cmdRead, cookie: 1}, 10, errs.New(errs.Corrupt, "rotten"))))
	f.Fuzz(func(_ *testing.T, b []byte) { _ = talk(b) })
}

// asked is what a client says that reads, writes and asks for status.
func asked() []byte {
	be := binary.BigEndian
	b := be.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes)
	b = appendOption(b, optList, nil)
	b = appendOption(b, optStructuredReply, nil)
	b = appendOption(b, optListMetaContext, be.AppendUint32(appendText(nil, "disk"), 0))
	b = appendOption(b, optSetMetaContext, appendText(be.AppendUint32(appendText(nil, "disk"), 1), contextAllocation))
	b = appendOption(b, optGo, be.AppendUint16(be.AppendUint16(appendText(nil, "disk"), 1), infoName))
	for i, r := range []request{
		{cmd: cmdRead, off: 100, length: 5000}, {cmd: cmdBlockStatus, length: 1 << 16}, {cmd: cmdFlush}, {cmd: cmdTrim, length: 512},
		{cmd: cmdWriteZeroes, flags: reqFUA, off: 1 << 15, length: 700}, {cmd: cmdCache, length: 99}, {cmd: 99}, {cmd: cmdRead, off: 1 << 60, length: 1},
		{cmd: cmdWrite, off: 3, length: 10},
	} {
		r.cookie = uint64(i)
		if b = r.encode(b); r.cmd == cmdWrite {
			b = append(b, "ten bytes."...)
		}
	}
	return (&request{cmd: cmdDisconnect}).encode(b)
}

// listen lets a server listen to what a client says.
func listen(b []byte) (said []byte, err error) {
	s := NewServer(shelf{"disk": {Disk: blockdev.NewMem(1 << 16)}}, ServerOptions{Clock: clock.System{}})
	raw := &scripted{Reader: bytes.NewReader(b)}
	c := newConn(s, raw)
	defer c.close()
	err = c.serve(context.Background())
	return raw.out.Bytes(), err
}

func FuzzServer(f *testing.F) {
	f.Add(asked())
	f.Add(appendOption(binary.BigEndian.AppendUint32(nil, flagFixedNewstyle), optExportName, []byte("disk")))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = listen(b) })
}

func TestClientThatGoesAtAnyMomentIsAnError(t *testing.T) {
	whole := asked()
	if _, err := listen(whole); err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		_, _ = listen(whole[:n]) // no panic, no hang
	}
}

func TestServerRefusesWhatItCannotServe(t *testing.T) {
	start := binary.BigEndian.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes)
	for name, b := range map[string][]byte{
		"flags":         binary.BigEndian.AppendUint32(nil, 1<<9),
		"huge option":   append(append(start[:4:4], appendOption(nil, optGo, nil)[:12]...), 0xff, 0xff, 0xff, 0xff),
		"option magic":  append(start[:4:4], make([]byte, 16)...),
		"many options":  append(start[:4:4], bytes.Repeat(appendOption(nil, 77, nil), maxOptions+1)...),
		"unknown name":  appendOption(start[:4:4], optExportName, []byte("none")),
		"request magic": append(appendOption(start[:4:4], optExportName, []byte("disk")), make([]byte, requestBytes)...),
		"huge write":    (&request{cmd: cmdWrite, length: 1<<32 - 1}).encode(appendOption(start[:4:4], optExportName, []byte("disk"))),
	} {
		if _, err := listen(b); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
