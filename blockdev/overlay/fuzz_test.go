package overlay

import (
	"bytes"
	"encoding/binary"
	"testing"

	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/keyring"
)

func FuzzRecord(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		mendRecord(b, 42)
		h, ok := decodeHeader(b, 42)
		if !ok {
			return
		}
		c := bytes.Clone(b)
		h.encode(c, 42)
		again, ok := decodeHeader(c, 42)
		if !ok || again != h {
			t.Fatalf("%+v became %+v", h, again)
		}
	})
}

// mendRecord makes the checksum of a header right, so that fuzzing gets behind it.
func mendRecord(b []byte, tag uint32) {
	if len(b) < headerBytes {
		return
	}
	binary.LittleEndian.PutUint32(b, recordMagic)
	e := essentials{kind: kind(b[4]), length: int64(binary.LittleEndian.Uint64(b[40:]))}
	if e.length < 0 || e.payload() > payloadMax || e.payloadOffset() > int64(len(b)) {
		return
	}
	binary.LittleEndian.PutUint32(b[92:], headerSum(b, e.payload(), tag))
}

func FuzzMark(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= markBytes {
			binary.LittleEndian.PutUint32(b[markBytes-4:], checksum(0, b[:markBytes-4]))
		}
		m, ok := decodeMark(b)
		if ok && m.version <= formatVersion {
			c, ok := decodeMark(m.encode())
			if !ok || c != m {
				t.Fatalf("%+v became %+v", m, c)
			}
		}
		img := image{"mark": b}
		fuzzOpen(t, img, false)
	})
}

// fuzzOpen opens an image, which must end with a log that reads and opens again with the same content,
// or with a classified error.
func fuzzOpen(t *testing.T, img image, accept bool) {
	o := (&upper{}).options(testOptions(img.mount(t)))
	o.AcceptDamage, o.SegmentBytes = accept, segmentBytesMin
	l, _, err := Open(bg(), o, flipNodes())
	if err != nil {
		if errs.KindOf(err) == errs.Other {
			t.Fatal(err)
		}
		return
	}
	first := readSectors(t, l)
	must(t, l.Sync(bg()))
	must(t, l.Close())
	l, rep, err := Open(bg(), o, flipNodes())
	must(t, err)
	for i, p := range readSectors(t, l) {
		if !bytes.Equal(p, first[i]) {
			t.Fatalf("sector %d differs after reopening: %+v\n%x\n%x", i, rep, first[i], p)
		}
	}
	must(t, l.Close())
}

// readSectors reads both nodes; a Corrupt sector is nil.
func readSectors(t *testing.T, l *Log) (list [][]byte) {
	for _, id := range []uint64{1, 2} {
		d := mustDevice(t, l, id)
		for off := int64(0); off < min(d.Size(), 16384); off += 512 {
			p := make([]byte, min(512, d.Size()-off))
			if err := d.ReadAt(bg(), p, off); errs.Is(err, errs.Corrupt) {
				p = nil
			} else if err != nil {
				t.Fatal(err)
			}
			list = append(list, p)
		}
	}
	return list
}

func FuzzReplay(f *testing.F) {
	f.Fuzz(func(t *testing.T, mend, accept bool, first, second []byte) {
		if len(first) > 1<<20 || len(second) > 1<<20 {
			return
		}
		o := testOptions(vfs.NewMem())
		img := image{}
		for i, b := range [][]byte{first, second} {
			number := uint64(i + 1)
			file := append(fuzzedHeader(o.Mount, number), b...)
			if mend {
				mendSegment(file, segmentSeed(o.Mount, number))
			}
			img[segmentName("", number)] = file
		}
		fuzzOpen(t, img, accept)
	})
}

// fuzzedHeader is what a segment begins with.
func fuzzedHeader(mount [16]byte, number uint64) []byte {
	h := segmentHeader{version: 1, epoch: 1, mount: mount, number: number, firstSeq: 1}
	if testKeys != nil {
		h.keyID, h.salt = testKeys.Newest(), [32]byte{1}
	}
	return bytes.Repeat(h.encode(), int(testForm.first()/segmentHeaderBytes))
}

func mendSegment(b []byte, seed uint32) {
	for off := testForm.first(); off+headerBytes <= int64(len(b)); off += 8 {
		if binary.LittleEndian.Uint32(b[off:]) == recordMagic {
			mendRecord(b[off:], recordTag(seed, off))
		}
	}
}

func FuzzCheckpoint(f *testing.F) {
	f.Fuzz(func(t *testing.T, mend bool, stream []byte) {
		o := testOptions(vfs.NewMem())
		b := stream
		if mend {
			b = checkpointFile(stream, checkpointID{o.Mount, 3})
		}
		fuzzOpen(t, image{"checkpoint-0000000000000003": b}, false)
		h, err := decodeCheckpointHead(stream)
		if c, again := decodeCheckpointHead(h.encode()); err == nil && (again != nil || c != h) {
			t.Fatalf("%+v became %+v, %v", h, c, again)
		}
	})
}

// checkpointFile puts a stream into valid blocks.
func checkpointFile(stream []byte, id checkpointID) []byte {
	var b []byte
	var key *keyring.File
	if testKeys != nil {
		key, _ = testKeys.NewFile()
	}
	for i := uint32(0); len(stream) > 0; i++ {
		n := min(testForm.blockPayload(), len(stream))
		b = append(b, encodeBlock(i, stream[:n], id, key)...)
		stream = stream[n:]
	}
	return append(b, b...)
}
