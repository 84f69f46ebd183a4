package overlay

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"

	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/keyring"
)

func sealedOptions(fsys vfs.FS) Options {
	o := testOptions(fsys)
	if o.Keys == nil {
		o.Keys = newKeys()
	}
	return o
}

// watched records what is written to segments, and lets some writes fail when half of them is done.
type watched struct {
	vfs.FS
	t      *testing.T
	mu     sync.Mutex
	count  int
	failAt int // every how many writes; 0 none
	salts  map[[32]byte]string
}

type watchedFile struct {
	vfs.File
	w     *watched
	name  string
	bytes map[int64]byte // that were ever written and are not zero
}

// OpenRW implements vfs.FS: what was there before is not written again, but for bad headers.
func (w *watched) OpenRW(name string) (vfs.File, error) {
	f, err := w.FS.OpenRW(name)
	if err != nil || !strings.HasSuffix(name, ".seg") {
		return f, err
	}
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, err
	}
	seen := map[int64]byte{}
	for i, c := range b {
		seen[int64(i)] = c
	}
	return &watchedFile{f, w, name, seen}, nil
}

// Create implements vfs.FS.
func (w *watched) Create(name string) (vfs.File, error) {
	f, err := w.FS.Create(name)
	if err != nil || !strings.HasSuffix(name, ".seg") {
		return f, err
	}
	return &watchedFile{f, w, name, map[int64]byte{}}, nil
}

// WriteAt implements vfs.File.
func (f *watchedFile) WriteAt(p []byte, off int64) (int, error) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	if h, ok := decodeSegmentHeader(p); ok && off == 0 {
		if other, is := f.w.salts[h.salt]; is {
			f.w.t.Errorf("%s has the salt of %s", f.name, other)
		}
		f.w.salts[h.salt] = f.name
	}
	f.w.count++
	torn := f.w.failAt > 0 && f.w.count%f.w.failAt == 0 && off > 0
	if torn {
		p = p[:len(p)/2]
	}
	for i, b := range p {
		at := off + int64(i)
		if was := f.bytes[at]; b != 0 && was != 0 && b != was {
			f.w.t.Fatalf("%s: byte %d was %x and is %x: a nonce is used twice", f.name, at, was, b)
		}
		f.bytes[at] |= b
	}
	n, err := f.File.WriteAt(p, off)
	if torn {
		return n, syscall.EIO
	}
	return n, err
}

func TestNoPlaceOfASealedSegmentIsSealedTwice(t *testing.T) {
	for seed := range uint64(30 / thin) {
		w := &watched{FS: vfs.NewMem(), t: t, failAt: int(seed%7) + 3, salts: map[[32]byte]string{}}
		o := sealedOptions(w)
		rng := rand.New(rand.NewPCG(seed, 5))
		nodes := []Node{{ID: 1, Size: 100000}}
		l := mustCreate(t, o, nodes)
		model := make([]byte, 100000)
		for i := range 150 {
			d := mustDevice(t, l, 1)
			off := rng.Int64N(90000)
			p := stamp(int(rng.Int64N(9000))+1, uint64(i))
			if err := d.WriteAt(bg(), p, off); err == nil {
				copy(model[off:], p)
			} else { // a write of several records may be done in part: each byte is the old one or the new one
				for j, c := range readAllOf(t, d)[off:][:len(p)] {
					if was := &model[off+int64(j)]; c != *was && c != p[j] {
						t.Fatalf("seed %d, step %d: byte %d is neither old nor new", seed, i, off+int64(j))
					} else {
						*was = c
					}
				}
			}
			switch rng.IntN(12) {
			case 0:
				_ = l.Clean(bg())
			case 1:
				must(t, l.Sync(bg()))
			case 2:
				must(t, l.Close())
				l, _ = mustOpen(t, o, nodes)
			}
			if !bytes.Equal(readAllOf(t, mustDevice(t, l, 1)), model) {
				t.Fatalf("seed %d, step %d: other bytes", seed, i)
			}
		}
		must(t, l.Close())
	}
}

