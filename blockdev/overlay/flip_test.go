package overlay

import (
	"bytes"
	"fmt"
	"path"
	"testing"

	"livemount/blockdev"
	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// image is the content of a log's folder.
type image map[string][]byte

func takeImage(t testing.TB, fsys vfs.FS) image { return takeImageOf(t, fsys, testDir) }

func takeImageOf(t testing.TB, fsys vfs.FS, dir string) image {
	t.Helper()
	names, err := fsys.List(dir)
	must(t, err)
	m := image{}
	for _, n := range names {
		m[n], err = vfs.ReadFile(fsys, path.Join(dir, n), 1<<30)
		must(t, err)
	}
	return m
}

func (m image) mount(t testing.TB) *vfs.Mem {
	mem := vfs.NewMem()
	must(t, mem.MkdirAll(testDir))
	for n, b := range m {
		f, err := mem.Create(path.Join(testDir, n))
		must(t, err)
		_, err = f.WriteAt(b, 0)
		must(t, err)
	}
	return mem
}

func flipNodes() []Node {
	return []Node{{ID: 1, Base: pattern(9000, 3), Size: 16384}, {ID: 2, Size: 12288}}
}

// flipLog makes a small closed log with every kind of record, two segments behind its checkpoint and
// live data before it.
func flipLog(t testing.TB) (image, [][]byte, []byte) {
	u := &upper{}
	o := u.options(testOptions(vfs.NewMem()))
	o.SegmentBytes = segmentBytesMin
	nodes := flipNodes()
	l := mustCreate(t, o, nodes)
	d := devicesOf(t, l, nodes)
	must(t, d[0].WriteAt(bg(), stamp(4096, 1), 8192))
	must(t, u.append(l, []byte("first")))
	must(t, d[1].WriteAt(bg(), stamp(300, 2), 100))
	must(t, d[0].Zero(bg(), 0, 700))
	must(t, l.Clean(bg()))
	must(t, d[1].WriteAt(bg(), stamp(512, 3), 4000))
	must(t, l.Close())
	u.state = nil
	l, _ = mustOpen(t, o, nodes)
	d = devicesOf(t, l, nodes)
	must(t, d[1].WriteAt(bg(), stamp(6000, 4), 3000))
	must(t, u.append(l, []byte("second")))
	must(t, d[0].Zero(bg(), 9000, 700))
	must(t, l.Sync(bg()))
	must(t, l.SetSize(bg(), 2, 8000))
	must(t, l.SetSize(bg(), 2, 12288))
	must(t, d[0].WriteAt(bg(), stamp(3000, 5), 9100))
	must(t, d[1].WriteAt(bg(), stamp(1000, 6), 10000))
	must(t, l.Sync(bg()))
	want := [][]byte{readAllOf(t, d[0]), readAllOf(t, d[1])}
	must(t, l.Close())
	return takeImage(t, o.FS), want, u.state
}

// badBytes reads all of d, in sectors where it must, and counts what is Corrupt; everything else must
// be as wanted.
func badBytes(d blockdev.Device, want []byte) (bad int, err error) {
	got := make([]byte, len(want))
	if err := d.ReadAt(bg(), got, 0); err == nil {
		if !bytes.Equal(got, want) {
			return 0, fmt.Errorf("wrong bytes")
		}
		return 0, nil
	}
	for off := 0; off < len(want); off += 512 {
		part := got[:min(512, len(want)-off)]
		err := d.ReadAt(bg(), part, int64(off))
		switch {
		case errs.Is(err, errs.Corrupt):
			bad += len(part)
		case err != nil:
			return 0, err
		case !bytes.Equal(part, want[off:off+len(part)]):
			return 0, fmt.Errorf("wrong bytes at %d", off)
		}
	}
	return bad, nil
}

// flipCase opens the image and checks that nothing but the truth or Corrupt comes out of it.
func flipCase(t *testing.T, m image, want [][]byte, state []byte, again bool) (bad int, refused bool, err error) {
	mem := m.mount(t)
	for {
		u := &upper{}
		o := u.options(testOptions(mem))
		o.SegmentBytes = segmentBytesMin
		l, rep, err := Open(bg(), o, flipNodes())
		if errs.Is(err, errs.Corrupt) {
			return 0, true, nil
		}
		if err != nil {
			return 0, false, fmt.Errorf("%w: %+v", err, rep)
		}
		if !bytes.Equal(u.state, state) {
			return 0, false, fmt.Errorf("the layer above got %q: %+v", u.state, rep)
		}
		bad = 0
		for i, d := range devicesOf(t, l, flipNodes()) {
			n, err := badBytes(d, want[i])
			if err != nil {
				return 0, false, fmt.Errorf("node %d: %w: %+v", i, err, rep)
			}
			bad += n
			if bad > 0 {
				if err := overwrite(d, want[i]); err != nil {
					return 0, false, err
				}
			}
		}
		if err := l.Close(); err != nil || !again {
			return bad, false, err
		}
		again = false
	}
}

func overwrite(d blockdev.Device, want []byte) error {
	if err := d.WriteAt(bg(), want, 0); err != nil {
		return err
	}
	if n, err := badBytes(d, want); n > 0 || err != nil {
		return fmt.Errorf("written over: still %d bad bytes, %v", n, err)
	}
	return nil
}

func TestFlippedByteNeverGivesOtherDataAndNeverLosesASyncedRecord(t *testing.T) {
	m, want, state := flipLog(t)
	flipEach(t, m, want, state)
}

func flipEach(t *testing.T, m image, want [][]byte, state []byte) {
	cases, corrupt, refused := 0, 0, 0
	for name, b := range m {
		for i := range b {
			if b[i] == 0 && i%4096 > 256 && i%8 != 0 && i > 8 && b[i-1] == 0 && b[i-8] == 0 {
				continue // inside a run of zeroes one byte is as good as the next
			}
			if i%thin != 0 {
				continue
			}
			old := b[i]
			for _, x := range []byte{0xff, 1 << (i % 8)}[:1+cases%8/7] {
				b[i] = old ^ x
				bad, no, err := flipCase(t, m, want, state, cases%16 == 0)
				if err != nil || bad > 2*blockBytes {
					t.Fatalf("%s, byte %d ^ %x: %d bytes bad, %v", name, i, x, bad, err)
				}
				cases++
				if bad > 0 {
					corrupt++
				}
				if no {
					refused++
				}
			}
			b[i] = old
		}
	}
	t.Logf("%d flips: %d opened with a bad range, %d refused", cases, corrupt, refused)
}

func TestMissingOrShortFileNeverGivesOtherDataAndNeverLosesASyncedRecord(t *testing.T) {
	m, want, state := flipLog(t)
	shortenEach(t, m, want, state)
}

func shortenEach(t *testing.T, m image, want [][]byte, state []byte) {
	refused := 0
	for name, whole := range m {
		lengths := []int{-1, 0, 1}
		for n := len(whole) - 1; n > 0; n -= 61 {
			lengths = append(lengths, n)
		}
		for _, n := range lengths {
			m[name] = whole[:max(0, n)]
			if n < 0 {
				delete(m, name)
			}
			_, no, err := flipCase(t, m, want, state, true)
			if err != nil {
				t.Fatalf("%s of %d bytes: %v", name, n, err)
			}
			if no {
				refused++
			}
		}
		m[name] = whole
	}
	t.Logf("%d refused", refused)
}

func TestAcceptedDamageIsReportedOnceAndSettled(t *testing.T) {
	o := testOptions(vfs.NewMem())
	nodes := []Node{{ID: 1, Size: 10000}}
	l := mustCreate(t, o, nodes)
	d := mustDevice(t, l, 1)
	for i := range int64(6) {
		must(t, d.WriteAt(bg(), stamp(500, uint64(i)), i*1000))
	}
	must(t, l.Close())
	m := takeImage(t, o.FS)
	seg := m["0000000000000001.seg"]
	for i := int64(2); i < 4; i++ {
		seg[testForm.first()+i*testForm.dataBytes(500)+20] ^= 1
	}
	o.FS = m.mount(t)
	_, _, err := Open(bg(), o, nodes)
	wantKind(t, err, errs.Corrupt)
	o.AcceptDamage = true
	l, rep := mustOpen(t, o, nodes)
	if rep.LostRecords != 2 || !rep.Rotten {
		t.Fatalf("%+v", rep)
	}
	must(t, l.Close())
	o.AcceptDamage = false
	l, rep = mustOpen(t, o, nodes)
	if rep.Rotten {
		t.Fatalf("%+v", rep)
	}
	got := readAllOf(t, mustDevice(t, l, 1))
	if !bytes.Equal(got[5000:5500], stamp(500, 5)) || !bytes.Equal(got[2000:2500], make([]byte, 500)) {
		t.Fatal("other bytes")
	}
	must(t, l.Close())
}

func TestCleanUpNeitherCopiesNorLosesRottenPayload(t *testing.T) {
	o := testOptions(vfs.NewMem())
	nodes := []Node{{ID: 1, Size: 40000}}
	l := mustCreate(t, o, nodes)
	must(t, mustDevice(t, l, 1).WriteAt(bg(), stamp(12000, 1), 0))
	must(t, mustDevice(t, l, 1).WriteAt(bg(), stamp(8000, 2), 20000))
	want := readAllOf(t, mustDevice(t, l, 1))
	must(t, l.Close())
	m := takeImage(t, o.FS)
	m["0000000000000001.seg"][testForm.first()+headerBytes+tableBytes(12000)+5000] ^= 1
	o.FS = m.mount(t)
	for range 3 {
		var rep Report
		l, rep = mustOpen(t, o, nodes)
		d := mustDevice(t, l, 1)
		for i := range 20 { // makes the first segment mostly dead
			must(t, d.WriteAt(bg(), stamp(8000, uint64(i)), 20000))
			must(t, l.Clean(bg()))
		}
		copy(want[20000:], stamp(8000, 19))
		if bad, err := badBytes(d, want); err != nil || bad != blockBytes && bad != blockBytes+512 {
			t.Fatalf("%d bytes are bad, %v: %+v", bad, err, rep)
		}
		must(t, l.Close())
	}
	l, _ = mustOpen(t, o, nodes)
	must(t, overwrite(mustDevice(t, l, 1), want))
	must(t, l.Clean(bg()))
	must(t, l.Close())
	l, _ = mustOpen(t, o, nodes)
	if bad, err := badBytes(mustDevice(t, l, 1), want); bad > 0 || err != nil {
		t.Fatalf("%d bytes are bad, %v", bad, err)
	}
	must(t, l.Close())
}
