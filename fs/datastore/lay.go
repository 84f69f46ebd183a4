package datastore

import (
	"context"
	iofs "io/fs"
	"strings"
	"time"

	"livemount/blockdev"
	"livemount/fs"
	"livemount/internal/errs"
)

// First is a file or folder that a datastore begins with.
type First struct {
	Path    string // slash-separated; the folders that it names are made
	Disk    fs.NodeID
	Content []byte // of a file that is no disk, at most 64 MiB
	Perm    uint32
	Time    time.Time // zero is now
}

// Lay makes the first files, in one step, unless that was done before. Equal lists give equal node ids, so also the
// handles into a read-only datastore, which is laid anew at each start, outlive it.
func (s *Store) Lay(ctx context.Context, list []First) error {
	s.ops.Lock()
	defer s.ops.Unlock()
	if s.laid {
		return nil
	}
	l := layer{s: s, folders: map[string]fs.NodeID{"": fs.RootID}, next: firstID}
	for i := range list {
		if err := l.add(ctx, &list[i]); err != nil {
			return err
		}
	}
	l.effects = append(l.effects, effect{kind: effectLaid})
	if s.log == nil {
		return s.apply(l.effects, true)
	}
	return s.commit(ctx, l.effects)
}

// layer lays the first files.
type layer struct {
	s       *Store
	folders map[string]fs.NodeID
	next    fs.NodeID
	cookie  fs.Cookie
	effects []effect
}

func (l *layer) add(ctx context.Context, f *First) error {
	dir, name := "", f.Path
	if at := strings.LastIndexByte(f.Path, '/'); at >= 0 {
		dir, name = f.Path[:at], f.Path[at+1:]
	}
	if f.Time.IsZero() {
		f.Time = l.s.clock.Now()
	}
	if err := l.folder(dir, f.Time); err != nil {
		return err
	}
	id := f.Disk
	if id == 0 {
		id = l.take()
	}
	if err := l.node(dir, name, id, 0, f.Perm, f.Time); err != nil || f.Disk != 0 {
		return err
	}
	return l.content(ctx, id, f.Content)
}

func (l *layer) take() fs.NodeID {
	l.next++
	return l.next - 1
}

// folder makes the folders of a path that are not there yet.
func (l *layer) folder(path string, at time.Time) error {
	if _, ok := l.folders[path]; ok {
		return nil
	}
	dir, name := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	}
	if err := l.folder(dir, at); err != nil {
		return err
	}
	l.folders[path] = l.take()
	return l.node(dir, name, l.folders[path], iofs.ModeDir, 0o755, at)
}

func (l *layer) node(dir, name string, id fs.NodeID, mode iofs.FileMode, perm uint32, at time.Time) error {
	if err := fs.CheckName(name); err != nil {
		return err
	}
	ns := at.UnixNano()
	a := attributes{mode: fs.WithPerm(mode, perm), accessed: ns, modified: ns, changed: ns}
	l.cookie++
	l.effects = append(l.effects, effect{kind: effectNode, node: id, attr: a, setAccessed: true, setModified: true},
		effect{kind: effectEnter, node: l.folders[dir], child: id, cookie: l.cookie, name: name})
	return nil
}

// content writes a file whose name comes later: after a crash in between it is written again, with the same id.
func (l *layer) content(ctx context.Context, id fs.NodeID, b []byte) error {
	if len(b) > 64<<20 {
		return errs.New(errs.Invalid, "a first file of %d bytes", len(b))
	}
	if l.s.log == nil {
		m := blockdev.NewMem(int64(len(b)))
		if err := m.WriteAt(ctx, b, 0); err != nil {
			return err
		}
		l.s.disks[id] = diskSource{data: m, allocated: func() int64 { return int64(len(b)) }}
		return nil
	}
	if err := l.s.log.AddNode(uint64(id)); err != nil && !errs.Is(err, errs.Exists) {
		return err
	}
	dev, err := l.s.log.Device(uint64(id))
	if err == nil && dev.Size() > 0 { // of a first try, perhaps longer
		if err = l.s.log.Forget(ctx, uint64(id)); err == nil {
			err = l.s.log.AddNode(uint64(id))
		}
		if err == nil {
			dev, err = l.s.log.Device(uint64(id))
		}
	}
	if err != nil {
		return err
	}
	return dev.WriteAt(ctx, b, 0)
}
