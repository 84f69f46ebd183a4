package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"livemount/server/api"
	"livemount/test/nfsclient"
)

// Regions of the disk. Where they lie is where the disk has most data.
const (
	nfsLarge   = 512 << 20 // no cache of chunks holds it
	nfsHot     = 32 << 20  // decoded, half of the chunk cache
	nfsWritten = 128 << 20 // that is written, and read back
)

// nfsRounds is how often each measurement is made, one server after the other. The best rate counts, and the CPU time of
// all.
const nfsRounds = 3

// nfs measures livemountd's NFS server beside nfs-ganesha on a plain file with the same bytes, on the same file system, and
// beside go-nfs over the same kind of datastore. What is stored, and the plain file, are in the page cache.
func (b *bench) nfs(ctx context.Context) error {
	disk := filepath.Join(filepath.Dir(b.disk), "bench-db.raw")
	if err := command(ctx, filepath.Join(b.root, "test/bench/mkdisk.sh"), disk, "db").toStderr(); err != nil {
		return err
	}
	n := b.newNFS()
	if err := n.prepare(ctx, disk); err != nil {
		return err
	}
	for _, part := range []func(context.Context) error{n.empty, n.beside, n.slow} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	b.report.judgeNFS()
	return nil
}

// nfsBench is what the measurements of NFS share.
type nfsBench struct {
	*bench
	data   string // of livemountd
	copied string // the same, for children
	plain  string // folder that nfs-ganesha exports

	large, hot, written region
}

func (b *bench) newNFS() *nfsBench {
	return &nfsBench{bench: b, data: b.path("nfs"), copied: b.path("nfs-copied"), plain: b.path("plain")}
}

const plainFile = "disk.raw"

// prepare takes the disk in, mounts it and copies it for the others.
func (n *nfsBench) prepare(ctx context.Context, disk string) error {
	progress("nfs: a backup, and a copy for the others")
	if err := os.Mkdir(n.plain, 0o700); err != nil {
		return err
	}
	if _, err := command(ctx, "cp", "--sparse=always", disk, filepath.Join(n.plain, plainFile)).measure(); err != nil {
		return err
	}
	if err := n.lay(disk); err != nil {
		return err
	}
	if err := n.fill(ctx, disk); err != nil {
		return err
	}
	_, err := command(ctx, "cp", "-a", n.data, n.copied).measure()
	return err
}

// fill makes a store with the disk, and a mount of it that comes back with each daemon.
func (n *nfsBench) fill(ctx context.Context, disk string) error {
	d, err := n.nfsDaemon(ctx, n.data)
	if err != nil {
		return err
	}
	defer d.stop()
	if _, _, err := d.backup(ctx, "vm", disk, nil); err != nil {
		return err
	}
	return d.Do(ctx, "POST", "/v1/mounts", nil, api.MountRequest{Ref: "vm@latest", Place: api.Place{NFS: true}}, nil)
}

// lay chooses the regions.
func (n *nfsBench) lay(disk string) error {
	const unit = 1 << 20
	counts, err := dataPages(disk, unit)
	if err != nil {
		return err
	}
	at := func(part []int, size int64) region {
		from, _ := densest(part, int(size/unit))
		return region{int64(from) * unit, size}
	}
	n.large = at(counts, nfsLarge)
	inner := counts[n.large.from/unit : (n.large.from+nfsLarge)/unit]
	half := len(inner) / 2 // what is written lies elsewhere than what is read from the cache
	n.hot, n.written = at(inner[:half], nfsHot), at(inner[half:], nfsWritten)
	n.hot.from += n.large.from
	n.written.from += n.large.from + int64(half)*unit
	return nil
}

// dataPages counts the pages that are not zero in each unit of a file.
func dataPages(path string, unit int) ([]int, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var counts []int
	buf, zero := make([]byte, unit), make([]byte, 4096)
	for {
		if _, err := io.ReadFull(f, buf); err == io.EOF || err == io.ErrUnexpectedEOF {
			return counts, nil
		} else if err != nil {
			return nil, err
		}
		pages := 0
		for off := 0; off < unit; off += len(zero) {
			if !bytes.Equal(buf[off:off+len(zero)], zero) {
				pages++
			}
		}
		counts = append(counts, pages)
	}
}

// densest returns where n neighbours have the greatest sum, and that sum.
func densest(counts []int, n int) (at, most int) {
	sum := 0
	for i, c := range counts {
		if sum += c; i >= n {
			sum -= counts[i-n]
		}
		if i >= n-1 && sum > most {
			at, most = i-n+1, sum
		}
	}
	return at, most
}

// Names of what is measured.
const (
	readEmpty   = "READ %s, chunk cache empty"
	readHot     = "READ %s, chunk cache warm"
	readWritten = "READ %s, what was written"
	randomEmpty = "READ 4 KiB at random, chunk cache empty, depth 32"
	randomHot   = "READ 4 KiB at random, chunk cache warm, depth %d"
	getattr     = "GETATTR, depth %d"
)

func sequentialSizes() []int { return []int{64 << 10, 256 << 10, 1 << 20} }

