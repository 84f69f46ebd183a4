package chunkstore

import (
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"livemount/internal/errs"
)

// Level says how much work goes into compression. Whatever it is, everything can be read.
type Level uint8

// The levels. What LevelFast stores is compressed again later, as LevelDefault would have, by Repack.
const (
	LevelDefault Level = iota // zstd, its fastest level
	LevelFast                 // S2: three times as fast, a quarter larger
	LevelBest                 // zstd, its best level: a tenth of the speed
)

// ParseLevel reads "fast", "default", "best"; "" is the default. Anything else is Invalid.
func ParseLevel(name string) (Level, error) {
	switch name {
	case "", "default":
		return LevelDefault, nil
	case "fast":
		return LevelFast, nil
	case "best":
		return LevelBest, nil
	}
	return 0, errs.New(errs.Invalid, "%q is no compression: use fast, default or best", name)
}

// codecs compresses and decompresses payloads. It is safe for concurrent use.
type codecs struct {
	fastest, best sync.Pool // of *zstd.Encoder
	decoder       *zstd.Decoder
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

func newEncoder(level zstd.EncoderLevel) (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithWindowSize(MaxChunkPages*PageSize))
}

// encode compresses raw, or says CodecRaw and returns raw itself when that does not make it smaller by
// at least one part in 16.
func (c *codecs) encode(level Level, raw, buf []byte) (Codec, []byte, error) {
	codec, out, err := c.compress(level, raw, buf)
	if err != nil {
		return 0, nil, err
	}
	if len(out) > len(raw)-len(raw)/16 {
		return CodecRaw, raw, nil
	}
	return codec, out, nil
}

func (c *codecs) compress(level Level, raw, buf []byte) (Codec, []byte, error) {
	pool, zlevel := &c.fastest, zstd.SpeedFastest
	switch level {
	case LevelFast:
		return CodecS2, s2.Encode(buf[:cap(buf)], raw), nil
	case LevelBest:
		pool, zlevel = &c.best, zstd.SpeedBestCompression
	}
	enc, _ := pool.Get().(*zstd.Encoder)
	if enc == nil {
		var err error
		if enc, err = newEncoder(zlevel); err != nil {
			return 0, nil, err
		}
	}
	defer pool.Put(enc)
	return CodecZstd, enc.EncodeAll(raw, buf[:0]), nil
}

// decodeSlack is room behind a decoded chunk, with which zstd copies in whole words.
const decodeSlack = 16

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
		raw, err = c.decoder.DecodeAll(payload, make([]byte, 0, rawLen+decodeSlack))
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

// decodeInto fills dst with what a payload decodes to, which must be as long. What lies behind it, up to its
// capacity, may be overwritten: that makes zstd faster.
func (c *codecs) decodeInto(codec Codec, payload, dst []byte) error {
	var err error
	out := payload
	switch codec {
	case CodecRaw:
	case CodecZstd:
		out, err = c.decoder.DecodeAll(payload, dst[:0])
	case CodecS2:
		var n int
		if n, err = s2.DecodedLen(payload); err == nil && n == len(dst) {
			out, err = s2.Decode(dst, payload)
		}
	default:
		return errs.New(errs.Newer, "record with unknown codec %d", codec)
	}
	if err != nil {
		return errs.As(errs.Corrupt, err)
	}
	if len(out) != len(dst) {
		return errs.New(errs.Corrupt, "record decodes to %d bytes, not %d", len(out), len(dst))
	}
	if len(dst) > 0 && &out[0] != &dst[0] {
		copy(dst, out)
	}
	return nil
}

func decodeS2(payload []byte, rawLen int) ([]byte, error) {
	n, err := s2.DecodedLen(payload)
	if err != nil || n != rawLen {
		return nil, errs.New(errs.Corrupt, "record with a wrong decoded length")
	}
	return s2.Decode(make([]byte, rawLen), payload)
}
