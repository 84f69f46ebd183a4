package fusefs_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livemount/fs"
	"livemount/fs/datastore/dstest"
	"livemount/fs/fusefs"
	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// serveStore is the server of a datastore. It takes commands that change the tree as another protocol would.
func serveStore(c config) error {
	ctx := context.Background()
	space := func(context.Context) (vfs.Space, error) {
		return vfs.Space{TotalBytes: totalBytes, FreeBytes: freeBytes}, nil
	}
	ds, err := dstest.Open(ctx, dstest.Options{FS: vfs.OS{}, Dir: filepath.Join(c.Store, "log"), Space: space})
	if err != nil {
		return err
	}
	s, err := fusefs.Mount(ctx, ds, fusefs.Options{
		Dir: c.Dir, ReadOnly: c.ReadOnly, DirectIO: c.DirectIO, AllowOther: true,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Println(storeCommand(ctx, ds, s, strings.Fields(in.Text())))
	}
	err = s.Detach(ctx) // the parent is done
	select {
	case <-s.Done():
		return errors.Join(err, ds.Close(ctx))
	case <-time.After(10 * time.Second):
		return errors.Join(err, errors.New("files are still open"))
	}
}

func storeCommand(ctx context.Context, ds *dstest.Opened, s *fusefs.Server, words []string) string {
	var err error
	switch words[0] {
	case "count": // of nodes in the tree, and of those that the kernel holds
		return fmt.Sprint(ds.Len(), s.Known())
	case "make":
		_, err = ds.Make(ctx, fs.RootID, words[1], fs.Make{}, nil)
	case "remove":
		_, err = ds.Remove(ctx, fs.RootID, words[1], false, nil)
	case "rename":
		_, err = ds.Rename(ctx, fs.RootID, words[1], fs.RootID, words[2], nil)
	case "write":
		err = storeWrite(ctx, ds, words[1], words[2], 0)
	case "grow":
		err = storeWrite(ctx, ds, words[1], "end", grownBytes-3)
	case "tail":
		return storeTail(ctx, ds, words[1])
	case "unmount":
		err = s.Unmount(ctx)
	}
	if err != nil {
		return fmt.Sprint("error ", errs.KindOf(err), " ", err)
	}
	return "ok"
}

// grownBytes is the size of a file after the command "grow".
const grownBytes = 1 << 20

func storeWrite(ctx context.Context, ds *dstest.Opened, name, text string, off int64) error {
	n, err := ds.Root().Lookup(ctx, name)
	if err != nil {
		return err
	}
	return n.(fs.Writable).WriteAt(ctx, []byte(text), off)
}

// store mounts a new datastore.
func store(t testing.TB, c config) *mount {
	t.Helper()
	if c.Store == "" {
		c.Store = t.TempDir()
	}
	return mounted(t, c)
}

// count returns how many nodes the tree has, and how many the kernel holds.
func (m *mount) count() (nodes, known int) {
	m.t.Helper()
	answer := m.ask("count")
	if _, err := fmt.Sscan(answer, &nodes, &known); err != nil {
		m.t.Fatalf("count: %q, %v", answer, err)
	}
	return nodes, known
}

// storeTail returns the last three bytes of a file that was grown, or why there are none.
func storeTail(ctx context.Context, ds *dstest.Opened, name string) string {
	n, err := ds.Root().Lookup(ctx, name)
	if err != nil {
		return err.Error()
	}
	f := n.(fs.Regular)
	if f.Size() != grownBytes {
		return fmt.Sprint(f.Size(), " bytes")
	}
	p := make([]byte, 3)
	if err := f.ReadAt(ctx, p, grownBytes-3); err != nil {
		return err.Error()
	}
	return string(p)
}
