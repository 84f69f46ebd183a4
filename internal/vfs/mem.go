package vfs

import (
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"sort"
	"strings"
	"sync"

	"livemount/internal/errs"
)

// sector is the unit in which a power cut keeps or loses unsynced content.
const sector = 512

// Mem is a file system in memory that remembers what has been made durable, so that CrashClone can
// return what a power cut would leave.
type Mem struct {
	mu    sync.Mutex
	dirs  map[string]*memDir
	limit int64 // bytes of all files together; 0 is unlimited
	used  int64
}

type memDir struct {
	durable, now map[string]*memNode
	pending      []func(map[string]*memNode) // changes of names since the last SyncDir, in order
}

type memNode struct {
	durable, now []byte
	dirty        map[int64]struct{} // sectors written since the last Sync
	names        int
}

// NewMem returns an empty file system with the root folder "/".
func NewMem() *Mem { return &Mem{dirs: map[string]*memDir{"/": newMemDir()}} }

func newMemDir() *memDir {
	return &memDir{durable: map[string]*memNode{}, now: map[string]*memNode{}}
}

// SetLimit bounds the bytes that all files may have together; writes beyond fail with NoSpace.
func (m *Mem) SetLimit(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.limit = bytes
}

func pathError(op, name string, err error) error {
	return &os.PathError{Op: op, Path: name, Err: err}
}

// find returns the folder of name and its last element. The caller holds mu.
func (m *Mem) find(op, name string) (*memDir, string, error) {
	name = path.Clean("/" + name)
	d := m.dirs[path.Dir(name)]
	if d == nil {
		return nil, "", pathError(op, name, fs.ErrNotExist)
	}
	return d, path.Base(name), nil
}

func (d *memDir) change(f func(map[string]*memNode)) {
	f(d.now)
	d.pending = append(d.pending, f)
}

// Create implements FS.
func (m *Mem) Create(name string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, base, err := m.find("create", name)
	if err != nil {
		return nil, err
	}
	if _, ok := d.now[base]; ok || m.dirs[path.Clean("/"+name)] != nil {
		return nil, pathError("create", name, fs.ErrExist)
	}
	n := &memNode{dirty: map[int64]struct{}{}, names: 1}
	d.change(func(names map[string]*memNode) { names[base] = n })
	return &memFile{fs: m, node: n, name: name, writable: true}, nil
}

func (m *Mem) open(name string, writable bool) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, base, err := m.find("open", name)
	if err != nil {
		return nil, err
	}
	n := d.now[base]
	if n == nil {
		return nil, pathError("open", name, fs.ErrNotExist)
	}
	return &memFile{fs: m, node: n, name: name, writable: writable}, nil
}

// Open implements FS.
func (m *Mem) Open(name string) (File, error) { return m.open(name, false) }

// OpenRW implements FS.
func (m *Mem) OpenRW(name string) (File, error) { return m.open(name, true) }

// Remove implements FS. A removed folder is gone at once also for CrashClone.
func (m *Mem) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	full := path.Clean("/" + name)
	if sub := m.dirs[full]; sub != nil {
		if len(sub.now) > 0 || m.hasSubdir(full) {
			return pathError("remove", name, errs.New(errs.Busy, "folder not empty"))
		}
		delete(m.dirs, full)
		return nil
	}
	d, base, err := m.find("remove", name)
	if err != nil {
		return err
	}
	n := d.now[base]
	if n == nil {
		return pathError("remove", name, fs.ErrNotExist)
	}
	m.unname(n)
	d.change(func(names map[string]*memNode) { delete(names, base) })
	return nil
}

// unname takes a name from a file; the last one takes the content with it. The caller holds mu.
func (m *Mem) unname(n *memNode) {
	if n.names--; n.names == 0 {
		m.used -= int64(len(n.now))
	}
}

func (m *Mem) hasSubdir(dir string) bool {
	for name := range m.dirs {
		if strings.HasPrefix(name, dir+"/") {
			return true
		}
	}
	return false
}

// Rename implements FS.
func (m *Mem) Rename(oldname, newname string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if path.Dir(path.Clean("/"+oldname)) != path.Dir(path.Clean("/"+newname)) {
		return ErrNoSyncDir
	}
	d, from, err := m.find("rename", oldname)
	if err != nil {
		return err
	}
	n := d.now[from]
	if n == nil {
		return pathError("rename", oldname, fs.ErrNotExist)
	}
	to := path.Base(newname)
	over := d.now[to]
	if over == n {
		return nil // rename(2): two names of one file stay
	}
	if over != nil {
		m.unname(over)
	}
	d.change(func(names map[string]*memNode) { delete(names, from); names[to] = n })
	return nil
}

// Link implements FS. The new name is durable after SyncDir on its folder, the content after File.Sync by
// whichever name.
func (m *Mem) Link(oldname, newname string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	from, old, err := m.find("link", oldname)
	if err != nil {
		return err
	}
	to, base, err := m.find("link", newname)
	if err != nil {
		return err
	}
	n := from.now[old]
	if n == nil {
		return pathError("link", oldname, fs.ErrNotExist)
	}
	if _, ok := to.now[base]; ok || m.dirs[path.Clean("/"+newname)] != nil {
		return pathError("link", newname, fs.ErrExist)
	}
	n.names++
	to.change(func(names map[string]*memNode) { names[base] = n })
	return nil
}

// MkdirAll implements FS. Folders are durable at once.
func (m *Mem) MkdirAll(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p := path.Clean("/" + name); m.dirs[p] == nil; p = path.Dir(p) {
		m.dirs[p] = newMemDir()
	}
	return nil
}

