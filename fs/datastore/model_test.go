package datastore_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	iofs "io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"livemount/blockdev"
	"livemount/fs"
	"livemount/fs/datastore/dstest"
	"livemount/internal/clock"
	"livemount/internal/vfs"
	"livemount/test/harness"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// dump tells all but the times of a datastore.
func dump(t testing.TB, s fs.Served) string {
	t.Helper()
	var b strings.Builder
	var walk func(f fs.Folder, path string)
	walk = func(f fs.Folder, path string) {
		list, err := f.List(t.Context(), 0, 1<<20)
		must(t, err)
		slices.SortFunc(list, func(a, b fs.Entry) int { return strings.Compare(a.Name, b.Name) })
		for _, e := range list {
			n, err := f.Lookup(t.Context(), e.Name)
			must(t, err)
			a := n.Attr()
			fmt.Fprintf(&b, "%s/%s %d %v %d:%d links %d size %d", path, e.Name, a.ID, a.Mode, a.UID, a.GID, a.Links, a.SizeBytes)
			switch n := n.(type) {
			case fs.Folder:
				b.WriteByte('\n')
				walk(n, path+"/"+e.Name)
			case fs.Link:
				to, err := n.Target(t.Context())
				must(t, err)
				fmt.Fprintf(&b, " -> %s\n", to)
			case fs.Regular:
				p := make([]byte, min(n.Size(), 1<<20))
				must(t, n.ReadAt(t.Context(), p, 0))
				fmt.Fprintf(&b, " %x\n", sha256.Sum256(p))
			}
		}
	}
	walk(s.Root(), "")
	return b.String()
}

// world makes random changes to a datastore.
type world struct {
	t     testing.TB
	rng   *rand.Rand
	mem   *vfs.Mem
	clock *clock.Fixed
	disk  *blockdev.Mem
	ds    *dstest.Opened
	past  []string             // what the datastore was since the last sync, and then
	ids   map[fs.NodeID]string // that were used
	kept  map[fs.NodeID]string // of these, as of the last sync
	key   byte
	calls map[fs.CallKey]string
}

func newWorld(t testing.TB, seed uint64) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 7)), mem: vfs.NewMem(), clock: &clock.Fixed{T: time.Unix(1e9, 0)},
		disk: blockdev.NewMem(50_000), ids: map[fs.NodeID]string{}, kept: map[fs.NodeID]string{}, calls: map[fs.CallKey]string{}}
	must(t, w.disk.WriteAt(context.Background(), []byte("the disk of the point"), 1000))
	w.open()
	must(t, w.ds.Sync(context.Background()))
	w.past = []string{dump(t, w.ds)}
	return w
}

func (w *world) open() {
	w.t.Helper()
	ds, err := dstest.Open(context.Background(), dstest.Options{FS: w.mem, Clock: w.clock, Disk: w.disk, SegmentBytes: 64 << 10})
	must(w.t, err)
	w.ds = ds
}

// pick returns a random node and its folder and name; the root is one of them.
func (w *world) pick() (n fs.Node, dir fs.NodeID, name string) {
	n, dir = w.ds.Root(), fs.RootID
	for w.rng.IntN(4) > 0 {
		f, ok := n.(fs.Folder)
		if !ok {
			break
		}
		list, err := f.List(context.Background(), 0, 1000)
		must(w.t, err)
		if len(list) == 0 {
			break
		}
		e := list[w.rng.IntN(len(list))]
		dir, name = f.ID(), e.Name
		n, err = f.Lookup(context.Background(), name)
		must(w.t, err)
	}
	return n, dir, name
}

func (w *world) folder() fs.NodeID {
	n, dir, _ := w.pick()
	if _, ok := n.(fs.Folder); ok {
		return n.ID()
	}
	return dir
}

func (w *world) name() string { return fmt.Sprintf("n%d", w.rng.IntN(12)) }

// call names a call and remembers the answer that is logged with it.
func (w *world) call() *fs.Call {
	if w.rng.IntN(3) == 0 {
		return nil
	}
	w.key++
	k := fs.CallKey{w.key, byte(w.rng.IntN(256)), byte(w.rng.IntN(256))}
	return &fs.Call{Key: k, Reply: func(o *fs.Outcome, err error) []byte {
		b := fmt.Sprintf("%v %v %d", err, o.Made, o.Node.ID)
		w.calls[k] = b
		return []byte(b)
	}}
}