func sizeName(n int) string {
	if n < 1<<20 {
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// sequentialCell reads or writes a region in order, with 8 calls under way.
func sequentialCell(name string, n int, r region) nfsCell {
	return nfsCell{name: fmt.Sprintf(name, sizeName(n)), bytes: n, depth: 8, region: r}
}

// empty reads what no cache of livemountd holds: it is started anew each time.
func (n *nfsBench) empty(ctx context.Context) error {
	g, err := n.ganesha(ctx, n.plain, plainFile)
	if err != nil {
		return err
	}
	defer g.stop()
	cells := []nfsCell{{name: randomEmpty, bytes: 4 << 10, random: true, depth: 32, region: n.large}}
	for _, size := range sequentialSizes() {
		c := sequentialCell(readEmpty, size, n.large)
		c.once = true
		cells = append(cells, c)
	}
	for _, c := range cells {
		if err := n.emptyCell(ctx, &c, &g.nfsServer); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

func (n *nfsBench) emptyCell(ctx context.Context, c *nfsCell, other *nfsServer) error {
	ours, its := n.row("livemount", c), n.row(other.name, c)
	for _, connections := range []int{1, 8} {
		for range nfsRounds {
			e, err := n.exportDaemon(ctx, n.data)
			if err != nil {
				return err
			}
			err = c.measure(ctx, &e.nfsServer, connections, ours.rate(connections))
			e.stop()
			if err != nil {
				return err
			}
			if err := c.measure(ctx, other, connections, its.rate(connections)); err != nil {
				return fmt.Errorf("%s: %w", other.name, err)
			}
		}
	}
	return nil
}

// beside measures all that needs no empty cache.
func (n *nfsBench) beside(ctx context.Context) error {
	e, err := n.exportDaemon(ctx, n.data)
	if err != nil {
		return err
	}
	defer e.stop()
	g, err := n.ganesha(ctx, n.plain, plainFile)
	if err != nil {
		return err
	}
	defer g.stop()
	p, err := n.child(ctx, childGoNFS, n.copied, "/")
	if err != nil {
		return err
	}
	defer p.stop()
	p.name, p.once = "go-nfs", true
	servers := []*nfsServer{&e.nfsServer, &g.nfsServer, &p.nfsServer}
	for _, s := range servers {
		if err := n.sameBytes(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	if err := n.cells(ctx, n.hotCells(), servers); err != nil {
		return err
	}
	return n.cells(ctx, n.writtenCells(), servers)
}

// sameBytes reads the region that is measured most, so that its chunks are decoded, and compares it with the plain file.
func (n *nfsBench) sameBytes(ctx context.Context, s *nfsServer) error {
	c, err := s.client(s.port)
	if err != nil {
		return err
	}
	defer c.Close()
	f, err := os.Open(filepath.Join(n.plain, plainFile))
	if err != nil {
		return err
	}
	defer f.Close()
	want := make([]byte, 64<<10) // longer reads pass by the cache
	for off := n.hot.from; off < n.hot.from+n.hot.size; off += int64(len(want)) {
		if _, err := f.ReadAt(want, off); err != nil {
			return err
		}
		got, _, err := c.Read(ctx, s.handle, uint64(off), uint32(len(want)))
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("the bytes at %d are wrong", off)
		}
	}
	return nil
}

func (n *nfsBench) hotCells() []nfsCell {
	var list []nfsCell
	for _, size := range sequentialSizes() {
		list = append(list, sequentialCell(readHot, size, n.hot))
	}
	for _, depth := range []int{1, 32} {
		list = append(list,
			nfsCell{name: fmt.Sprintf(randomHot, depth), bytes: 4 << 10, random: true, depth: depth, region: n.hot},
			nfsCell{name: fmt.Sprintf(getattr, depth), depth: depth})
	}
	return list
}

// writtenCells write a region, and read back what the last of them wrote.
func (n *nfsBench) writtenCells() []nfsCell {
	var list []nfsCell
	for _, how := range []struct {
		name  string
		value uint32
	}{{"FILE_SYNC", nfsclient.FileSync}, {"UNSTABLE", nfsclient.Unstable}} {
		for _, size := range sequentialSizes() {
			c := sequentialCell("WRITE %s "+how.name, size, n.written)
			c.write, c.how = true, how.value
			list = append(list, c)
		}
	}
	for _, size := range sequentialSizes() {
		list = append(list, sequentialCell(readWritten, size, n.written))
	}
	return list
}

// cells measures one server after the other, so that a slow moment of the machine meets all of them.
func (n *nfsBench) cells(ctx context.Context, cells []nfsCell, servers []*nfsServer) error {
	for _, c := range cells {
		progress("nfs: %s", c.name)
		var rows []*nfsRow
		for _, s := range servers {
			rows = append(rows, n.row(s.name, &c))
		}
		for i := range nfsRounds * len(servers) {
			s, row := servers[i%len(servers)], rows[i%len(servers)]
			if s.once && i >= len(servers) {
				continue
			}
			for _, connections := range []int{1, 8} {
				if err := c.measure(ctx, s, connections, row.rate(connections)); err != nil {
					return fmt.Errorf("%s, %s: %w", c.name, s.name, err)
				}
			}
		}
	}
	return nil
}
