package qemu

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"livemount/blockdev/nbd"
	"livemount/internal/clock"
	"livemount/internal/errs"
)

// Options of a session.
type Options struct {
	Socket string // of QMP
	// Scratch is the folder for scratch files and the NBD socket, which QEMU must be able to write to: that of Socket by default.
	Scratch string
	// Disks names the disks: name in the point, and device or node in QEMU. Empty: all that the guest can write, by their devices.
	Disks map[string]string
	// Owner begins the names of the bitmaps, so that those of another store on the same QEMU are left alone: hex digits.
	Owner string
	// Agent is the socket of the guest agent; the guest's file systems are frozen through it for the moment. "" is not.
	Agent string
	Clock clock.Clock
	Log   *slog.Logger
}

// Session is the disks of a machine at one moment.
type Session struct {
	o        Options
	m        *monitor
	disks    []*Disk
	started  bool   // the transaction was done
	serving  bool   // NBD is ours
	Frozen   bool   // the guest's file systems were frozen at the moment
	Machine  []byte // JSON: type, firmware, devices
	warnings []string
	room     *room
}

// Disk is one disk at the moment: an ingest.Source with ingest.Layers.
type Disk struct {
	*nbd.Client
	*drive
	s        *Session
	index    int
	compared string // why the bitmap is of no use
}

// Open begins a session.
func Open(ctx context.Context, o Options) (_ *Session, err error) {
	if o.Scratch == "" {
		o.Scratch = filepath.Dir(o.Socket)
	}
	if !filepath.IsAbs(o.Socket) || !filepath.IsAbs(o.Scratch) {
		return nil, errs.New(errs.Invalid, "QMP socket %q and scratch folder %q must be absolute paths", o.Socket, o.Scratch)
	}
	s := &Session{o: o}
	if s.m, err = connect(ctx, o.Socket, o.Clock); err != nil {
		return nil, err
	}
	if err := s.begin(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("backup of the QEMU at %s: %w", o.Socket, err), s.End(context.WithoutCancel(ctx), false))
	}
	return s, nil
}

// mine begins the names of our bitmaps.
func (s *Session) mine() string { return prefix + s.o.Owner + "-" }

func random() string {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func (s *Session) begin(ctx context.Context) error {
	if err := s.sweep(ctx); err != nil {
		return fmt.Errorf("remove what an earlier backup left: %w", err)
	}
	list, err := s.drives(ctx)
	if err != nil {
		return err
	}
	for i, d := range list {
		if err := s.settle(ctx, d); err != nil {
			return err
		}
		s.disks = append(s.disks, &Disk{drive: d, s: s, index: i})
	}
	s.machine(ctx)
	if err := s.checkRoom(); err != nil {
		return err
	}
	for _, d := range s.disks {
		if err := d.makeScratch(ctx); err != nil {
			return fmt.Errorf("scratch file of %s: %w", d.name, err)
		}
	}
	if err := s.moment(ctx); err != nil {
		return err
	}
	return s.serve(ctx)
}

// Disks are those of the machine.
func (s *Session) Disks() []*Disk { return s.disks }

// Notes are what people should know of the point.
func (s *Session) Notes() []string { return s.warnings }

func (s *Session) warn(format string, args ...any) {
	s.warnings = append(s.warnings, fmt.Sprintf(format, args...))
}

func node(kind string, i int) string { return prefix + kind + strconv.Itoa(i) }

func (d *Disk) scratch() string {
	return filepath.Join(d.s.o.Scratch, fmt.Sprintf("%sscratch-%d.qcow2", prefix, d.index))
}

func (s *Session) socket() string { return filepath.Join(s.o.Scratch, prefix+"nbd.sock") }

type args = map[string]any

// makeScratch makes the qcow2 file that takes what the guest overwrites, with the disk behind it.
func (d *Disk) makeScratch(ctx context.Context) error {
	m, file, fleece := d.s.m, node("file", d.index), node("old", d.index)
	if err := d.create(ctx, args{"driver": "file", "filename": d.scratch(), "size": 0}); err != nil {
		return err
	}
	if err := m.run(ctx, "blockdev-add", args{"driver": "file", "node-name": file, "filename": d.scratch()}, nil); err != nil {
		return err
	}
	if err := d.create(ctx, args{"driver": "qcow2", "file": file, "size": d.size}); err != nil {
		return err
	}
	return m.run(ctx, "blockdev-add", args{"driver": "qcow2", "node-name": fleece, "file": file, "backing": d.node}, nil)
}

// create runs a job that makes an image.
func (d *Disk) create(ctx context.Context, options args) error {
	m, job := d.s.m, node("create", d.index)
	m.forget(job)
	if err := m.run(ctx, "blockdev-create", args{"job-id": job, "options": options}, nil); err != nil {
		return err
	}
	if err := m.waitJob(ctx, job, "concluded"); err != nil {
		return err
	}
	var jobs []struct{ ID, Error string }
	err := m.run(ctx, "query-jobs", nil, &jobs)
	for _, j := range jobs {
		if j.ID == job && j.Error != "" && err == nil {
			err = errs.New(errs.Invalid, "%s", j.Error)
		}
	}
	return errors.Join(err, m.run(ctx, "job-dismiss", args{"id": job}, nil))
}

// forget drops what is known of a job of that name.
func (m *monitor) forget(job string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.jobs, job)
}