func TestNothingThatWasWrittenIsReadableInASealedLog(t *testing.T) {
	u := &upper{}
	o := u.options(sealedOptions(vfs.NewMem()))
	o.SegmentBytes = 1 << 20
	nodes := []Node{{ID: 1, Size: 400000}}
	l := mustCreate(t, o, nodes)
	d := mustDevice(t, l, 1)
	secret := []byte("attack at dawn!!")
	must(t, d.WriteAt(bg(), bytes.Repeat(secret, 300000/16), 0)) // also longer than what is copied
	must(t, d.WriteAt(bg(), secret, 350000))
	must(t, u.append(l, secret))
	must(t, u.append(l, bytes.Repeat(secret, 300)))
	must(t, l.Clean(bg()))
	must(t, u.append(l, secret))
	must(t, d.WriteAt(bg(), secret, 360001))
	must(t, l.Fork(bg(), forkDir, [16]byte{7, 0xf}))
	must(t, l.Close())
	for _, dir := range []string{o.Dir, forkDir} {
		for name, b := range takeImageOf(t, o.FS, dir) {
			if bytes.Contains(b, secret[:8]) {
				t.Errorf("%s/%s shows it", dir, name)
			}
		}
	}
	u.state = nil
	l, _ = mustOpen(t, forkOptions(o, forkDir, 7), nodes)
	got := readAllOf(t, mustDevice(t, l, 1))
	if !bytes.Equal(got[:300000/16*16], bytes.Repeat(secret, 300000/16)) || !bytes.Equal(got[360001:][:16], secret) || len(u.state) != 302*16 {
		t.Fatal("other bytes")
	}
	must(t, l.Close())
}

func TestLogIsOpenedAsItWasMadeOrDenied(t *testing.T) {
	nodes := []Node{{ID: 1, Size: 9000}}
	for _, keys := range []*keyring.Keys{nil, newKeys()} {
		o := testOptions(vfs.NewMem())
		o.Keys = keys
		l := mustCreate(t, o, nodes)
		must(t, mustDevice(t, l, 1).WriteAt(bg(), stamp(5000, 1), 0))
		must(t, l.Clean(bg()))
		must(t, l.Close())
		if o.Keys = nil; keys == nil {
			o.Keys = newKeys()
		}
		_, _, err := Open(bg(), o, nodes)
		wantKind(t, err, errs.Denied)
	}
}

func TestOtherKeysGiveNoOtherBytes(t *testing.T) {
	nodes := []Node{{ID: 1, Size: 9000}}
	o := sealedOptions(vfs.NewMem())
	l := mustCreate(t, o, nodes)
	must(t, mustDevice(t, l, 1).WriteAt(bg(), stamp(5000, 1), 0))
	must(t, l.Close())
	o.Keys = newKeys() // of the same epoch number
	l, _ = mustOpen(t, o, nodes)
	if bad, err := badBytes(mustDevice(t, l, 1), append(stamp(5000, 1), make([]byte, 4000)...)); err != nil || bad != 5120 {
		t.Fatalf("%d bad bytes, %v", bad, err)
	}
	must(t, l.Close())
}

func TestEitherHeaderOfASealedSegmentIsEnough(t *testing.T) {
	nodes := []Node{{ID: 1, Size: 9000}}
	o := sealedOptions(vfs.NewMem())
	l := mustCreate(t, o, nodes)
	must(t, mustDevice(t, l, 1).WriteAt(bg(), stamp(9000, 1), 0))
	must(t, l.Close())
	whole := takeImage(t, o.FS)
	for _, c := range []struct {
		at   []int
		want int
	}{{[]int{80}, 0}, {[]int{4096 + 80}, 0}, {[]int{80, 4096 + 80}, 9216}} {
		m := image{}
		for name, b := range whole {
			m[name] = bytes.Clone(b)
		}
		for _, at := range c.at {
			m["0000000000000001.seg"][at] ^= 4
		}
		o.FS = m.mount(t)
		l, rep := mustOpen(t, o, nodes)
		if bad, err := badBytes(mustDevice(t, l, 1), stamp(9000, 1)); err != nil || min(bad, 9000) != min(c.want, 9000) || len(rep.Notes) == 0 {
			t.Fatalf("%d bad bytes, %v, %+v", bad, err, rep)
		}
		told := int64(0)
		for _, d := range rep.Damage {
			told += d.Len
		}
		if want := min(int64(c.want), 9000); told != want || rep.Rotten != (want > 0) {
			t.Fatalf("%d bytes are told to be bad, of %d: %+v", told, want, rep)
		}
		must(t, l.Close())
		if c.want == 0 { // it was written again
			if _, rep := mustOpen(t, o, nodes); len(rep.Notes) > 0 {
				t.Fatalf("%+v", rep)
			}
		}
	}
}

