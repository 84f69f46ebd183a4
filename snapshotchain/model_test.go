package snapshotchain_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"livemount/blockdev"
	"livemount/ingest"
	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/keyring"
	"livemount/snapshotchain"
)

const page = blockdev.PageSize

// sparse is a disk of the model: pages by number; those that are missing are zeroes. A page is never
// changed once it is in a map, so that a copy of the map is a copy of the disk.
type sparse struct {
	size  int64
	pages map[int64]*[page]byte
	fail  func() error // asked before each read; nil never fails
}

func (s *sparse) clone() *sparse { return &sparse{size: s.size, pages: maps.Clone(s.pages)} }

func (s *sparse) Size() int64                 { return s.size }
func (s *sparse) Close() error                { return nil }
func (s *sparse) Check(context.Context) error { return nil }
func (s *sparse) Changed() string             { return "" }

func (s *sparse) ReadAt(_ context.Context, p []byte, off int64) error {
	if s.fail != nil {
		if err := s.fail(); err != nil {
			return err
		}
	}
	for i := 0; i < len(p); {
		no, in := (off+int64(i))/page, (off+int64(i))%page
		n := min(len(p)-i, int(page-in))
		if pg := s.pages[no]; pg != nil {
			copy(p[i:i+n], pg[in:])
		} else {
			clear(p[i : i+n])
		}
		i += n
	}
	return nil
}

func (s *sparse) Extents(_ context.Context, off, n int64) iter.Seq2[blockdev.Extent, error] {
	return func(yield func(blockdev.Extent, error) bool) {
		end := off + n
		for _, no := range slices.Sorted(maps.Keys(s.pages)) {
			from, to := max(off, no*page), min(end, no*page+page)
			if to <= from {
				continue
			}
			if from > off && !yield(blockdev.Extent{Off: off, Len: from - off, Kind: blockdev.Hole}, nil) {
				return
			}
			if !yield(blockdev.Extent{Off: from, Len: to - from, Kind: blockdev.Data}, nil) {
				return
			}
			off = to
		}
		if off < end {
			yield(blockdev.Extent{Off: off, Len: end - off, Kind: blockdev.Hole}, nil)
		}
	}
}

// set writes a page whose content follows from v; 0 is zeroes.
func (s *sparse) set(no int64, v uint64) {
	if no*page >= s.size || v == 0 {
		delete(s.pages, no)
		return
	}
	var p [page]byte
	rng := rand.New(rand.NewPCG(v, 1))
	for i := 0; i < page; i += 8 {
		w := rng.Uint64()
		if i%512 >= 256 { // half of it compresses
			w = v
		}
		for j := range 8 {
			p[i+j] = byte(w >> (8 * j))
		}
	}
	if tail := s.size - no*page; tail < page {
		clear(p[tail:])
	}
	s.put(no, &p)
}

// put keeps a page unless it is all zeroes.
func (s *sparse) put(no int64, p *[page]byte) {
	if blockdev.IsZero(p[:]) {
		delete(s.pages, no)
		return
	}
	s.pages[no] = p
}

func (s *sparse) resize(size int64) {
	s.size = size
	for no, p := range s.pages {
		switch tail := size - no*page; {
		case tail <= 0:
			delete(s.pages, no)
		case tail < page:
			cut := *p
			clear(cut[tail:])
			s.put(no, &cut)
		}
	}
}

// sealed is a point of the model.
type sealed struct {
	id     snapshotchain.PointID
	disks  map[string]*sparse
	config string
	held   bool
}

// machine runs a store beside the model.
type machine struct {
	t     *rapid.T
	fs    *vfs.Mem
	dir   string // of Badger
	root  string
	n     int
	store *snapshotchain.Store
	clock *clock.Fixed
	keys  *keyring.Keys // nil when the store is not encrypted
	ops   atomic.Int64  // operations on files until one fails; negative never
	older string        // a copy of Badger's folder of an earlier moment

	disks  map[string]map[string]*sparse // VM or branch, disk
	from   map[string]branch             // branches
	dirty  map[string]map[string][]int64 // pages written since the last point
	points map[string][]sealed           // VM
	maybe  map[string]*sealed            // a backup that failed: it is there, or not
}

