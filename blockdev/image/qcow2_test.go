package image_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"livemount/blockdev/image"
	"livemount/internal/errs"
)

// TestQcow2ReadsAsQemuDoes writes to images of all kinds at random and compares.
func TestQcow2ReadsAsQemuDoes(t *testing.T) {
	qemuTools(t)
	for _, c := range []struct{ name, options, size string }{
		{"Version2", "compat=0.10", "2M"},
		{"Version3", "", "2M"},
		{"OddSize", "", "3000320"},
		{"Clusters512", "cluster_size=512", "1M"},
		{"Clusters4K", "cluster_size=4k", "2M"},
		{"Clusters2M", "cluster_size=2M", "5M"},
		{"Subclusters", "extended_l2=on", "2M"},
		{"Subclusters16K", "extended_l2=on,cluster_size=16k", "3M"},
		{"Subclusters2M", "extended_l2=on,cluster_size=2M", "5M"},
		{"PreallocatedTables", "preallocation=metadata", "2M"},
		{"PreallocatedSubclusters", "preallocation=metadata,extended_l2=on", "2M"},
		{"PreallocatedSpace", "preallocation=falloc", "2M"},
		{"PreallocatedBytes", "preallocation=full", "2M"},
		{"LazyRefcounts", "lazy_refcounts=on", "2M"},
		{"RefcountsOfOneBit", "refcount_bits=1", "2M"},
		{"Zstd", "compression_type=zstd", "2M"},
		{"DataFile", "data_file=%s/data", "2M"},
		{"DataFileSubclusters", "data_file=%s/data,extended_l2=on", "2M"},
		{"DataFileRaw", "data_file=%s/data,data_file_raw=on", "2M"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			path := create(t, dir, "disk.qcow2", strings.ReplaceAll(c.options, "%s", dir), c.size)
			q := openQcow2(t, path)
			qio(t, path, "qcow2", scribble(seeded(t), q.Size(), 24)...)
			conforms(t, path)
			mapped(t, path)
		})
	}
}

func TestQcow2ReadsCompressedClusters(t *testing.T) {
	qemuTools(t)
	dir := t.TempDir()
	raw := filepath.Join(dir, "disk.raw")
	content(t, raw, 2<<20+512, seeded(t))
	for name, options := range map[string]string{
		"Zlib": "", "Zstd": "compression_type=zstd", "Zlib512": "cluster_size=512", "Zstd4K": "compression_type=zstd,cluster_size=4k",
		"Zlib2M": "cluster_size=2M", "Zstd2M": "compression_type=zstd,cluster_size=2M", "ZstdSubclusters": "compression_type=zstd,extended_l2=on",
		"Version2": "compat=0.10",
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, name+".qcow2")
			args := []string{"convert", "-f", "raw", "-O", "qcow2", "-c"}
			if options != "" {
				args = append(args, "-o", options)
			}
			qimg(t, append(args, raw, path)...)
			conforms(t, path)
			// Written over, a compressed cluster becomes another one beside compressed ones.
			qio(t, path, "qcow2", scribble(seeded(t), 2<<20, 12)...)
			conforms(t, path)
			mapped(t, path)
		})
	}
}

func TestQcow2IgnoresSnapshotsAndBitmaps(t *testing.T) {
	qemuTools(t)
	path := create(t, t.TempDir(), "disk.qcow2", "", "4M")
	r := seeded(t)
	qio(t, path, "qcow2", scribble(r, 4<<20, 12)...)
	qimg(t, "snapshot", "-c", "one", path)
	qimg(t, "bitmap", "--add", path, "dirty")
	qio(t, path, "qcow2", scribble(r, 4<<20, 12)...)
	conforms(t, path)
}