// TestForgedRecordIsRefused changes a record and makes all its checksums right.
func TestForgedRecordIsRefused(t *testing.T) {
	nodes := []Node{{ID: 1, Size: 20000}}
	o := sealedOptions(vfs.NewMem())
	l := mustCreate(t, o, nodes)
	must(t, mustDevice(t, l, 1).WriteAt(bg(), stamp(5000, 1), 0))
	must(t, l.Close())
	whole := takeImage(t, o.FS)["0000000000000001.seg"]
	off := int64(sealed.first())
	tag := recordTag(segmentSeed(o.Mount, 1), off)
	h, ok := decodeHeader(whole[off:], tag)
	if !ok {
		t.Fatal("no record")
	}
	for i, forge := range []func(b []byte, h *header){
		func(_ []byte, h *header) { h.off = 8192 },
		func(_ []byte, h *header) { h.node = 2 },
		func(b []byte, _ *header) { b[h.payloadOffset()+10] ^= 1 },
		func(b []byte, _ *header) { b[h.payloadOffset()+4096+3] ^= 1 }, // the tag
		func(b []byte, _ *header) { copy(b[h.payloadOffset():], make([]byte, 5032)) },
	} {
		b, made := bytes.Clone(whole), h
		forge(b[off:], &made)
		rec := b[off:][:sealed.bytes(h.essentials)]
		fillTable(rec[headerBytes:], rec[h.payloadOffset():][:sealed.stored(h.essentials)], sealed.pitch(h.essentials))
		maskTable(rec[headerBytes:], blocks(h.length), tag)
		made.encode(rec, tag)
		img := image{"0000000000000001.seg": b}
		o.FS = img.mount(t)
		l, _ := mustOpen(t, o, append(nodes, Node{ID: 2, Size: 20000}))
		err := mustDevice(t, l, made.node).ReadAt(bg(), make([]byte, 5000), made.off)
		if !errs.Is(err, errs.Corrupt) {
			t.Errorf("forgery %d: %v", i, err)
		}
		must(t, l.Close())
	}
}

func TestKeysOfAnOlderEpochStillOpenALog(t *testing.T) {
	secret, err := keyring.KeyFile(keyring.NewKeyFile())
	must(t, err)
	slots, keys, err := keyring.Create([16]byte{4}, keyring.NewSlot{Secret: secret, Created: testTime})
	must(t, err)
	o := testOptions(vfs.NewMem())
	o.Keys = keys
	nodes := []Node{{ID: 1, Size: 9000}}
	l := mustCreate(t, o, nodes)
	must(t, mustDevice(t, l, 1).WriteAt(bg(), stamp(3000, 1), 0))
	_, rotated, err := slots.Rotate(keys, testTime)
	must(t, err)
	keys.Replace(rotated)
	must(t, mustDevice(t, l, 1).WriteAt(bg(), stamp(3000, 2), 4000))
	must(t, l.Close())
	l, rep := mustOpen(t, o, nodes)
	got := readAllOf(t, mustDevice(t, l, 1))
	if !bytes.Equal(got[:3000], stamp(3000, 1)) || !bytes.Equal(got[4000:7000], stamp(3000, 2)) {
		t.Fatalf("other bytes: %+v", rep)
	}
	if l.head.key.KeyID() != 2 {
		t.Fatal(fmt.Sprint("the new segment has the key of epoch ", l.head.key.KeyID()))
	}
	must(t, l.Close())
}

func FuzzSealed(f *testing.F) {
	keys, form := testKeys, testForm
	testKeys, testForm = newKeys(), sealed
	f.Cleanup(func() { testKeys, testForm = keys, form })
	f.Add(true, false, []byte("LMO1"), []byte("LLMOCKP1"))
	f.Fuzz(func(t *testing.T, mend, accept bool, segment, stream []byte) {
		if len(segment) > 1<<20 || len(stream) > 1<<20 {
			return
		}
		o := testOptions(vfs.NewMem())
		file := append(fuzzedHeader(o.Mount, 4), segment...)
		if mend {
			mendSegment(file, segmentSeed(o.Mount, 4))
		}
		img := image{segmentName("", 4): file}
		if len(stream) > 0 {
			img["checkpoint-0000000000000003"] = checkpointFile(stream, checkpointID{o.Mount, 3})
		}
		fuzzOpen(t, img, accept)
	})
}