var errDisk = errors.New("input/output error (injected)")

func (m *machine) faulty() vfs.FS {
	return &vfs.Faulty{FS: m.fs, Fail: func(op vfs.Op, _ string) error {
		if op == vfs.OpRead || op == vfs.OpOpen || m.ops.Load() < 0 {
			return nil
		}
		if m.ops.Add(-1) <= 0 {
			m.ops.Store(0)
			return errDisk
		}
		return nil
	}}
}

func (m *machine) open() {
	m.ops.Store(-1)
	s, err := snapshotchain.Open(context.Background(), snapshotchain.Options{
		Dir: m.dir, Keys: m.keys, FS: m.faulty(), Containers: "/c", Clock: m.clock, ContainerBytes: 192 << 10, ChunkCache: 1 << 20, LeafCache: 1 << 20, ScatterLimit: 5,
	})
	if err != nil {
		m.t.Fatalf("open: %v", err)
	}
	m.store = s
}

func (m *machine) close() {
	m.ops.Store(-1)
	if err := m.store.Close(context.Background()); err != nil {
		m.t.Fatalf("close: %v", err)
	}
}

// crash is a power cut: containers lose what was not synced, Badger is as it was on disk, or as it was
// before, or gone, or has a flipped byte.
func (m *machine) crash(rng *rand.Rand, badger string) {
	clone := m.fs.CrashClone(rng)
	next := filepath.Join(m.root, fmt.Sprintf("s%d", m.n))
	m.n++
	src := m.dir
	if badger == "older" && m.older != "" {
		src = m.older
	}
	copyDir(m.t, src, next)
	m.ops.Store(-1)
	m.store.Close(context.Background()) // its files are not looked at any more
	os.RemoveAll(m.dir)
	m.dir, m.fs = next, clone
	switch badger {
	case "gone":
		os.RemoveAll(filepath.Join(next, "meta"))
	case "flipped":
		flip(m.t, rng, filepath.Join(next, "meta"))
	}
	m.open()
}

