package mountctl

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"livemount/internal/vfs"
)

// TestAFailedSyncIsNotTriedAgain does as the kernel does: a failed fsync drops the dirty pages of the file, and the next one succeeds.
func TestAFailedSyncIsNotTriedAgain(t *testing.T) {
	for _, when := range []string{"save", "finish"} {
		t.Run(when, func(t *testing.T) {
			mem := emptyDisk(t)
			w := newWorld(rand.New(rand.NewPCG(1, 1)), "one", 400_000)
			lost := []byte(nil)
			fs := &vfs.Faulty{FS: mem}
			armed, failed := true, false
			fs.Fail = func(op vfs.Op, name string) error {
				if op == vfs.OpSync && name == "/d/out.part" && armed {
					armed, failed = false, true
					b, err := vfs.ReadFile(mem, name, 1<<30)
					if err != nil {
						return err
					}
					lost = make([]byte, len(b)) // what was dirty is gone: the file reads as zeroes
					f, err := mem.OpenRW(name)
					if err != nil {
						return err
					}
					defer f.Close()
					if _, err := f.WriteAt(lost, 0); err != nil {
						return err
					}
					return errors.New("input/output error")
				}
				return nil
			}
			x := &exporter{notes: io.Discard}
			p := &partFile{fs: fs, path: "/d/out", state: exportState{ETag: w.etag, Format: "raw", SizeBytes: int64(len(w.want))}}
			if err := p.open(x, true); err != nil {
				t.Fatal(err)
			}
			var err error
			for _, d := range w.data {
				for off := d[0]; off < d[1] && err == nil; {
					n := min(d[1]-off, 3000)
					if when == "save" {
						p.dirty += saveEvery / 8
					}
					if err = p.put(context.Background(), w.want[off:off+n], off); err == nil {
						off += n
					}
				}
			}
			if err != nil {
				err = p.leave(err)
				p.f.Close()
			} else {
				err = p.finish(true)
			}
			if err == nil || !failed {
				t.Fatalf("first run: %v", err)
			}
			if _, _, err := w.run(fs, 1<<40, true); err != nil {
				t.Fatal(err)
			}
			got, err := vfs.ReadFile(fs, "/d/out", 1<<30)
			if err != nil || !bytes.Equal(got, w.want) {
				t.Errorf("the file has its name and wrong bytes (%v)", err)
			}
		})
	}
}
