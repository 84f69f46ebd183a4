package chunkstore

import (
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"livemount/internal/errs"
)

// codecs compresses and decompresses payloads. It is safe for concurrent use.
type codecs struct {
	encoders sync.Pool // of *zstd.Encoder
	decoder  *zstd.Decoder
}

func newCodecs() (*codecs, error) {
	// Concurrency 0 lets as many callers decode at once as there are cores; memory is bounded by what
	// a record may hold.
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxJournalRaw))
	if err != nil {
		return nil, err
	}
	return &codecs{decoder: dec}, nil
}

func (c *codecs) close() { c.decoder.Close() }

func newEncoder() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
}

// encode compresses raw, or says CodecRaw and returns raw itself when that does not make it smaller by
// at least one part in 16.
func (c *codecs) encode(raw, buf []byte) (Codec, []byte, error) {
	enc, _ := c.encoders.Get().(*zstd.Encoder)
	if enc == nil {
		var err error
		if enc, err = newEncoder(); err != nil {
			return 0, nil, err
		}
	}
	out := enc.EncodeAll(raw, buf[:0])
	c.encoders.Put(enc)
	if len(out) > len(raw)-len(raw)/16 {
		return CodecRaw, raw, nil
	}
	return CodecZstd, out, nil
}

// decode returns the rawLen bytes of a payload. The result may be the payload itself.
func (c *codecs) decode(codec Codec, payload []byte, rawLen int) ([]byte, error) {
	var raw []byte
	var err error
	if rawLen > maxJournalRaw {
		return nil, errs.New(errs.Corrupt, "record decodes to %d bytes", rawLen)
	}
	switch codec {
	case CodecRaw:
		raw = payload
	case CodecZstd:
		raw, err = c.decoder.DecodeAll(payload, make([]byte, 0, rawLen))
	case CodecS2:
		raw, err = decodeS2(payload, rawLen)
	default:
		return nil, errs.New(errs.Newer, "record with unknown codec %d", codec)
	}
	if err != nil {
		return nil, errs.As(errs.Corrupt, err)
	}
	if len(raw) != rawLen {
		return nil, errs.New(errs.Corrupt, "record decodes to %d bytes, not %d", len(raw), rawLen)
	}
	return raw, nil
}

func decodeS2(payload []byte, rawLen int) ([]byte, error) {
	n, err := s2.DecodedLen(payload)
	if err != nil || n != rawLen {
		return nil, errs.New(errs.Corrupt, "record with a wrong decoded length")
	}
	return s2.Decode(make([]byte, rawLen), payload)
}