// act makes one change. Refusals are as good as changes.
func (w *world) act() error {
	ctx := context.Background()
	w.clock.Advance(time.Duration(w.rng.IntN(900)) * time.Millisecond)
	n, dir, name := w.pick()
	size := int64(w.rng.IntN(30_000))
	perm := uint32(w.rng.IntN(0o10000))
	switch w.rng.IntN(11) {
	case 0, 1:
		m := fs.Make{Type: []iofs.FileMode{0, iofs.ModeDir, iofs.ModeSymlink}[w.rng.IntN(3)], Exist: fs.Exist(w.rng.IntN(3)), Verifier: uint64(w.rng.IntN(3))}
		if m.Type == iofs.ModeSymlink {
			m.Target = "somewhere"
		}
		if m.Set = (fs.SetAttr{Perm: &perm}); m.Type == 0 && w.rng.IntN(2) == 0 {
			m.Set.SizeBytes = &size
		}
		o, err := w.ds.Make(ctx, w.folder(), w.name(), m, w.call())
		if err == nil && o.Made && m.Exist != fs.Exclusive {
			if was := w.ids[o.Node.ID]; was != "" {
				return fmt.Errorf("node id %d is used again; it was %s", o.Node.ID, was)
			}
			w.ids[o.Node.ID] = name
		}
	case 2:
		_, _ = w.ds.Remove(ctx, dir, name, w.rng.IntN(3) == 0, w.call())
	case 3, 4:
		_, _ = w.ds.Rename(ctx, dir, name, w.folder(), w.name(), w.call())
	case 5:
		_, _ = w.ds.Link(ctx, n.ID(), w.folder(), w.name(), w.call())
	case 6:
		_, _ = w.ds.SetAttr(ctx, n.ID(), fs.SetAttr{Perm: &perm, UID: &perm}, time.Time{}, w.call())
	case 7:
		if n.ID() != dstest.DiskNode {
			_, _ = w.ds.SetAttr(ctx, n.ID(), fs.SetAttr{SizeBytes: &size, ModifiedNow: true}, time.Time{}, w.call())
		}
	default:
		f, ok := n.(fs.Writable)
		if !ok {
			return nil
		}
		p := make([]byte, 1+w.rng.IntN(9000))
		for i := range p {
			p[i] = byte(w.rng.IntN(256))
		}
		if off := size; f.ID() != dstest.DiskNode {
			return f.WriteAt(ctx, p, off)
		}
		return f.WriteAt(ctx, p, int64(w.rng.IntN(50_000-len(p))))
	}
	return nil
}

// crash cuts the power, and looks at what is left.
func (w *world) crash() {
	w.t.Helper()
	before := w.calls
	w.mem = w.mem.CrashClone(w.rng)
	w.open()
	now := dump(w.t, w.ds)
	at := slices.Index(w.past, now)
	if at < 0 {
		w.t.Fatalf("after a crash the datastore is as it never was:\n%s\nit was:\n%s", now, w.past[len(w.past)-1])
	}
	w.past, w.calls = []string{now}, map[fs.CallKey]string{}
	w.ids = maps.Clone(w.kept)
	for k, want := range before {
		if got, ok := w.ds.Reply(k); ok && string(got) != want {
			w.t.Fatalf("call %x had the answer %q, now %q", k, want, got)
		}
	}
}

func TestAfterACrashAllIsAsAtOneMoment(t *testing.T) {
	first := harness.Seed(t)
	for seed := first; seed < first+uint64(harness.Soak(60, 2000)); seed++ {
		w := newWorld(t, seed)
		for range 120 {
			switch k := w.rng.IntN(40); {
			case k == 0:
				w.crash()
			case k == 1:
				must(t, w.ds.Log.Clean(t.Context()))
			case k == 2:
				must(t, w.ds.Close(t.Context()))
				w.open()
				if now := dump(t, w.ds); now != w.past[len(w.past)-1] {
					t.Fatalf("seed %d: closed as\n%s\nopened as\n%s", seed, w.past[len(w.past)-1], now)
				}
				for k, want := range w.calls {
					if got, ok := w.ds.Reply(k); !ok || string(got) != want {
						t.Fatalf("seed %d: call %x had the answer %q, now %q", seed, k, want, got)
					}
				}
				w.past, w.kept = w.past[len(w.past)-1:], maps.Clone(w.ids)
			case k < 6:
				must(t, w.ds.Sync(t.Context()))
				w.past, w.kept = w.past[len(w.past)-1:], maps.Clone(w.ids)
			default:
				if err := w.act(); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				w.past = append(w.past, dump(t, w.ds))
			}
		}
		w.crash()
	}
}
