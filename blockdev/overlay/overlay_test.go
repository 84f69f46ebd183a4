package overlay

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"livemount/blockdev"
	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/keyring"
)

const testDir = "/m/log"

func bg() context.Context { return context.Background() }

// testKeys and testForm are of the logs that tests make.
var (
	testKeys *keyring.Keys
	testForm = plain
)

var testTime = time.Unix(1, 0)

// TestMain runs everything with plain logs, and then with sealed ones. Benchmarks run with those that OVERLAY_SEALED names.
func TestMain(m *testing.M) {
	flag.Parse()
	once := flag.Lookup("test.fuzz").Value.String() != "" || flag.Lookup("test.bench").Value.String() != ""
	if once && os.Getenv("OVERLAY_SEALED") != "" {
		testKeys, testForm = newKeys(), sealed
	}
	code := m.Run()
	if code == 0 && !once {
		testKeys, testForm = newKeys(), sealed
		fmt.Println("sealed:")
		code = m.Run()
	}
	os.Exit(code)
}

// usePlain is for tests of what was written before logs could be sealed.
func usePlain(t *testing.T) {
	keys, form := testKeys, testForm
	testKeys, testForm = nil, plain
	t.Cleanup(func() { testKeys, testForm = keys, form })
}

func newKeys() *keyring.Keys {
	secret, err := keyring.KeyFile(keyring.NewKeyFile())
	if err != nil {
		panic(err)
	}
	_, keys, err := keyring.Create([16]byte{4, 5, 6}, keyring.NewSlot{Secret: secret, Created: testTime})
	if err != nil {
		panic(err)
	}
	return keys
}

func testOptions(fsys vfs.FS) Options {
	return Options{
		FS: fsys, Dir: testDir, Mount: [16]byte{1, 2, 3}, Clock: &clock.Fixed{}, Keys: testKeys,
		SegmentBytes: 32 << 10, PrewriteBytes: 4 << 10, NoBackground: true,
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustCreate(t testing.TB, o Options, nodes []Node) *Log {
	t.Helper()
	must(t, o.FS.MkdirAll("/m"))
	l, err := Create(bg(), o, nodes)
	must(t, err)
	return l
}

func mustOpen(t testing.TB, o Options, nodes []Node) (*Log, Report) {
	t.Helper()
	l, rep, err := Open(bg(), o, nodes)
	must(t, err)
	return l, rep
}

func mustDevice(t testing.TB, l *Log, id uint64) blockdev.Device {
	t.Helper()
	d, err := l.Device(id)
	must(t, err)
	return d
}

func readAllOf(t testing.TB, d blockdev.Device) []byte {
	t.Helper()
	p := make([]byte, d.Size())
	must(t, d.ReadAt(bg(), p, 0))
	return p
}

func wantKind(t testing.TB, err error, k errs.Kind) {
	t.Helper()
	if !errs.Is(err, k) {
		t.Fatalf("error %v, want kind %v", err, k)
	}
}

// pattern fills a base that differs at each offset.
func pattern(size int64, seed uint64) *blockdev.Mem {
	rng := rand.New(rand.NewPCG(seed, 7))
	p := make([]byte, size)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	m := blockdev.NewMem(size)
	_ = m.WriteAt(bg(), p, 0)
	return m
}

func stamp(n int, v uint64) []byte {
	p := make([]byte, n)
	rng := rand.New(rand.NewPCG(v, 99))
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

// step is one action of a history on the model and on the log.
type step struct {
	op      int // 0 write, 1 zero
	node    int
	off, n  int64
	payload []byte
}

func (s step) apply(m [][]byte) {
	if s.op == 1 {
		clear(m[s.node][s.off : s.off+s.n])
		return
	}
	copy(m[s.node][s.off:], s.payload)
}

func (s step) run(devs []blockdev.Device) error {
	if s.op == 1 {
		return devs[s.node].Zero(bg(), s.off, s.n)
	}
	return devs[s.node].WriteAt(bg(), s.payload, s.off)
}

func (s step) String() string { return fmt.Sprintf("op %d node %d %d+%d", s.op, s.node, s.off, s.n) }

func modelOf(t testing.TB, nodes []Node) [][]byte {
	t.Helper()
	var m [][]byte
	for _, n := range nodes {
		p := make([]byte, n.Size)
		if n.Base != nil {
			must(t, n.Base.ReadAt(bg(), p[:min(n.Size, n.Base.Size())], 0))
		}
		m = append(m, p)
	}
	return m
}

func devicesOf(t testing.TB, l *Log, nodes []Node) []blockdev.Device {
	t.Helper()
	var list []blockdev.Device
	for _, n := range nodes {
		list = append(list, mustDevice(t, l, n.ID))
	}
	return list
}
