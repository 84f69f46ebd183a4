package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"livemount/blockdev"
	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/snapshotchain"
)

// source is a device in memory.
type source struct{ *blockdev.Mem }

func (source) Check(context.Context) error { return nil }
func (source) Changed() string             { return "" }

func open(t *testing.T, dir string) *snapshotchain.Store {
	t.Helper()
	s, err := snapshotchain.Open(t.Context(), snapshotchain.Options{Dir: dir, FS: vfs.OS{}, Clock: clock.System{}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func backup(t *testing.T, s *snapshotchain.Store, disks ...Disk) snapshotchain.Point {
	t.Helper()
	var c Counters
	p, err := Run(t.Context(), s, Request{VM: "web", Disks: disks}, &c, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func content(t *testing.T, s *snapshotchain.Store, p snapshotchain.Point, disk string) []byte {
	t.Helper()
	d, err := s.OpenDisk(t.Context(), p.Disk(disk))
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, d.Size())
	if err := d.ReadAt(t.Context(), b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func fillRandom(rng *rand.Rand, p []byte) {
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
}

func write(t *testing.T, m *blockdev.Mem, p []byte, off int64) {
	t.Helper()
	if err := m.WriteAt(t.Context(), p, off); err != nil {
		t.Fatal(err)
	}
}

func snapshot(t *testing.T, m *blockdev.Mem) []byte {
	t.Helper()
	b := make([]byte, m.Size())
	if err := m.ReadAt(t.Context(), b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEveryPointReadsAsItsSourceWas(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	dir := t.TempDir()
	s := open(t, dir)
	m := blockdev.NewMem(40<<20 + 1536)
	var want [][]byte
	var points []snapshotchain.Point
	for round := range 24 {
		var changed []snapshotchain.ByteRange
		off := int64(0)
		for off < m.Size()-1<<20 {
			n := int64(1 + rng.IntN(200<<10))
			p := make([]byte, n)
			if rng.IntN(4) > 0 {
				fillRandom(rng, p)
			}
			write(t, m, p, off)
			changed = append(changed, snapshotchain.ByteRange{Offset: off, Length: n})
			off += n + int64(rng.IntN(4<<20))
		}
		d := Disk{Name: "sda", Source: source{m}}
		switch round % 4 {
		case 1, 2:
			d.Changed, d.Listed = changed, true
		case 3:
			d.Full = round%8 == 3
		}
		points = append(points, backup(t, s, d))
		want = append(want, snapshot(t, m))
	}
	check := func() {
		t.Helper()
		for i := range points {
			if !bytes.Equal(content(t, s, points[i], "sda"), want[i]) {
				t.Fatalf("point %d differs", i)
			}
		}
	}
	check()
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	defer s.Close(t.Context())
	check()
	vm, err := s.VM("web")
	if err != nil {
		t.Fatal(err)
	}
	list, err := s.Points(t.Context(), &vm)
	if err != nil || len(list) != len(points) {
		t.Fatal(len(list), err)
	}
}

func TestTheRootHashDependsOnContentAlone(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	s := open(t, t.TempDir())
	defer s.Close(t.Context())
	m := blockdev.NewMem(20 << 20)
	p := make([]byte, 9<<20)
	fillRandom(rng, p)
	write(t, m, p, 3<<20)
	first := backup(t, s, Disk{Name: "sda", Source: source{m}})
	write(t, m, p[:5000], 100)
	write(t, m, make([]byte, 1<<20), 5<<20)
	inc := backup(t, s, Disk{Name: "sda", Source: source{m}})
	full := backup(t, s, Disk{Name: "sda", Source: source{m}, Full: true})
	if inc.Disks[0].Root != full.Disks[0].Root || inc.Disks[0].DataBytes != full.Disks[0].DataBytes {
		t.Fatalf("increment %v %d, full %v %d", inc.Disks[0].Root, inc.Disks[0].DataBytes, full.Disks[0].Root, full.Disks[0].DataBytes)
	}
	if inc.Disks[0].Root == first.Disks[0].Root {
		t.Fatal("different content, same root")
	}
	if full.Disks[0].StoredBytes > 1<<20 {
		t.Fatalf("a full of known content stored %d bytes", full.Disks[0].StoredBytes)
	}
}

func TestWhatAShrunkDiskLostDoesNotComeBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	s := open(t, t.TempDir())
	defer s.Close(t.Context())
	big := blockdev.NewMem(30<<20 + 512)
	p := make([]byte, 30<<20)
	fillRandom(rng, p)
	write(t, big, p, 0)
	backup(t, s, Disk{Name: "sda", Source: source{big}})
	small := blockdev.NewMem(9<<20 + 100)
	write(t, small, p[:9<<20], 0)
	cut := backup(t, s, Disk{Name: "sda", Source: source{small}})
	again := blockdev.NewMem(25 << 20)
	write(t, again, p[:9<<20], 0)
	grown := backup(t, s, Disk{Name: "sda", Source: source{again}, Listed: true})
	if !bytes.Equal(content(t, s, cut, "sda"), snapshot(t, small)) || !bytes.Equal(content(t, s, grown, "sda"), snapshot(t, again)) {
		t.Fatal("content differs")
	}
	full := backup(t, s, Disk{Name: "sda", Source: source{again}, Full: true})
	if full.Disks[0].Root != grown.Disks[0].Root {
		t.Fatal("root hash differs after shrinking and growing")
	}
}

func TestAnAbortedDraftLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	defer s.Close(t.Context())
	rng := rand.New(rand.NewPCG(7, 8))
	m := blockdev.NewMem(8 << 20)
	p := make([]byte, 8<<20)
	fillRandom(rng, p)
	write(t, m, p, 0)
	backup(t, s, Disk{Name: "sda", Source: source{m}})
	before := s.Stats()
	fillRandom(rng, p)
	write(t, m, p, 0)
	ctx, cancel := context.WithCancel(t.Context())
	var c Counters
	_, err := Run(ctx, s, Request{VM: "web", Disks: []Disk{{Name: "sda", Source: source{m}}}}, &c, func(step string) {
		if step == "seal" {
			cancel()
		}
	})
	if err == nil {
		t.Fatal("sealed after cancel")
	}
	if after := s.Stats(); after.Points != before.Points || after.StoredBytes != before.StoredBytes {
		t.Fatalf("%+v, then %+v", before, after)
	}
	backup(t, s, Disk{Name: "sda", Source: source{m}})
}

// slow is a source whose reads take turns with everything else.
type slow struct {
	source
	rng *rand.Rand // used by the one reader
}

func (s slow) ReadAt(ctx context.Context, p []byte, off int64) error {
	for range s.rng.IntN(50) {
		runtime.Gosched()
	}
	return s.source.ReadAt(ctx, p, off)
}

// TestTheSameInputIsCutAlikeWhateverTheTiming takes one disk in with different numbers of cores: the root hash
// is the same, and nothing but the first costs space.
func TestTheSameInputIsCutAlikeWhateverTheTiming(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close(t.Context())
	rng := rand.New(rand.NewPCG(31, 32))
	m := blockdev.NewMem(64 << 20)
	for off := int64(0); off < m.Size()-2<<20; off += int64(rng.IntN(3 << 20)) {
		p := make([]byte, 1+rng.IntN(2<<20))
		fillRandom(rng, p)
		write(t, m, p, off)
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	var first *snapshotchain.PointDisk
	for i, cores := range []int{1, 2, 3, 8} {
		runtime.GOMAXPROCS(cores)
		var c Counters
		vm := fmt.Sprintf("vm%d", i)
		p, err := Run(t.Context(), s, Request{VM: vm, Disks: []Disk{{Name: "sda", Source: slow{source{m}, rng}}}}, &c, func(string) {})
		if err != nil {
			t.Fatal(err)
		}
		d := p.Disk("sda")
		if first == nil {
			first = d
			continue
		}
		if d.Root != first.Root || d.DataBytes != first.DataBytes || d.StoredBytes > 64<<10 {
			t.Fatalf("%d cores: root %s, %d stored; one core: root %s", cores, d.Root, d.StoredBytes, first.Root)
		}
	}
}

// TestPackingKeepsEveryPage packs what was stored fast, while somebody reads it.
func TestPackingKeepsEveryPage(t *testing.T) {
	dir := t.TempDir()
	o := snapshotchain.Options{Dir: dir, FS: vfs.OS{}, Clock: clock.System{}, ContainerBytes: 256 << 10, ChunkCache: 1}
	s, err := snapshotchain.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	m := blockdev.NewMem(12 << 20)
	p := make([]byte, 8<<20)
	rng := rand.New(rand.NewPCG(21, 22))
	for i := 0; i < len(p); i += 8 {
		copy(p[i:], fmt.Sprintf("%08x", rng.IntN(4000)*7919))
	}
	write(t, m, p, 0)
	var c Counters
	fast, err := Run(t.Context(), s, Request{VM: "web", Disks: []Disk{{Name: "sda", Source: source{m}}}, Level: snapshotchain.Level(1)}, &c, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	before := s.Unpacked()
	if before < 1<<20 {
		t.Fatalf("%d bytes to be packed", before)
	}
	d, err := s.OpenDisk(t.Context(), fast.Disk("sda"))
	if err != nil {
		t.Fatal(err)
	}
	reading, stop := make(chan error, 1), make(chan struct{})
	go func() {
		b := make([]byte, 64<<10)
		for i := int64(0); ; i = (i + 37) % 128 {
			select {
			case <-stop:
				reading <- nil
				return
			default:
			}
			if err := d.ReadAt(t.Context(), b, i*64<<10); err != nil || !bytes.Equal(b, p[i*64<<10:][:64<<10]) {
				reading <- fmt.Errorf("piece %d: %v", i, err)
				return
			}
		}
	}()
	freed, err := s.Pack(t.Context())
	close(stop)
	if err := errors.Join(err, <-reading); err != nil || freed < before/20 || s.Unpacked() != 0 {
		t.Fatalf("freed %d of %d, %d left: %v", freed, before, s.Unpacked(), err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s, err = snapshotchain.Open(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context())
	if !bytes.Equal(content(t, s, fast, "sda"), snapshot(t, m)) {
		t.Fatal("content differs")
	}
	if again := backup(t, s, Disk{Name: "sda", Source: source{m}, Full: true}); again.Disks[0].StoredBytes > 64<<10 {
		t.Fatalf("a full of packed content stored %d bytes", again.Disks[0].StoredBytes)
	}
}

// TestPackingTellsOfDamage flips a byte of what was stored fast: packing finds it, and the next backup stores
// again what the source still has.
func TestPackingTellsOfDamage(t *testing.T) {
	dir := t.TempDir()
	o := snapshotchain.Options{Dir: dir, FS: vfs.OS{}, Clock: clock.System{}, ContainerBytes: 256 << 10}
	reopen := func() *snapshotchain.Store {
		s, err := snapshotchain.Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := reopen()
	m := blockdev.NewMem(4 << 20)
	p := make([]byte, 3<<20)
	fillRandom(rand.New(rand.NewPCG(41, 42)), p)
	write(t, m, p, 0)
	var c Counters
	if _, err := Run(t.Context(), s, Request{VM: "web", Disks: []Disk{{Name: "sda", Source: source{m}}}, Level: snapshotchain.Level(1)}, &c, func(string) {}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "containers", "data", "*", "*.lmc"))
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	b, err := os.ReadFile(files[1])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 4
	if err := os.WriteFile(files[1], b, 0o600); err != nil {
		t.Fatal(err)
	}
	s = reopen()
	defer s.Close(t.Context())
	if _, err := s.Pack(t.Context()); err != nil {
		t.Fatal(err)
	}
	if damage, _ := s.Health(); len(damage) == 0 {
		t.Error("nobody was told")
	}
	again := backup(t, s, Disk{Name: "sda", Source: source{m}, Full: true})
	if !bytes.Equal(content(t, s, again, "sda"), snapshot(t, m)) || again.Disks[0].StoredBytes == 0 {
		t.Error("the new point is not what the source holds")
	}
}

func TestAListIsNotUsedAgainstAnOlderPoint(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close(t.Context())
	a, b := blockdev.NewMem(1<<20), blockdev.NewMem(1<<20)
	write(t, a, []byte("first"), 0)
	write(t, b, []byte("other"), 0)
	backup(t, s, Disk{Name: "a", Source: source{a}})
	backup(t, s, Disk{Name: "b", Source: source{b}})
	write(t, a, []byte("second"), 0) // before the newest point, so a list since then does not name it
	backup(t, s, Disk{Name: "b", Source: source{b}})
	p := backup(t, s, Disk{Name: "a", Source: source{a}, Listed: true}, Disk{Name: "b", Source: source{b}, Listed: true})
	if !bytes.Equal(content(t, s, p, "a"), snapshot(t, a)) {
		t.Fatal("the point holds old bytes")
	}
	if p.Disk("a").Mode != "compare" || p.Disk("b").Mode != "list" || len(p.Notes) != 1 {
		t.Fatalf("%+v", p)
	}
}

func TestADiskThatShrankToPartOfAPageHasTheRootOfItsContent(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close(t.Context())
	m := blockdev.NewMem(64 << 10)
	p := make([]byte, 64<<10)
	fillRandom(rand.New(rand.NewPCG(9, 9)), p)
	write(t, m, p, 0)
	backup(t, s, Disk{Name: "sda", Source: source{m}})
	small := blockdev.NewMem(10_000)
	write(t, small, p[:10_000], 0)
	listed := backup(t, s, Disk{Name: "sda", Source: source{small}, Listed: true})
	full := backup(t, s, Disk{Name: "sda", Source: source{small}, Full: true})
	if listed.Disks[0].Root != full.Disks[0].Root {
		t.Fatal("root hash differs")
	}
}

func TestTheNextBackupStoresAgainWhatWasFoundBad(t *testing.T) {
	for _, part := range []struct {
		name string
		at   int // in the record
	}{{"payload", 2000}, {"header", 30}} {
		t.Run(part.name, func(t *testing.T) { storesAgain(t, part.at) })
	}
}

// storesAgain spoils a byte of a record, lets a read find it, and backs up once more: compared with the point
// before, or, when its page hashes are lost too, in full.
func storesAgain(t *testing.T, at int) {
	dir := t.TempDir()
	s := open(t, dir)
	m := blockdev.NewMem(4 << 20)
	p := make([]byte, 4<<20)
	fillRandom(rand.New(rand.NewPCG(10, 10)), p)
	write(t, m, p, 0)
	first := backup(t, s, Disk{Name: "sda", Source: source{m}})
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "containers", "data", "*", "*.lmc"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	b[bytes.Index(b[1<<20:], []byte("LMR1"))+(1<<20)+at] ^= 1
	if err := os.WriteFile(files[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	defer s.Close(t.Context())
	d, err := s.OpenDisk(t.Context(), first.Disk("sda"))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.ReadAt(t.Context(), make([]byte, 4<<20), 0); !errs.Is(err, errs.Corrupt) {
		t.Fatal(err)
	}
	var c Counters
	again, err := Run(t.Context(), s, Request{VM: "web", Disks: []Disk{{Name: "sda", Source: source{m}}}}, &c, func(string) {})
	if errs.Is(err, errs.Corrupt) && errs.TryOf(err) != "" {
		again, err = backup(t, s, Disk{Name: "sda", Source: source{m}, Full: true}), nil
	}
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(content(t, s, again, "sda"), p) || again.Disks[0].Root != first.Disks[0].Root {
		t.Fatal("the new point is not what the source holds")
	}
	if n := again.Disks[0].StoredBytes; n == 0 || n > 1<<20 {
		t.Fatalf("stored %d bytes", n)
	}
}
