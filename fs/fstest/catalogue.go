// Package fstest has a catalogue for tests of trees that show one: as many VMs and points as wanted, made up when
// they are asked for, that come and go as the test says.
package fstest

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"livemount/blockdev"
	"livemount/fs"
	"livemount/internal/errs"
)

// SizeBytes is the size of every disk; the last page is a hole.
const SizeBytes = 64<<10 + 10

// BadVM is the name of a VM whose disks fail in their first half.
const BadVM = "bad"

// Catalogue implements fs.Catalogue. The zero value is empty.
type Catalogue struct {
	Opened, Closed atomic.Int64 // disks

	mu   sync.Mutex // guards all below
	vms  map[uint64]*vm
	made uint64 // VMs so far
}

type vm struct {
	name string
	last uint64 // ordinal of the newest point
	gone map[uint64]bool
}

// New returns a catalogue of VMs vm-0001 and so on, with so many points each.
func New(vms, points int) *Catalogue {
	c := &Catalogue{}
	for i := range vms {
		c.Add(fmt.Sprintf("vm-%04d", i+1), points)
	}
	return c
}

// Add adds points to the VM of that name, or makes it.
func (c *Catalogue) Add(name string, points int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.vms == nil {
		c.vms = map[uint64]*vm{}
	}
	_, v := c.find(name)
	if v == nil {
		v = &vm{name: name, gone: map[uint64]bool{}}
		c.made++
		c.vms[c.made*0x9e3779b97f4a7c15] = v
	}
	v.last += uint64(points)
}

// Drop removes one point of a VM.
func (c *Catalogue) Drop(name string, ordinal uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, v := c.find(name); v != nil {
		v.gone[ordinal] = true
	}
}

// Rename renames a VM; to the empty name it removes it.
func (c *Catalogue) Rename(name, to string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id, v := c.find(name); v != nil && to == "" {
		delete(c.vms, id)
	} else if v != nil {
		v.name = to
	}
}

func (c *Catalogue) find(name string) (uint64, *vm) {
	for id, v := range c.vms {
		if v.name == name {
			return id, v
		}
	}
	return 0, nil
}

// TimeOf is the time of a point by its ordinal, the same for every VM.
func TimeOf(ordinal uint64) time.Time {
	return time.Unix(1_800_000_000, 0).Add(time.Duration(ordinal) * 1001 * time.Millisecond)
}

// VMs implements fs.Catalogue.
func (c *Catalogue) VMs() []fs.VM {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []fs.VM
	for id, v := range c.vms {
		list = append(list, v.describe(id))
	}
	return list
}

func (v *vm) describe(id uint64) fs.VM {
	newest := v.last
	for newest > 0 && v.gone[newest] {
		newest--
	}
	return fs.VM{ID: id, Name: v.name, Points: int(v.last) - len(v.gone), Changed: TimeOf(newest)}
}

// VM implements fs.Catalogue.
func (c *Catalogue) VM(id uint64) (fs.VM, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v := c.vms[id]; v != nil {
		return v.describe(id), nil
	}
	return fs.VM{}, errs.New(errs.NotFound, "no VM is %x", id)
}

// VMNamed implements fs.Catalogue.
func (c *Catalogue) VMNamed(name string) (fs.VM, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id, v := c.find(name); v != nil {
		return v.describe(id), nil
	}
	return fs.VM{}, errs.New(errs.NotFound, "no VM is named %s", name)
}

// Points implements fs.Catalogue.
func (c *Catalogue) Points(_ context.Context, id, after uint64, limit int) ([]fs.Point, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.vms[id]
	if v == nil {
		return nil, errs.New(errs.NotFound, "no VM is %x", id)
	}
	var list []fs.Point
	for n := after + 1; n <= v.last && len(list) < limit; n++ {
		if !v.gone[n] {
			list = append(list, point(id, n))
		}
	}
	return list, nil
}

func point(vm, ordinal uint64) fs.Point {
	p := fs.Point{ID: vm ^ ordinal, Ordinal: ordinal, Time: TimeOf(ordinal)}
	for _, name := range []string{"sda", "sdb"} {
		p.Disks = append(p.Disks, fs.PointDisk{
			VM: vm, Point: p.ID, Lineage: vm + uint64(len(p.Disks)), Seq: ordinal, Name: name, SizeBytes: SizeBytes, DataBytes: 64 << 10,
		})
	}
	return p
}

// PointAt implements fs.Catalogue.
func (c *Catalogue) PointAt(_ context.Context, id uint64, at time.Time) (fs.Point, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, n := c.vms[id], uint64(at.Sub(TimeOf(0))/(1001*time.Millisecond))
	if v == nil || n == 0 || n > v.last || v.gone[n] || !TimeOf(n).Equal(at) {
		return fs.Point{}, errs.New(errs.NotFound, "no point of %x is of %s", id, at)
	}
	return point(id, n), nil
}

// Open implements fs.Catalogue.
func (c *Catalogue) Open(_ context.Context, d fs.PointDisk) (blockdev.Reader, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Opened.Add(1)
	v := c.vms[d.VM]
	return &disk{c: c, d: d, bad: v != nil && v.name == BadVM}, nil
}

// Content is what a disk of a point holds.
func Content(vm, ordinal uint64, name string) []byte {
	b := make([]byte, SizeBytes)
	for i := range 64 << 10 / 16 {
		binary.BigEndian.PutUint64(b[i*16:], vm^ordinal)
		copy(b[i*16+8:], name)
	}
	return b
}

// ID is the id of the VM of that name.
func (c *Catalogue) ID(name string) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	id, _ := c.find(name)
	return id
}

// Names returns the names of all VMs.
func (c *Catalogue) Names() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []string
	for v := range maps.Values(c.vms) {
		list = append(list, v.name)
	}
	slices.Sort(list)
	return list
}

// disk is an open disk. A read of one that was closed fails.
type disk struct {
	c      *Catalogue
	d      fs.PointDisk
	bad    bool
	closed atomic.Bool
}

// Size implements blockdev.Reader.
func (d *disk) Size() int64 { return SizeBytes }

// ReadAt implements blockdev.ReaderAt.
func (d *disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	if d.bad && off < SizeBytes/2 {
		return errs.New(errs.Corrupt, "chunk 91c0: checksum mismatch")
	}
	if err := blockdev.CheckRange(SizeBytes, off, int64(len(p))); err != nil {
		return err
	}
	copy(p, Content(d.d.VM, d.d.Seq, d.d.Name)[off:])
	if d.closed.Load() {
		return errs.New(errs.Other, "disk %s was closed under a reader", d.d.Name)
	}
	return ctx.Err()
}

// Extents implements blockdev.Reader.
func (d *disk) Extents(_ context.Context, off, n int64) iter.Seq2[blockdev.Extent, error] {
	return func(yield func(blockdev.Extent, error) bool) {
		for _, e := range []blockdev.Extent{{Off: 0, Len: 64 << 10, Kind: blockdev.Data}, {Off: 64 << 10, Len: 10, Kind: blockdev.Hole}} {
			from, to := max(off, e.Off), min(off+n, e.Off+e.Len)
			if from < to && !yield(blockdev.Extent{Off: from, Len: to - from, Kind: e.Kind}, nil) {
				return
			}
		}
	}
}

// Close implements blockdev.Reader.
func (d *disk) Close() error {
	if d.closed.Swap(true) {
		return errs.New(errs.Other, "disk %s was closed twice", d.d.Name)
	}
	d.c.Closed.Add(1)
	return nil
}