// copyDir copies what is there. Badger may remove files meanwhile: then the copy is a state that no crash
// leaves, which must do no harm either.
func copyDir(t *rapid.T, from, to string) {
	err := filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return ignoreGone(err)
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		return ignoreGone(copySparse(path, filepath.Join(to, rel)))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// copySparse copies the data of a file; Badger's are mostly holes.
func copySparse(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	for off := int64(0); off < info.Size(); {
		data, err := unix.Seek(int(in.Fd()), off, unix.SEEK_DATA)
		if err != nil {
			break // ENXIO: only a hole is left
		}
		hole, err := unix.Seek(int(in.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, data), io.NewSectionReader(in, data, hole-data)); err != nil {
			return err
		}
		off = hole
	}
	return out.Truncate(info.Size())
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// flip spoils a byte of a file that holds content.
func flip(t *rapid.T, rng *rand.Rand, dir string) {
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) == 0 {
		t.Fatal("no files to spoil", err)
	}
	path := files[rng.IntN(len(files))]
	b, err := os.ReadFile(path)
	if err != nil || len(b) == 0 {
		return
	}
	last := len(b)
	for last > 1 && b[last-1] == 0 {
		last--
	}
	b[rng.IntN(last)] ^= 1 << rng.IntN(8)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// branch is where a branch began.
type branch struct {
	vm string
	at snapshotchain.PointID
}

// request is a backup of a VM or a commit to a branch.
func (m *machine) request(name string) ingest.Request {
	b, ok := m.from[name]
	if !ok {
		return ingest.Request{VM: name}
	}
	v, err := m.store.VM(b.vm)
	if err != nil {
		m.t.Fatal(err)
	}
	req := ingest.Request{VM: name, Branch: &snapshotchain.Branch{VM: v.ID, Name: name, Parent: b.at}, From: &snapshotchain.Point{}}
	if have, err := m.store.VM(name); err == nil {
		req.Branch.Parent = have.Latest
		return req // its disks are continued
	}
	points, err := m.store.Points(context.Background(), &v)
	if err != nil {
		m.t.Fatal(err)
	}
	for i := range points {
		if points[i].ID == b.at {
			req.From = &points[i]
		}
	}
	return req
}

func (m *machine) backup(vm, mode string, fail func() error) error {
	req := m.request(vm)
	next := sealed{disks: map[string]*sparse{}, config: "configuration of " + vm}
	for _, name := range slices.Sorted(maps.Keys(m.disks[vm])) {
		copied := m.disks[vm][name].clone()
		next.disks[name] = copied
		src := *copied
		src.fail = fail
		d := ingest.Disk{Name: name, Source: &src, Full: mode == "full"}
		if mode == "list" {
			d.Listed = true
			for _, no := range m.dirty[vm][name] {
				if no*page < copied.size {
					d.Changed = append(d.Changed, snapshotchain.ByteRange{Offset: no * page, Length: min(page, copied.size-no*page)})
				}
			}
		}
		req.Disks = append(req.Disks, d)
	}
	req.Info.Config = []byte(next.config)
	req.Level = snapshotchain.Level(rapid.IntRange(0, 1).Draw(m.t, "level")) // default or fast
	m.clock.Advance(time.Second)
	var c ingest.Counters
	p, err := ingest.Run(context.Background(), m.store, req, &c, func(string) {})
	if err != nil {
		m.maybe[vm] = &next
		return err
	}
	next.id = p.ID
	m.points[vm] = append(m.points[vm], next)
	m.maybe[vm] = nil
	m.dirty[vm] = map[string][]int64{}
	return nil
}

// check compares everything that the store says with the model.
func (m *machine) check() {
	ctx := context.Background()
	for vm, want := range m.points {
		v, err := m.store.VM(vm)
		if err != nil && len(want) == 0 && m.maybe[vm] == nil {
			continue
		}
		var got []snapshotchain.Point
		if err == nil {
			got, err = m.store.Points(ctx, &v)
		}
		if err != nil && (len(want) > 0) {
			m.t.Fatalf("points of %s: %v", vm, err)
		}
		if len(got) == len(want)+1 && m.maybe[vm] != nil {
			m.maybe[vm].id = got[len(want)].ID
			want = append(want, *m.maybe[vm])
			m.points[vm], m.dirty[vm] = want, nil
			m.dirty[vm] = map[string][]int64{}
			for name := range m.disks[vm] { // what was written since the failed backup is not known apart
				m.dirty[vm][name] = slices.Sorted(maps.Keys(m.everUsed(vm, name)))
			}
		}
		m.maybe[vm] = nil
		if len(got) != len(want) {
			m.t.Fatalf("%s has %d points, want %d", vm, len(got), len(want))
		}
		for i := range got {
			m.checkPoint(vm, &got[i], &want[i])
		}
	}
}

func (m *machine) everUsed(vm, disk string) map[int64]bool {
	used := map[int64]bool{}
	for _, p := range m.points[vm] {
		if d := p.disks[disk]; d != nil {
			for no := range d.pages {
				used[no] = true
			}
		}
	}
	for no := range m.disks[vm][disk].pages {
		used[no] = true
	}
	return used
}

func (m *machine) checkPoint(vm string, got *snapshotchain.Point, want *sealed) {
	ctx := context.Background()
	if got.ID != want.id || len(got.Disks) != len(want.disks) {
		m.t.Fatalf("%s: point %s with %d disks, want %s with %d", vm, got.ID, len(got.Disks), want.id, len(want.disks))
	}
	if g := m.store.GuardOf(got); (len(g.Holds) > 0) != want.held {
		m.t.Fatalf("%s: point %s has the holds %v, want %v", vm, got.ID, g.Holds, want.held)
	}
	if c, err := m.store.Config(ctx, got); err != nil || string(c) != want.config {
		m.t.Fatalf("%s: configuration %q: %v", vm, c, err)
	}
	for i := range got.Disks {
		d, err := m.store.OpenDisk(ctx, &got.Disks[i])
		if err != nil {
			m.t.Fatal(err)
		}
		if proof, err := m.store.Verify(ctx, &got.Disks[i], nil); err != nil || len(proof.Bad) > 0 {
			m.t.Fatalf("%s/%s: %+v: %v", vm, got.Disks[i].Name, proof, err)
		}
		w := want.disks[got.Disks[i].Name]
		if d.Size() != w.size || got.Disks[i].DataBytes != int64(len(w.pages))*page {
			m.t.Fatalf("%s/%s: size %d data %d, want %d and %d pages", vm, got.Disks[i].Name, d.Size(), got.Disks[i].DataBytes, w.size, len(w.pages))
		}
		m.checkDisk(d, w)
	}
}

func (m *machine) checkDisk(d *snapshotchain.Disk, want *sparse) {
	ctx := context.Background()
	next := int64(0)
	for e, err := range d.Extents(ctx, 0, d.Size()) {
		if err != nil {
			m.t.Fatal(err)
		}
		if e.Off != next || e.Len <= 0 {
			m.t.Fatalf("extent %+v behind %d", e, next)
		}
		next = e.End()
		if e.Kind != blockdev.Data {
			continue
		}
		for no := e.Off / page; no*page < e.End(); no++ {
			if want.pages[no] == nil {
				m.t.Fatalf("page %d is data, want a hole", no)
			}
		}
	}
	if next != d.Size() {
		m.t.Fatalf("extents end at %d of %d", next, d.Size())
	}
	for no, w := range want.pages {
		n := min(page, d.Size()-no*page)
		from := max(0, no*page-700)
		got := make([]byte, no*page+n-from)
		if err := d.ReadAt(ctx, got, from); err != nil {
			m.t.Fatal(err)
		}
		if string(got[no*page-from:]) != string(w[:n]) {
			m.t.Fatalf("page %d differs", no)
		}
	}
}

func newMachine(t *rapid.T, root string) *machine {
	m := &machine{
		t: t, fs: vfs.NewMem(), root: root, dir: filepath.Join(root, "s0"), n: 1,
		clock: &clock.Fixed{T: time.Unix(1_700_000_000, 0)},
		disks: map[string]map[string]*sparse{}, dirty: map[string]map[string][]int64{}, points: map[string][]sealed{}, maybe: map[string]*sealed{},
		from: map[string]branch{},
	}
	if err := m.fs.MkdirAll("/c"); err != nil {
		t.Fatal(err)
	}
	if rapid.IntRange(0, 2).Draw(t, "encrypted") == 2 {
		secret, err := keyring.KeyFile(keyring.NewKeyFile())
		if err == nil {
			_, m.keys, err = keyring.Create([16]byte{1}, keyring.NewSlot{Secret: secret, Created: m.clock.T})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range rapid.IntRange(1, 2).Draw(t, "vms") {
		vm := fmt.Sprintf("vm%d", i)
		m.disks[vm], m.dirty[vm], m.points[vm] = map[string]*sparse{}, map[string][]int64{}, nil
		m.addDisk(vm, "sda")
	}
	m.open()
	return m
}

func (m *machine) addDisk(vm, name string) {
	sizes := []int64{3*page + 100, 5 << 20, 17<<20 + 512, 5 << 30}
	m.disks[vm][name] = &sparse{size: rapid.SampledFrom(sizes).Draw(m.t, "size"), pages: map[int64]*[page]byte{}}
}

func (m *machine) pick() (string, string) {
	vm := rapid.SampledFrom(slices.Sorted(maps.Keys(m.disks))).Draw(m.t, "vm")
	disk := rapid.SampledFrom(slices.Sorted(maps.Keys(m.disks[vm]))).Draw(m.t, "disk")
	return vm, disk
}

func (m *machine) write(*rapid.T) {
	vm, name := m.pick()
	d := m.disks[vm][name]
	pages := (d.size + page - 1) / page
	start := rapid.Int64Range(0, pages-1).Draw(m.t, "page")
	n := rapid.Int64Range(1, 60).Draw(m.t, "pages")
	step := rapid.SampledFrom([]int64{1, 1, 1, 2, 700}).Draw(m.t, "step")
	kind := rapid.Uint64Range(0, 40).Draw(m.t, "content") // few, so that contents come again
	for i := range n {
		no := start + i*step
		if no >= pages {
			break
		}
		v := uint64(0)
		if kind > 4 {
			v = kind + uint64(i)
		}
		d.set(no, v)
		if !slices.Contains(m.dirty[vm][name], no) {
			m.dirty[vm][name] = append(m.dirty[vm][name], no)
		}
	}
	slices.Sort(m.dirty[vm][name])
}

// branchOff begins a branch with a point that is there, changed a little, and makes its first point.
func (m *machine) branchOff(*rapid.T) {
	vm := rapid.SampledFrom(slices.Sorted(maps.Keys(m.disks))).Draw(m.t, "vm")
	if _, ok := m.from[vm]; ok || len(m.points[vm]) == 0 || len(m.from) >= 4 {
		return
	}
	p := rapid.SampledFrom(m.points[vm]).Draw(m.t, "point")
	name := fmt.Sprintf("%s:b%d", vm, m.n)
	m.n++
	m.from[name] = branch{vm, p.id}
	m.disks[name], m.dirty[name], m.points[name] = map[string]*sparse{}, map[string][]int64{}, nil
	for disk, d := range p.disks {
		m.disks[name][disk] = d.clone()
	}
	if err := m.backup(name, "list", nil); err != nil {
		m.t.Fatalf("branch %s: %v", name, err)
	}
}

// rename gives a VM, and its branches with it, another name.
func (m *machine) rename(*rapid.T) {
	vm, _ := m.pick()
	if _, ok := m.from[vm]; ok || len(m.points[vm]) == 0 {
		return
	}
	name := fmt.Sprintf("renamed%d", m.n)
	m.n++
	if err := m.store.Rename(context.Background(), vm, name); err != nil {
		m.t.Fatalf("rename: %v", err)
	}
	for old := range maps.Clone(m.disks) {
		if of := m.from[old].vm; old == vm || of == vm {
			m.move(old, name+strings.TrimPrefix(old, vm))
		}
	}
	for b, f := range m.from {
		if f.vm == vm {
			m.from[b] = branch{name, f.at}
		}
	}
}

func (m *machine) move(old, name string) {
	m.disks[name], m.dirty[name], m.points[name] = m.disks[old], m.dirty[old], m.points[old]
	m.maybe[name] = m.maybe[old]
	if f, ok := m.from[old]; ok {
		m.from[name] = f
	}
	m.forget(old)
}

func (m *machine) forget(name string) {
	delete(m.disks, name)
	delete(m.dirty, name)
	delete(m.points, name)
	delete(m.maybe, name)
	delete(m.from, name)
}

func (m *machine) removeBranch(*rapid.T) {
	if len(m.from) == 0 {
		return
	}
	b := rapid.SampledFrom(slices.Sorted(maps.Keys(m.from))).Draw(m.t, "branch")
	if _, err := m.store.VM(b); err != nil {
		return // its first point failed
	}
	err := m.store.Remove(context.Background(), b)
	if slices.ContainsFunc(m.points[b], func(p sealed) bool { return p.held }) {
		if !errs.Is(err, errs.Busy) {
			m.t.Fatalf("remove %s with a held point: %v", b, err)
		}
		return
	}
	if err != nil {
		m.t.Fatalf("remove %s: %v", b, err)
	}
	m.forget(b)
}

func (m *machine) actions() map[string]func(*rapid.T) {
	rng := func() *rand.Rand { return rand.New(rand.NewPCG(rapid.Uint64().Draw(m.t, "seed"), 7)) }
	return map[string]func(*rapid.T){
		"write": m.write, "write2": m.write, "write3": m.write,
		"branch off": m.branchOff, "expire": m.expire, "rename": m.rename, "hold": m.hold, "scrub": m.scrub, "remove a branch": m.removeBranch,
		"diff": m.diff, "export": m.export,
		"resize": func(*rapid.T) {
			vm, name := m.pick()
			d := m.disks[vm][name]
			before := maps.Clone(d.pages)
			d.resize(rapid.SampledFrom([]int64{page + 1, 5 << 20, 9<<20 + 4096, 17<<20 + 512, 5 << 30}).Draw(m.t, "size"))
			for no := range before { // what was cut off has changed, should the disk grow again
				if d.pages[no] != before[no] && !slices.Contains(m.dirty[vm][name], no) {
					m.dirty[vm][name] = append(m.dirty[vm][name], no)
				}
			}
			slices.Sort(m.dirty[vm][name])
		},
		"add disk": func(*rapid.T) {
			vm, _ := m.pick()
			if m.disks[vm]["sdb"] == nil {
				m.addDisk(vm, "sdb")
				m.dirty[vm]["sdb"] = slices.Sorted(maps.Keys(m.everUsed(vm, "sdb")))
			}
		},
		"remove disk": func(*rapid.T) {
			vm, _ := m.pick()
			delete(m.disks[vm], "sdb")
		},
		"backup": func(*rapid.T) {
			vm, _ := m.pick()
			if err := m.backup(vm, rapid.SampledFrom([]string{"compare", "list", "list", "full"}).Draw(m.t, "mode"), nil); err != nil {
				m.t.Fatalf("backup: %v", err)
			}
		},
		"failing source": func(*rapid.T) {
			vm, _ := m.pick()
			left := rapid.IntRange(0, 20).Draw(m.t, "reads")
			err := m.backup(vm, "compare", func() error {
				if left--; left < 0 {
					return errDisk
				}
				return nil
			})
			if err != nil && m.maybe[vm] != nil {
				m.maybe[vm] = nil // it must not be there
			}
		},
		"pack": func(*rapid.T) {
			if _, err := m.store.Pack(context.Background()); err != nil {
				m.t.Fatalf("pack: %v", err)
			}
		},
		"collect": func(*rapid.T) {
			if _, err := m.store.Collect(context.Background(), snapshotchain.CollectOptions{}); err != nil {
				m.t.Fatalf("collect: %v", err)
			}
			m.store.DropCaches()
			m.check()
		},
		"failing collect and crash": func(*rapid.T) {
			m.ops.Store(int64(rapid.IntRange(1, 40).Draw(m.t, "operations")))
			m.store.Collect(context.Background(), snapshotchain.CollectOptions{}) // it fails anywhere, or not
			m.crash(rng(), rapid.SampledFrom([]string{"as it was", "older", "gone"}).Draw(m.t, "badger"))
			m.check()
		},
		"failing pack and crash": func(*rapid.T) {
			m.ops.Store(int64(rapid.IntRange(1, 20).Draw(m.t, "operations")))
			m.store.Pack(context.Background()) // it fails anywhere, or not
			m.crash(rng(), "as it was")
			m.check()
		},
		"failing disk and crash": func(*rapid.T) {
			vm, _ := m.pick()
			m.ops.Store(int64(rapid.IntRange(1, 40).Draw(m.t, "operations")))
			if err := m.backup(vm, "compare", nil); err == nil {
				m.ops.Store(-1)
			}
			m.crash(rng(), "as it was")
			m.check()
		},
		"crash": func(*rapid.T) {
			m.crash(rng(), rapid.SampledFrom([]string{"as it was", "older", "gone", "flipped", "flipped"}).Draw(m.t, "badger"))
			m.check()
		},
		"remember": func(*rapid.T) {
			older := filepath.Join(m.root, fmt.Sprintf("older%d", m.n))
			m.n++
			copyDir(m.t, m.dir, older)
			m.older = older
		},
		"reopen": func(*rapid.T) {
			m.close()
			m.open()
			m.check()
		},
	}
}

// TestMain sets how many histories the model goes through.
func TestMain(m *testing.M) {
	flag.Parse()
	if checks := flag.Lookup("rapid.checks"); checks.Value.String() == checks.DefValue {
		n := "60"
		if os.Getenv("LIVEMOUNT_SOAK") != "" {
			n = "3000"
		}
		if err := checks.Value.Set(n); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// The chain, with aborts, failing disks, power cuts and a metadata store that loses or spoils what it
// likes, says what a map of byte arrays says.
func TestChainAgreesWithTheModel(t *testing.T) {
	base := t.TempDir()
	var n atomic.Int64
	rapid.Check(t, func(rt *rapid.T) {
		root := filepath.Join(base, fmt.Sprint(n.Add(1)))
		m := newMachine(rt, root)
		defer os.RemoveAll(root)
		rt.Repeat(m.actions())
		m.check()
		m.close()
	})
}