// moment is when the disks are as they are in the point.
func (s *Session) moment(ctx context.Context) error {
	thaw := s.freeze(ctx)
	err := s.transaction(ctx, s.actions(true))
	if err != nil && ctx.Err() == nil && s.transaction(ctx, s.actions(false)) == nil { // an old qcow2 (compat 0.10) keeps no bitmaps
		s.warn("bitmaps last only as long as QEMU runs: %v", err)
		err = nil
	}
	if s.started = err == nil; s.started {
		s.room.watch(context.WithoutCancel(ctx)) // End ends it
	}
	return errors.Join(err, thaw())
}

// actions are those of the transaction; persistent says that bitmaps are kept in disks that are qcow2.
func (s *Session) actions(persistent bool) (list []action) {
	for _, d := range s.disks {
		list = append(list, action{"block-dirty-bitmap-add", args{
			"node": d.node, "name": d.begun, "granularity": 64 << 10, "persistent": d.qcow2 && persistent,
		}})
		list = append(list, action{"blockdev-backup", args{
			"device": d.node, "target": node("old", d.index), "sync": "none", "job-id": node("job", d.index),
		}})
		for _, b := range d.bitmaps { // after the job has begun: what is written between is in one list too many, and not in none
			list = append(list, action{"block-dirty-bitmap-disable", args{"node": d.node, "name": b.Name}})
		}
	}
	return list
}

// serve shows what the moment was.
func (s *Session) serve(ctx context.Context) error {
	addr := args{"type": "unix", "data": args{"path": s.socket()}}
	err := s.m.run(ctx, "nbd-server-start", args{"addr": addr}, nil)
	if err != nil && s.unusedServer(ctx) { // one that a backup could not stop
		err = errors.Join(s.m.run(ctx, "nbd-server-stop", nil, nil), s.m.run(ctx, "nbd-server-start", args{"addr": addr}, nil))
	}
	if err != nil {
		return err
	}
	s.serving = true
	for _, d := range s.disks {
		var bitmaps []any
		var names []string
		for _, b := range d.bitmaps {
			bitmaps = append(bitmaps, args{"node": d.node, "name": b.Name})
			names = append(names, "qemu:dirty-bitmap:"+b.Name)
		}
		export := args{"type": "nbd", "id": node("export", d.index), "node-name": node("old", d.index), "name": d.name, "writable": false}
		if len(bitmaps) > 0 {
			export["bitmaps"] = bitmaps
		}
		if err := s.m.run(ctx, "block-export-add", export, nil); err != nil {
			return fmt.Errorf("export %s: %w", d.name, err)
		}
		u := nbd.URI{Network: "unix", Address: s.socket(), Export: d.name}
		c, err := nbd.Open(ctx, u, nbd.ClientOptions{Contexts: names, Clock: s.o.Clock})
		if err != nil {
			return err
		}
		d.Client = c
	}
	return nil
}

// unusedServer says that no NBD server of this QEMU shows anything.
func (s *Session) unusedServer(ctx context.Context) bool {
	var exports []struct{ Type string }
	if s.m.run(ctx, "query-block-exports", nil, &exports) != nil {
		return false
	}
	for _, e := range exports {
		if e.Type == "nbd" {
			return false
		}
	}
	return true
}

// End ends the session. sealed says that there is a point of it: then its bitmaps stay, and those of the points before go; else it is
// the other way round, and those of before get what changed meanwhile.
func (s *Session) End(ctx context.Context, sealed bool) error {
	defer s.m.close()
	if s.room != nil {
		s.room.end()
	}
	var list []error
	keep := func(err error) {
		if err != nil {
			list = append(list, err)
		}
	}
	for _, d := range s.disks {
		if d.Client != nil {
			keep(d.Client.Close())
		}
	}
	keep(s.sweep(ctx))
	if s.serving {
		keep(s.m.run(ctx, "nbd-server-stop", nil, nil))
		keep(remove(s.socket()))
	}
	for _, d := range s.disks {
		if s.started {
			keep(s.endBitmaps(ctx, d, sealed))
		}
	}
	return errors.Join(list...)
}

