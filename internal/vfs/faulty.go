package vfs

// Op names an operation that Faulty may let fail.
type Op string

// The operations.
const (
	OpCreate   Op = "create"
	OpOpen     Op = "open"
	OpRemove   Op = "remove"
	OpRename   Op = "rename"
	OpLink     Op = "link"
	OpSyncDir  Op = "syncdir"
	OpRead     Op = "read"
	OpWrite    Op = "write"
	OpSync     Op = "sync"
	OpTruncate Op = "truncate"
	OpAllocate Op = "allocate"
)

// Faulty decorates an FS: before each operation it asks Fail, and an error of it is returned instead.
// A failed write writes nothing.
type Faulty struct {
	FS
	// Fail is called from several goroutines at once; name is the file's.
	Fail func(op Op, name string) error
}

// Create implements FS.
func (f *Faulty) Create(name string) (File, error) {
	if err := f.Fail(OpCreate, name); err != nil {
		return nil, err
	}
	return f.wrap(name)(f.FS.Create(name))
}

// Open implements FS.
func (f *Faulty) Open(name string) (File, error) {
	if err := f.Fail(OpOpen, name); err != nil {
		return nil, err
	}
	return f.wrap(name)(f.FS.Open(name))
}

// OpenRW implements FS.
func (f *Faulty) OpenRW(name string) (File, error) {
	if err := f.Fail(OpOpen, name); err != nil {
		return nil, err
	}
	return f.wrap(name)(f.FS.OpenRW(name))
}

func (f *Faulty) wrap(name string) func(File, error) (File, error) {
	return func(file File, err error) (File, error) {
		if err != nil {
			return nil, err
		}
		return &faultyFile{File: file, name: name, fail: f.Fail}, nil
	}
}

// Remove implements FS.
func (f *Faulty) Remove(name string) error {
	if err := f.Fail(OpRemove, name); err != nil {
		return err
	}
	return f.FS.Remove(name)
}

// Rename implements FS.
func (f *Faulty) Rename(oldname, newname string) error {
	if err := f.Fail(OpRename, newname); err != nil {
		return err
	}
	return f.FS.Rename(oldname, newname)
}

// Link implements FS.
func (f *Faulty) Link(oldname, newname string) error {
	if err := f.Fail(OpLink, newname); err != nil {
		return err
	}
	return f.FS.Link(oldname, newname)
}

// SyncDir implements FS.
func (f *Faulty) SyncDir(dir string) error {
	if err := f.Fail(OpSyncDir, dir); err != nil {
		return err
	}
	return f.FS.SyncDir(dir)
}

type faultyFile struct {
	File
	name string
	fail func(Op, string) error
}

func (f *faultyFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.fail(OpRead, f.name); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *faultyFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fail(OpWrite, f.name); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *faultyFile) Sync() error {
	if err := f.fail(OpSync, f.name); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *faultyFile) Truncate(size int64) error {
	if err := f.fail(OpTruncate, f.name); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (f *faultyFile) Allocate(off, n int64) error {
	if err := f.fail(OpAllocate, f.name); err != nil {
		return err
	}
	return f.File.Allocate(off, n)
}
