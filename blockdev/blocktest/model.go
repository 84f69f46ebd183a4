package blocktest

import (
	"context"

	"pgregory.net/rapid"

	"livemount/blockdev"
)

// model is a device and the bytes it must hold.
type model struct {
	ctx  context.Context
	d    blockdev.Device
	want []byte
}

// span draws a range: anywhere, or starting and ending on pages, as most of a guest's do.
func (m *model) span(rt *rapid.T) (off, n int64) {
	size := int64(len(m.want))
	a := rapid.Int64Range(0, size).Draw(rt, "from")
	b := rapid.Int64Range(0, size).Draw(rt, "to")
	if rapid.Bool().Draw(rt, "pages") {
		a, b = a/blockdev.PageSize*blockdev.PageSize, b/blockdev.PageSize*blockdev.PageSize
	}
	return min(a, b), max(a, b) - min(a, b)
}

func (m *model) write(rt *rapid.T) {
	off, n := m.span(rt)
	p, b := make([]byte, n), rapid.Byte().Draw(rt, "byte")
	for i := range p {
		p[i] = b + byte(i>>9)
	}
	if err := m.d.WriteAt(m.ctx, p, off); err != nil {
		rt.Fatalf("write %d+%d: %v", off, n, err)
	}
	copy(m.want[off:], p)
}

func (m *model) zero(rt *rapid.T) {
	off, n := m.span(rt)
	if err := m.d.Zero(m.ctx, off, n); err != nil {
		rt.Fatalf("zero %d+%d: %v", off, n, err)
	}
	clear(m.want[off : off+n])
}

func (m *model) read(rt *rapid.T) {
	off, n := m.span(rt)
	if err := holds(m.ctx, m.d, m.want[off:off+n], off); err != nil {
		rt.Fatal(err)
	}
}

func (m *model) sync(rt *rapid.T) {
	if err := m.d.Sync(m.ctx); err != nil {
		rt.Fatalf("sync: %v", err)
	}
}

func (m *model) extents(rt *rapid.T) {
	off, n := m.span(rt)
	if err := checkExtents(m.ctx, m.d, m.want, off, n); err != nil {
		rt.Fatal(err)
	}
}
