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
			} else if got := make([]byte, len(p)); d.ReadAt(bg(), got, off) != nil || !bytes.Equal(got, model[off:][:len(p)]) {
				copy(model[off:], readAllOf(t, d)[off:][:len(p)]) // a write of several records may be done in part
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
	}{{[]int{80}, 0}, {[]int{4096 + 80}, 0}, {[]int{80, 4096 + 80}, 9000}} {
		m := image{}
		for name, b := range whole {
			m[name] = bytes.Clone(b)
		}
		for _, at := range c.at {
			m["0000000000000001.seg"][at] ^= 4
		}
		o.FS = m.mount(t)
		l, rep := mustOpen(t, o, nodes)
		if bad, err := badBytes(mustDevice(t, l, 1), stamp(9000, 1)); err != nil || bad != c.want || len(rep.Notes) == 0 {
			t.Fatalf("%d bad bytes, %v, %+v", bad, err, rep)
		}
		must(t, l.Close())
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
