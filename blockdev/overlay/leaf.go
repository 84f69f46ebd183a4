package overlay

// A leaf is a run of extents, packed into a string that is never changed. It is the form in memory and in
// checkpoints (FORMAT.md): a random write of 4 KiB takes 6 to 9 bytes instead of the 32 of an extent.

const (
	leafMost      = 32 // extents in a leaf
	packedMost    = 36 // bytes of one packed extent, at most
	leafBytesMost = leafMost * packedMost
	pageBytes     = 4096
)

// The first byte of a packed extent. What a flag tells is left out.
const (
	packZero   = 1 << 0 // zeroes
	packBad    = 1 << 1 // bad; data has neither
	packJoined = 1 << 2 // begins where the one before ends (the first one: at 0)
	packLength = 1 << 3 // as long as the one before
	packPages  = 1 << 4 // gap and length are multiples of 4096, and counted so
	packSame   = 1 << 5 // in the segment of the data before
	packNext   = 1 << 6 // its record follows the record of the data before, if that was one whole extent
	packWhole  = 1 << 7 // shows all payload of its record
)

// packContext is what the next extent of a leaf is packed against.
type packContext struct {
	form           form
	end, length    int64  // of the extent before
	seg, rec, size uint32 // of the data before
}

func (c *packContext) pass(e *extent) {
	c.end, c.length = e.off+e.len, e.len
	if e.seg != segZero && e.seg != segBad {
		c.seg, c.rec, c.size = e.seg, e.rec, e.size
	}
}

// next is the offset of the record behind that of the data before.
func (c *packContext) next() int64 { return int64(c.rec) + c.form.dataBytes(int64(c.size)) }

// packLeaf packs at most leafMost extents, in order and without overlap.
func (f form) packLeaf(list []extent) string {
	var buf [leafBytesMost]byte
	b, c := buf[:0], packContext{form: f}
	for i := range list {
		b = c.pack(b, &list[i])
		c.pass(&list[i])
	}
	return string(b)
}

func (c *packContext) flags(e *extent) (f byte) {
	if e.off == c.end {
		f |= packJoined
	}
	if e.len == c.length {
		f |= packLength
	}
	if ((e.off-c.end)|e.len)&(pageBytes-1) == 0 {
		f |= packPages
	}
	switch e.seg {
	case segZero:
		return f | packZero
	case segBad:
		return f | packBad
	case c.seg:
		f |= packSame
	}
	if int64(e.rec) == c.next() {
		f |= packNext
	}
	if e.skip == 0 && int64(e.size) == e.len {
		f |= packWhole
	}
	return f
}

func (c *packContext) pack(b []byte, e *extent) []byte {
	f := c.flags(e)
	shift := 0
	if f&packPages != 0 {
		shift = 12
	}
	b = append(b, f)
	if f&packJoined == 0 {
		b = putNumber(b, (e.off-c.end)>>shift)
	}
	if f&packLength == 0 {
		b = putNumber(b, e.len>>shift)
	}
	if !e.isData() {
		return b
	}
	if f&packSame == 0 {
		b = putNumber(b, int64(e.seg))
	}
	if f&packNext == 0 {
		b = putNumber(b, int64(e.rec))
	}
	if f&packWhole == 0 {
		b = putNumber(putNumber(b, int64(e.size)), int64(e.skip))
	}
	return b
}

// putNumber appends v, which is not negative, seven bits a byte, the lowest first.
func putNumber(b []byte, v int64) []byte {
	for ; v >= 0x80; v >>= 7 {
		b = append(b, byte(v)|0x80)
	}
	return append(b, byte(v))
}

// unpacker reads the extents of a leaf.
type unpacker struct {
	leaf   string
	i      int
	before packContext
	broken bool // what follows was not packed by packLeaf
}

// unpack begins a leaf.
func (f form) unpack(leaf string) unpacker {
	return unpacker{leaf: leaf, before: packContext{form: f}}
}

// next returns the next extent, and false at the end or when the leaf is broken.
func (u *unpacker) next() (e extent, ok bool) {
	if u.i >= len(u.leaf) || u.broken {
		return extent{}, false
	}
	f := u.leaf[u.i]
	u.i++
	shift := 0
	if f&packPages != 0 {
		shift = 12
	}
	e.off, e.len = u.before.end, u.before.length
	if f&packJoined == 0 {
		e.off += u.number(sizeEnd>>shift) << shift
	}
	if f&packLength == 0 {
		e.len = u.number(sizeEnd>>shift) << shift
	}
	switch f & (packZero | packBad) {
	case packZero:
		e.seg = segZero
	case packBad:
		e.seg = segBad
	case 0:
		u.place(f, &e)
	default:
		u.broken = true
	}
	if u.broken = u.broken || e.len <= 0 || e.off < 0 || e.off > sizeEnd-e.len; u.broken {
		return extent{}, false
	}
	u.before.pass(&e)
	return e, true
}

// place reads where data is.
func (u *unpacker) place(f byte, e *extent) {
	seg, rec, size, skip := int64(u.before.seg), int64(0), e.len, int64(0)
	if f&packSame == 0 {
		seg = u.number(segmentNumberMax)
	}
	if f&packNext == 0 {
		rec = u.number(segmentMax)
	} else {
		rec = u.before.next()
	}
	if f&packWhole == 0 {
		size = u.number(payloadMax)
		skip = u.number(payloadMax)
	}
	if seg == 0 || rec > segmentMax || size > payloadMax || skip+e.len > size {
		u.broken = true
	}
	e.seg, e.rec, e.size, e.skip = uint32(seg), uint32(rec), uint32(size), uint32(skip)
}

func (u *unpacker) number(most int64) int64 {
	v := int64(0)
	for shift := 0; shift < 63 && u.i < len(u.leaf); shift += 7 {
		b := u.leaf[u.i]
		u.i++
		v |= int64(b&0x7f) << shift
		if b < 0x80 {
			u.broken = u.broken || v > most
			return min(v, most)
		}
	}
	u.broken = true
	return 0
}