// TestSegmentOfAnotherLogIsRefused puts a segment into another log, and into another place of its own, and makes all
// checksums right.
func TestSegmentOfAnotherLogIsRefused(t *testing.T) {
	nodes := []Node{{ID: 1, Size: 9000}}
	o := sealedOptions(vfs.NewMem())
	l := mustCreate(t, o, nodes)
	must(t, mustDevice(t, l, 1).WriteAt(bg(), stamp(9000, 1), 0))
	must(t, l.Close())
	whole := takeImage(t, o.FS)["0000000000000001.seg"]
	for _, c := range []struct {
		mount  [16]byte
		number uint64
	}{{[16]byte{9, 9}, 1}, {o.Mount, 2}} {
		b := bytes.Clone(whole)
		h, ok := decodeSegmentHeader(b)
		if !ok {
			t.Fatal("no header")
		}
		h.mount, h.number = c.mount, c.number
		copy(b, bytes.Repeat(h.encode(), 2))
		moveRecords(t, b, segmentSeed(o.Mount, 1), segmentSeed(c.mount, c.number))
		img := image{segmentName("", c.number): b}
		if c.number == 2 {
			first := h
			first.number = 1
			img[segmentName("", 1)] = bytes.Repeat(first.encode(), 2)
		}
		other := o
		other.FS, other.Mount = img.mount(t), c.mount
		l, rep := mustOpen(t, other, nodes)
		if rep.Records == 0 {
			t.Fatalf("the record was not taken for one: %+v", rep)
		}
		if err := mustDevice(t, l, 1).ReadAt(bg(), make([]byte, 9000), 0); !errs.Is(err, errs.Corrupt) {
			t.Errorf("segment %d of mount %x: %v", c.number, c.mount, err)
		}
		must(t, l.Close())
	}
}

// moveRecords makes the checksums of all records fit another place.
func moveRecords(t *testing.T, b []byte, from, to uint32) {
	for off := sealed.first(); off+headerBytes <= int64(len(b)); {
		h, ok := decodeHeader(b[off:], recordTag(from, off))
		if !ok {
			return
		}
		rec := b[off:][:sealed.bytes(h.essentials)]
		fillTable(rec[headerBytes:], rec[h.payloadOffset():][:sealed.stored(h.essentials)], sealed.pitch(h.essentials))
		maskTable(rec[headerBytes:], blocks(h.length), recordTag(to, off))
		h.encode(rec, recordTag(to, off))
		off += int64(len(rec))
	}
}

// TestFailedWritesLeaveNoHeapOfSegments retries on a disk that takes headers of segments and no records.
func TestFailedWritesLeaveNoHeapOfSegments(t *testing.T) {
	broken, header := false, false
	o := sealedOptions(&vfs.Faulty{FS: vfs.NewMem(), Fail: func(op vfs.Op, name string) error {
		header = header || op == vfs.OpCreate
		if broken && op == vfs.OpWrite && strings.HasSuffix(name, ".seg") && !header {
			return syscall.EIO
		}
		header = header && op != vfs.OpWrite
		return nil
	}})
	nodes := []Node{{ID: 1, Size: 9000}}
	l := mustCreate(t, o, nodes)
	d := mustDevice(t, l, 1)
	must(t, d.WriteAt(bg(), stamp(100, 1), 0))
	broken = true
	for range 200 {
		if d.WriteAt(bg(), stamp(100, 2), 200) == nil {
			t.Fatal("it did not fail")
		}
	}
	broken = false
	if n := l.Stats().Segments; n > 3 {
		t.Fatalf("%d segments", n)
	}
	must(t, d.WriteAt(bg(), stamp(100, 3), 200))
	must(t, l.Close())
	l, _ = mustOpen(t, o, nodes)
	if got := readAllOf(t, mustDevice(t, l, 1)); !bytes.Equal(got[:100], stamp(100, 1)) || !bytes.Equal(got[200:300], stamp(100, 3)) {
		t.Fatal("other bytes")
	}
	must(t, l.Close())
}

// TestCheckpointOfTheOtherKindIsDenied: a log without segments has nothing else that tells.
func TestCheckpointOfTheOtherKindIsDenied(t *testing.T) {
	for _, keys := range []*keyring.Keys{nil, newKeys()} {
		o := testOptions(vfs.NewMem())
		o.Keys = keys
		nodes := []Node{{ID: 1, Size: 9000}}
		l := mustCreate(t, o, nodes)
		must(t, l.Fork(bg(), forkDir, [16]byte{7, 0xf}))
		must(t, l.Close())
		o = forkOptions(o, forkDir, 7)
		if o.Keys = nil; keys == nil {
			o.Keys = newKeys()
		}
		_, _, err := Open(bg(), o, nodes)
		wantKind(t, err, errs.Denied)
	}
}