// List implements FS.
func (m *Mem) List(dir string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	full := path.Clean("/" + dir)
	d := m.dirs[full]
	if d == nil {
		return nil, pathError("list", dir, fs.ErrNotExist)
	}
	var names []string
	for n := range d.now {
		names = append(names, n)
	}
	for p := range m.dirs {
		if p != "/" && path.Dir(p) == full {
			names = append(names, path.Base(p))
		}
	}
	sort.Strings(names)
	return names, nil
}

// Stat implements FS.
func (m *Mem) Stat(name string) (Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dirs[path.Clean("/"+name)] != nil {
		return Info{IsDir: true}, nil
	}
	d, base, err := m.find("stat", name)
	if err != nil {
		return Info{}, err
	}
	n := d.now[base]
	if n == nil {
		return Info{}, pathError("stat", name, fs.ErrNotExist)
	}
	return Info{SizeBytes: int64(len(n.now))}, nil
}

// SyncDir implements FS.
func (m *Mem) SyncDir(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.dirs[path.Clean("/"+dir)]
	if d == nil {
		return pathError("sync", dir, fs.ErrNotExist)
	}
	for _, f := range d.pending {
		f(d.durable)
	}
	d.pending = nil
	return nil
}

// Space implements FS.
func (m *Mem) Space(string) (Space, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.limit == 0 {
		return Space{TotalBytes: 1 << 50, FreeBytes: 1<<50 - m.used}, nil
	}
	return Space{TotalBytes: m.limit, FreeBytes: max(0, m.limit-m.used)}, nil
}

// CrashClone returns what the disk would hold if the power went now: all that was synced, and of the
// rest whatever rng keeps: of each folder a prefix of its changed names, of each file any of its
// unsynced sectors and any size between the synced and the present one.
func (m *Mem) CrashClone(rng *rand.Rand) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	clone := &Mem{dirs: map[string]*memDir{}, limit: m.limit}
	nodes := map[*memNode]*memNode{}
	for _, p := range sortedKeys(m.dirs) { // a fixed order, so that a seed replays
		d := m.dirs[p]
		names := map[string]*memNode{}
		for n, node := range d.durable {
			names[n] = node
		}
		for _, f := range d.pending[:rng.IntN(len(d.pending)+1)] {
			f(names)
		}
		c := newMemDir()
		for _, n := range sortedKeys(names) {
			node := names[n]
			if nodes[node] == nil {
				nodes[node] = node.crash(rng)
				clone.used += int64(len(nodes[node].now))
			}
			nodes[node].names++
			c.now[n], c.durable[n] = nodes[node], nodes[node]
		}
		clone.dirs[p] = c
	}
	return clone
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

func (n *memNode) crash(rng *rand.Rand) *memNode {
	size := int64(len(n.durable))
	if d := int64(len(n.now)) - size; d > 0 {
		size += rng.Int64N(d + 1)
	} else if d < 0 && rng.IntN(2) == 0 {
		size = int64(len(n.now))
	}
	out := make([]byte, size)
	copy(out, n.durable)
	keep := rng.IntN(5) // 0 keeps nothing, 4 keeps all
	var secs []int64
	for s := range n.dirty {
		secs = append(secs, s)
	}
	sort.Slice(secs, func(i, j int) bool { return secs[i] < secs[j] })
	for _, s := range secs {
		lo := s * sector
		if rng.IntN(4) >= keep || lo >= int64(len(n.now)) || lo >= size {
			continue
		}
		copy(out[lo:min(size, lo+sector)], n.now[lo:min(int64(len(n.now)), lo+sector)])
	}
	return &memNode{durable: out, now: append([]byte(nil), out...), dirty: map[int64]struct{}{}}
}

type memFile struct {
	fs       *Mem
	node     *memNode
	name     string
	writable bool
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if off >= int64(len(f.node.now)) {
		return 0, io.EOF
	}
	n := copy(p, f.node.now[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if !f.writable {
		return 0, pathError("write", f.name, fs.ErrPermission)
	}
	if err := f.grow(off + int64(len(p))); err != nil {
		return 0, err
	}
	copy(f.node.now[off:], p)
	for s := off / sector; s*sector < off+int64(len(p)); s++ {
		f.node.dirty[s] = struct{}{}
	}
	return len(p), nil
}

// grow extends the file with zeroes. The caller holds the lock.
func (f *memFile) grow(size int64) error {
	d := size - int64(len(f.node.now))
	if d <= 0 {
		return nil
	}
	if f.fs.limit > 0 && f.fs.used+d > f.fs.limit {
		return pathError("write", f.name, errs.New(errs.NoSpace, "no space left on device"))
	}
	f.fs.used += d
	f.node.now = append(f.node.now, make([]byte, d)...)
	return nil
}

func (f *memFile) Sync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	n := f.node
	if len(n.durable) > len(n.now) {
		n.durable = n.durable[:len(n.now)]
	}
	if d := len(n.now) - len(n.durable); d > 0 {
		n.durable = append(n.durable, make([]byte, d)...)
	}
	for s := range n.dirty {
		if lo := s * sector; lo < int64(len(n.now)) {
			copy(n.durable[lo:], n.now[lo:min(int64(len(n.now)), lo+sector)])
		}
	}
	n.dirty = map[int64]struct{}{}
	return nil
}

func (f *memFile) Truncate(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	old := int64(len(f.node.now))
	if size >= old {
		return f.grow(size)
	}
	f.fs.used -= old - size
	f.node.now = f.node.now[:size:size]
	for s := size / sector; s*sector < old; s++ {
		f.node.dirty[s] = struct{}{}
	}
	return nil
}

func (f *memFile) Allocate(off, n int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return f.grow(off + n)
}

func (f *memFile) Size() (int64, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return int64(len(f.node.now)), nil
}

func (f *memFile) Close() error { return nil }