func remove(path string) error {
	if err := os.Remove(path); !errs.Is(err, errs.NotFound) {
		return err
	}
	return nil
}

func (s *Session) endBitmaps(ctx context.Context, d *Disk, sealed bool) error {
	if sealed {
		for _, b := range d.bitmaps {
			if err := s.removeBitmap(ctx, d.drive, b.Name); err != nil {
				return err
			}
		}
		return nil
	}
	var back []action
	for _, b := range d.bitmaps {
		back = append(back,
			action{"block-dirty-bitmap-enable", args{"node": d.node, "name": b.Name}},
			action{"block-dirty-bitmap-merge", args{"node": d.node, "target": b.Name, "bitmaps": []string{d.begun}}})
	}
	if len(back) > 0 {
		if err := s.transaction(ctx, back); err != nil {
			return err
		}
	}
	return s.removeBitmap(ctx, d.drive, d.begun)
}

// sweep removes the exports, jobs, nodes and files of ours that are there, of this session or of one that was killed.
func (s *Session) sweep(ctx context.Context) error {
	return errors.Join(s.sweepExports(ctx), s.sweepJobs(ctx), s.sweepNodes(ctx))
}

func (s *Session) sweepExports(ctx context.Context) error {
	var exports []struct{ ID string }
	if err := s.m.run(ctx, "query-block-exports", nil, &exports); err != nil {
		return err
	}
	others, left := 0, 0
	for _, e := range exports {
		if !ours(e.ID) {
			others++
			continue
		}
		left++
		if err := s.m.run(ctx, "block-export-del", args{"id": e.ID, "mode": "hard"}, nil); err != nil {
			return err
		}
	}
	if left > 0 && others == 0 && !s.serving { // a killed session's NBD server
		return s.m.run(ctx, "nbd-server-stop", nil, nil)
	}
	return nil
}

func (s *Session) sweepJobs(ctx context.Context) error {
	var jobs []struct{ ID, Status string }
	if err := s.m.run(ctx, "query-jobs", nil, &jobs); err != nil {
		return err
	}
	for _, j := range jobs {
		if !ours(j.ID) {
			continue
		}
		var err error
		if j.Status == "concluded" {
			err = s.m.run(ctx, "job-dismiss", args{"id": j.ID}, nil)
		} else if err = s.m.run(ctx, "job-cancel", args{"id": j.ID}, nil); err == nil {
			err = s.m.waitJob(ctx, j.ID, "null")
		}
		if err != nil && !errs.Is(err, errs.NotFound) {
			return fmt.Errorf("end job %s: %w", j.ID, err)
		}
	}
	return nil
}

func (s *Session) sweepNodes(ctx context.Context) error {
	var nodes []struct {
		Name string `json:"node-name"`
		File string `json:"file"`
		Drv  string `json:"drv"`
	}
	if err := s.m.run(ctx, "query-named-block-nodes", args{"flat": true}, &nodes); err != nil {
		return err
	}
	for _, drv := range []string{"qcow2", "file"} { // what stands on another goes first
		for _, n := range nodes {
			if !ours(n.Name) || n.Drv != drv {
				continue
			}
			if err := s.m.run(ctx, "blockdev-del", args{"node-name": n.Name}, nil); err != nil {
				return err
			}
			if base := filepath.Base(n.File); drv == "file" && strings.HasPrefix(base, prefix+"scratch-") {
				if err := remove(n.File); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// machine asks what the machine is. What is not known is left out.
func (s *Session) machine(ctx context.Context) {
	out := map[string]json.RawMessage{}
	for name, command := range map[string]string{
		"version": "query-version", "name": "query-name", "uuid": "query-uuid", "cpus": "query-cpus-fast", "memory": "query-memory-size-summary",
		"block": "query-block", "pci": "query-pci", "chardevs": "query-chardev", "firmware": "query-target",
	} {
		var v json.RawMessage
		if s.m.run(ctx, command, nil, &v) == nil {
			out[name] = v
		}
	}
	var kind json.RawMessage
	if s.m.run(ctx, "qom-get", args{"path": "/machine", "property": "type"}, &kind) == nil {
		out["machine"] = kind
	}
	s.Machine, _ = json.MarshalIndent(out, "", "  ") // of raw messages that were decoded: it cannot fail
}
