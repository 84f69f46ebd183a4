package image

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"livemount/internal/cache"
)

// unpackedBudget bounds the decompressed clusters that are kept for reads of parts of them.
const unpackedBudget = 8 << 20

// unpacker decompresses clusters. A cluster takes at most its own size, whatever its compressed bytes say.
type unpacker struct {
	kept   *cache.Cache[packed, []byte]
	input  sync.Pool // *[]byte
	flates sync.Pool // io.ReadCloser
	zstds  *zstd.Decoder
}

type packed struct {
	layer int
	entry uint64
}

func newUnpacker() (*unpacker, error) {
	// The room for the output is the bound. The largest window is only a number then; it is that of libzstd.
	d, err := zstd.NewReader(nil, zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(128<<20))
	if err != nil {
		return nil, fmt.Errorf("zstd decoder: %w", err)
	}
	cost := func(b []byte) int64 { return int64(len(b)) + 128 }
	return &unpacker{kept: cache.New[packed](unpackedBudget, cost, nil), zstds: d}, nil
}

func (u *unpacker) close() { u.zstds.Close() }

// read fills p with a part of a compressed cluster. A whole one, as in a backup, is not kept.
func (u *unpacker) read(ctx context.Context, r run, p []byte) error {
	if int64(len(p)) == r.layer.head.cluster() {
		return u.decode(ctx, r, p)
	}
	b, err := u.kept.Get(ctx, packed{r.layer.index, r.entry}, func() ([]byte, error) {
		b := make([]byte, r.layer.head.cluster())
		return b, u.decode(ctx, r, b)
	})
	if err != nil {
		return err
	}
	copy(p, b[r.at:])
	return nil
}

// place is where the compressed bytes of an entry are: the low bits hold the offset, the high ones the
// number of sectors that follow the one of the offset. The last sector may hold other data at its end.
func (l *layer) place(entry uint64) (off, n int64) {
	const sector = 512
	shift := 62 - (l.head.clusterBits - 8)
	off = int64(entry & (1<<shift - 1))
	sectors := int64(entry &^ (flagCompressed | flagCopied) >> shift)
	return off, (sectors+1)*sector - off%sector
}

func (u *unpacker) decode(ctx context.Context, r run, p []byte) error {
	l := r.layer
	off, n := l.place(r.entry)
	if off >= l.file.size {
		return l.file.outside("a compressed cluster at %d", off)
	}
	buf := u.buffer(n)
	defer u.input.Put(buf)
	src := (*buf)[:min(n, l.file.size-off)]
	if err := l.file.ReadAt(ctx, src, off); err != nil {
		return err
	}
	decode := u.inflate
	if l.head.zstd {
		decode = u.unzstd
	}
	if err := decode(p, src); err != nil {
		return damaged(l.file.path, "the compressed cluster at %d: %w", off, err)
	}
	return nil
}

func (u *unpacker) buffer(n int64) *[]byte {
	buf, _ := u.input.Get().(*[]byte)
	if buf == nil || int64(cap(*buf)) < n {
		b := make([]byte, n)
		return &b
	}
	*buf = (*buf)[:cap(*buf)]
	return buf
}

// inflate fills p from a deflate stream. The stream may be longer: it ends where the cluster is full.
func (u *unpacker) inflate(p, src []byte) error {
	in := bytes.NewReader(src)
	r, _ := u.flates.Get().(io.ReadCloser)
	if r == nil {
		r = flate.NewReader(in)
	} else if err := r.(flate.Resetter).Reset(in, nil); err != nil {
		return err
	}
	defer u.flates.Put(r)
	n, err := io.ReadFull(r, p)
	if err != nil {
		return fmt.Errorf("%d of %d bytes: %w", n, len(p), err)
	}
	return nil
}

// unzstd fills p from one or more zstd frames, which give exactly that. What follows them is not looked at.
func (u *unpacker) unzstd(p, src []byte) error {
	out := p[:0:len(p)]
	for len(out) < len(p) {
		n, err := frameBytes(src)
		if err != nil {
			return err
		}
		if out, err = u.zstds.DecodeAll(src[:n], out); err != nil {
			return fmt.Errorf("zstd: %w", err)
		}
		src = src[n:]
	}
	copy(p, out) // out is p, unless the decoder took a buffer of its own
	return nil
}

// frameBytes is the length of the zstd frame that src starts with. Source: RFC 8878, section 3.1.
func frameBytes(src []byte) (int, error) {
	const last, rle, blockHead, checksum = 1, 1, 3, 4
	var h zstd.Header
	if err := h.Decode(src); err != nil {
		return 0, fmt.Errorf("zstd: %w", err)
	}
	if h.Skippable {
		n := int64(h.HeaderSize) + int64(h.SkippableSize)
		if n <= 0 || n > int64(len(src)) {
			return 0, io.ErrUnexpectedEOF
		}
		return int(n), nil
	}
	for at := h.HeaderSize; at+blockHead <= len(src); {
		b := int(src[at]) | int(src[at+1])<<8 | int(src[at+2])<<16
		size := b >> 3
		if b>>1&3 == rle {
			size = 1
		}
		at += blockHead + size
		if b&last != 0 {
			if h.HasCheckSum {
				at += checksum
			}
			if at > len(src) {
				break
			}
			return at, nil
		}
	}
	return 0, io.ErrUnexpectedEOF
}
