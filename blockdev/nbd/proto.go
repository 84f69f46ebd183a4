package nbd

import "encoding/binary"

// The numbers of the protocol (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md). All are big-endian.
const (
	magicServer  = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption  = 0x49484156454f5054 // "IHAVEOPT"
	magicAnswer  = 0x0003e889045565a9
	magicRequest = 0x25609513
	magicSimple  = 0x67446698
	magicChunk   = 0x668e33ef
)

// Flags of the handshake: of the server and of the client.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

type option uint32

// Options of the handshake.
const (
	optExportName      option = 1
	optAbort           option = 2
	optList            option = 3
	optStartTLS        option = 5
	optInfo            option = 6
	optGo              option = 7
	optStructuredReply option = 8
	optListMetaContext option = 9
	optSetMetaContext  option = 10
)

type answer uint32

// Types of answers to options.
const (
	ansAck         answer = 1
	ansServer      answer = 2
	ansInfo        answer = 3
	ansMetaContext answer = 4

	ansError     answer = 1 << 31
	ansUnsup     answer = ansError + 1
	ansPolicy    answer = ansError + 2
	ansInvalid   answer = ansError + 3
	ansPlatform  answer = ansError + 4
	ansTLSReqd   answer = ansError + 5
	ansUnknown   answer = ansError + 6
	ansShutdown  answer = ansError + 7
	ansBlockSize answer = ansError + 8
	ansTooBig    answer = ansError + 9
)

// Types of information about an export.
const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// Flags of an export.
const (
	sendHasFlags    = 1 << 0
	sendReadOnly    = 1 << 1
	sendFlush       = 1 << 2
	sendFUA         = 1 << 3
	sendTrim        = 1 << 5
	sendWriteZeroes = 1 << 6
	sendDF          = 1 << 7
	sendMultiConn   = 1 << 8
	sendCache       = 1 << 10
	sendFastZero    = 1 << 11
)

type command uint16

// Commands of the transmission.
const (
	cmdRead        command = 0
	cmdWrite       command = 1
	cmdDisconnect  command = 2
	cmdFlush       command = 3
	cmdTrim        command = 4
	cmdCache       command = 5
	cmdWriteZeroes command = 6
	cmdBlockStatus command = 7
)

// Flags of commands.
const (
	reqFUA      = 1 << 0
	reqNoHole   = 1 << 1
	reqDF       = 1 << 2
	reqOne      = 1 << 3
	reqFastZero = 1 << 4
)

const chunkDone = 1 << 0

// Types of chunks of a structured reply.
const (
	chunkNone        = 0
	chunkData        = 1
	chunkHole        = 2
	chunkBlockStatus = 5
	chunkError       = 1<<15 + 1
	chunkErrorOffset = 1<<15 + 2
)

// Flags of base:allocation.
const (
	stateHole = 1 << 0
	stateZero = 1 << 1
)

const (
	contextAllocation = "base:allocation"
	maxName           = 4096     // bytes of a name in the protocol
	maxOptionBytes    = 64 << 10 // of the data of an option or its answer
	maxRequest        = 32 << 20 // bytes that one request may move, unless the server says otherwise
	requestBytes      = 28
	simpleBytes       = 16
	chunkBytes        = 20
)

// request is a command on the wire.
type request struct {
	flags  uint16
	cmd    command
	cookie uint64
	off    uint64
	length uint32
}

func (r *request) encode(b []byte) []byte {
	be := binary.BigEndian
	b = be.AppendUint32(b, magicRequest)
	b = be.AppendUint16(b, r.flags)
	b = be.AppendUint16(b, uint16(r.cmd))
	b = be.AppendUint64(b, r.cookie)
	b = be.AppendUint64(b, r.off)
	return be.AppendUint32(b, r.length)
}

// decodeRequest reports false when b, of requestBytes, does not begin as a request does.
func decodeRequest(b []byte) (request, bool) {
	be := binary.BigEndian
	return request{
		flags: be.Uint16(b[4:]), cmd: command(be.Uint16(b[6:])), cookie: be.Uint64(b[8:]), off: be.Uint64(b[16:]), length: be.Uint32(b[24:]),
	}, be.Uint32(b) == magicRequest
}

func appendSimple(b []byte, code uint32, cookie uint64) []byte {
	b = binary.BigEndian.AppendUint32(b, magicSimple)
	b = binary.BigEndian.AppendUint32(b, code)
	return binary.BigEndian.AppendUint64(b, cookie)
}

// chunk is the header of a part of a structured reply.
type chunk struct {
	flags  uint16
	kind   uint16
	cookie uint64
	length uint32
}

func (c *chunk) encode(b []byte) []byte {
	be := binary.BigEndian
	b = be.AppendUint32(b, magicChunk)
	b = be.AppendUint16(b, c.flags)
	b = be.AppendUint16(b, c.kind)
	b = be.AppendUint64(b, c.cookie)
	return be.AppendUint32(b, c.length)
}

// decodeChunk decodes what follows the magic, of chunkBytes less 4.
func decodeChunk(b []byte) chunk {
	be := binary.BigEndian
	return chunk{flags: be.Uint16(b), kind: be.Uint16(b[2:]), cookie: be.Uint64(b[4:]), length: be.Uint32(b[12:])}
}

func appendOption(b []byte, o option, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint32(b, uint32(o))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func appendAnswer(b []byte, o option, a answer, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, magicAnswer)
	b = binary.BigEndian.AppendUint32(b, uint32(o))
	b = binary.BigEndian.AppendUint32(b, uint32(a))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// appendText writes a string with its length in front.
func appendText(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// texts reads strings with their lengths in front, and numbers, from the data of an option.
type texts struct {
	b   []byte
	bad bool
}

func (t *texts) take(n int) []byte {
	if t.bad || n < 0 || n > len(t.b) {
		t.bad = true
		return nil
	}
	p := t.b[:n]
	t.b = t.b[n:]
	return p
}

func (t *texts) u16() uint16 {
	if p := t.take(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}

func (t *texts) u32() uint32 {
	if p := t.take(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (t *texts) u64() uint64 {
	if p := t.take(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

// text returns a string of at most maxName bytes.
func (t *texts) text() string {
	n := t.u32()
	if n > maxName {
		t.bad = true
		return ""
	}
	return string(t.take(int(n)))
}

// end reports whether all was there and nothing is left.
func (t *texts) end() bool { return !t.bad && len(t.b) == 0 }