func TestQcow2OfAnotherSizeThanAtFirst(t *testing.T) {
	qemuTools(t)
	for name, sizes := range map[string][2]string{"Grown": {"3M", "5M"}, "Shrunk": {"5M", "3M"}, "GrownTables": {"1M", "700M"}, "Empty": {"0", "0"}} {
		t.Run(name, func(t *testing.T) {
			path := create(t, t.TempDir(), "disk.qcow2", "", sizes[0])
			if name != "Empty" {
				qio(t, path, "qcow2", scribble(seeded(t), 1<<20, 12)...)
				qimg(t, "resize", "-q", "--shrink", path, sizes[1])
			}
			if name == "GrownTables" {
				qio(t, path, "qcow2", "write -P 7 600M 1M")
				qimg(t, "compare", "-q", path, toRaw(t, openQcow2(t, path)))
				return
			}
			conforms(t, path)
		})
	}
}

// toRaw writes what is data to a sparse file.
func toRaw(t *testing.T, q *image.Qcow2) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "out.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(q.Size()); err != nil {
		t.Fatal(err)
	}
	copyData(t, f, q)
	return path
}

func TestQcow2WithACutLastCluster(t *testing.T) {
	qemuTools(t)
	path := create(t, t.TempDir(), "disk.qcow2", "", "1M")
	qio(t, path, "qcow2", "write -P 9 128k 64k")
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, st.Size()-5000); err != nil {
		t.Fatal(err)
	}
	conforms(t, path)
	// When the whole cluster is gone, zeroes would be an invention.
	if err := os.Truncate(path, st.Size()-64<<10); err != nil {
		t.Fatal(err)
	}
	q := openQcow2(t, path)
	if err := q.ReadAt(t.Context(), make([]byte, 512), 128<<10); !errs.Is(err, errs.Corrupt) {
		t.Errorf("got %v, want Corrupt", err)
	}
}

func TestQcow2ThatIsMarkedDirtySaysSo(t *testing.T) {
	qemuTools(t)
	path := create(t, t.TempDir(), "disk.qcow2", "lazy_refcounts=on", "1M")
	patch(t, path, 79, 1)
	if note := openQcow2(t, path).Changed(); !strings.Contains(note, "dirty") {
		t.Errorf("note %q", note)
	}
}

func TestQcow2NotesChangesOfEveryFile(t *testing.T) {
	qemuTools(t)
	dir := t.TempDir()
	base := create(t, dir, "base.qcow2", "", "1M")
	top := overlay(t, filepath.Join(dir, "top.qcow2"), base, "qcow2")
	q := openQcow2(t, top)
	qio(t, base, "qcow2", "write 0 512k")
	if note := q.Changed(); !strings.Contains(note, "base.qcow2 was written") {
		t.Errorf("note %q", note)
	}
	if err := q.Check(t.Context()); !errs.Is(err, errs.Invalid) {
		t.Errorf("check: got %v, want Invalid: the file grew", err)
	}
}

// TestQcow2ThatGrowsMeanwhileIsNotCalledDamaged has a new table in the image that was not there at the open.
func TestQcow2ThatGrowsMeanwhileIsNotCalledDamaged(t *testing.T) {
	qemuTools(t)
	path := create(t, t.TempDir(), "disk.qcow2", "", "1M")
	q := openQcow2(t, path)
	qio(t, path, "qcow2", "write 0 64k")
	err := q.ReadAt(t.Context(), make([]byte, 512), 0)
	if !errs.Is(err, errs.Invalid) || !strings.Contains(errs.TryOf(err), "snapshot") {
		t.Errorf("got %v, want Invalid with advice", err)
	}
}

func TestQcow2ListsItsFiles(t *testing.T) {
	qemuTools(t)
	dir := t.TempDir()
	base := create(t, dir, "base.qcow2", "data_file="+filepath.Join(dir, "data"), "1M")
	top := overlay(t, filepath.Join(dir, "top.qcow2"), base, "qcow2")
	if got := strings.Join(openQcow2(t, top).Files(), " "); got != top+" "+base+" "+filepath.Join(dir, "data") {
		t.Errorf("files %s", got)
	}
}

// patch overwrites bytes of a file.
func patch(t testing.TB, path string, off int64, b ...byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}
