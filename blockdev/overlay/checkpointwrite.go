package overlay

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"slices"

	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/keyring"
)

// imageWriter cuts a stream into checksummed blocks and writes them twice, in large steps.
type imageWriter struct {
	ctx   context.Context
	file  vfs.File
	id    checkpointID
	key   *keyring.File // nil: plain
	image int64         // bytes of one copy
	room  int           // of a block
	off   int64         // in the copy, of buf
	index uint32
	block []byte // payload of the block being filled
	buf   []byte
	err   error
}

const imageStepBytes = 256 << 10

// Write implements io.Writer. The first error stays.
func (w *imageWriter) Write(p []byte) (int, error) {
	for n := len(p); ; {
		k := min(len(p), w.room-len(w.block))
		w.block = append(w.block, p[:k]...)
		if p = p[k:]; len(p) == 0 || w.err != nil {
			return n, w.err
		}
		w.endBlock()
	}
}

func (w *imageWriter) endBlock() {
	w.buf = append(w.buf, encodeBlock(w.index, w.block, w.id, w.key)...)
	w.index++
	w.block = w.block[:0]
	if len(w.buf) >= imageStepBytes {
		w.flush()
	}
}

func (w *imageWriter) flush() {
	if w.err == nil {
		w.err = w.ctx.Err()
	}
	for _, base := range [2]int64{0, w.image} {
		if w.err == nil {
			_, w.err = w.file.WriteAt(w.buf, base+w.off)
		}
	}
	w.off += int64(len(w.buf))
	w.buf = w.buf[:0]
}

func (w *imageWriter) finish() error {
	if len(w.block) > 0 {
		w.endBlock()
	}
	w.flush()
	if w.err == nil && w.off != w.image {
		w.err = errs.New(errs.Other, "checkpoint image of %d bytes, expected %d", w.off, w.image)
	}
	return w.err
}

// writeCheckpoint makes the state durable under its number.
func (l *Log) writeCheckpoint(ctx context.Context, dir string, s snapshotState) error {
	name := checkpointName(dir, s.head.number)
	tmp := name + checkpointTempEnd
	if err := l.fs.Remove(tmp); err != nil && !errs.Is(err, errs.NotFound) {
		return err
	}
	f, err := l.fs.Create(tmp)
	if err != nil {
		return err
	}
	w := &imageWriter{
		ctx: ctx, file: f, id: checkpointID{s.head.mount, s.head.number}, image: s.head.imageBytes(l.form), room: l.form.blockPayload(),
	}
	if w.key, err = l.newKey(); err == nil {
		err = s.encode(w)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = l.fs.Rename(tmp, name)
	}
	if err == nil {
		return l.fs.SyncDir(dir)
	}
	_ = l.fs.Remove(tmp) // Open removes it too
	return err
}

func (s snapshotState) encode(w *imageWriter) error {
	if _, err := w.Write(s.head.encode()); err != nil {
		return err
	}
	slices.SortFunc(s.origins, func(a, b origin) int { return cmp.Compare(a.number, b.number) })
	for _, o := range s.origins {
		if _, err := w.Write(o.encode()); err != nil {
			return err
		}
	}
	slices.SortFunc(s.nodes, func(a, b *node) int { return cmp.Compare(a.id, b.id) })
	for _, n := range s.nodes {
		if err := n.encode(w); err != nil {
			return err
		}
	}
	if _, err := w.Write(s.upper); err != nil {
		return err
	}
	return w.finish()
}

func (n *node) encode(w *imageWriter) error {
	b := make([]byte, nodeEntryBytes)
	encodeNode(b, n.id, n.size.Load(), n.sizeKnown, n.extents.Len())
	_, err := w.Write(b)
	n.extents.leaves.Scan(func(_ int64, leaf string) bool {
		b = append(binary.LittleEndian.AppendUint16(b[:0], uint16(len(leaf))), leaf...)
		_, err = w.Write(b)
		return err == nil
	})
	return err
}
