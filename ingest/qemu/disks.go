package qemu

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"livemount/internal/errs"
)

// prefix begins all names that we give in a QEMU.
const prefix = "livemount-"

func ours(name string) bool { return strings.HasPrefix(name, prefix) }

// maxDisks bounds the disks of a machine.
const maxDisks = 256

// block is a device in the answer to query-block (qapi/block-core.json, BlockInfo).
type block struct {
	Device    string `json:"device"`
	QDev      string `json:"qdev"`
	Removable bool   `json:"removable"`
	Inserted  *struct {
		Node  string `json:"node-name"`
		Drv   string `json:"drv"`
		RO    bool   `json:"ro"`
		Image struct {
			Size int64 `json:"virtual-size"`
		} `json:"image"`
		Bitmaps []bitmap `json:"dirty-bitmaps"`
	} `json:"inserted"`
}

// bitmap is a dirty bitmap of a node (BlockDirtyInfo).
type bitmap struct {
	Name         string `json:"name"`
	Recording    bool   `json:"recording"`
	Busy         bool   `json:"busy"`
	Inconsistent bool   `json:"inconsistent"`
}

// drive is a disk that is taken in.
type drive struct {
	name, node string
	qcow2      bool
	size       int64
	bitmaps    []bitmap // ours, as they were found
	begun      string   // the bitmap that begins at the moment; its name says which disk it is of
}

// names are what a device may be called: the drive's id, the device's, the node's.
func (b *block) names() []string {
	var list []string
	if b.Device != "" {
		list = append(list, b.Device)
	}
	for _, part := range slices.Backward(strings.Split(b.QDev, "/")) {
		if part != "" && part != "virtio-backend" && !strings.HasPrefix(part, "device[") {
			list = append(list, part)
			break
		}
	}
	if !strings.HasPrefix(b.Inserted.Node, "#") {
		list = append(list, b.Inserted.Node)
	}
	return append(list, b.Inserted.Node)
}

// drives finds the disks: all that the guest can write, or those that want names, as the name of the disk and of the device or
// node.
func (s *Session) drives(ctx context.Context) ([]*drive, error) {
	var all []block
	if err := s.m.run(ctx, "query-block", nil, &all); err != nil {
		return nil, err
	}
	if len(all) > maxDisks {
		return nil, errs.New(errs.Invalid, "the machine has %d block devices, more than %d", len(all), maxDisks)
	}
	var list []*drive
	for i := range all {
		b := &all[i]
		if b.Inserted == nil || b.Inserted.Node == "" || ours(b.Inserted.Node) {
			continue
		}
		name, ok := s.wanted(b)
		if !ok {
			continue
		}
		d := &drive{name: name, node: b.Inserted.Node, qcow2: b.Inserted.Drv == "qcow2", size: b.Inserted.Image.Size, begun: s.mine() + random()}
		for _, m := range b.Inserted.Bitmaps {
			if strings.HasPrefix(m.Name, s.mine()) {
				d.bitmaps = append(d.bitmaps, m)
			}
		}
		list = append(list, d)
	}
	if missing := len(s.o.Disks) - len(list); len(s.o.Disks) > 0 && missing > 0 || len(list) == 0 {
		var have []string
		for i := range all {
			if all[i].Inserted != nil {
				have = append(have, all[i].names()[0])
			}
		}
		return nil, errs.WithTry(errs.New(errs.NotFound, "not all disks are there; the machine has %s", strings.Join(have, ", ")), "--disk NAME=DEVICE with one of these")
	}
	return list, nil
}

// wanted says what a device is called in the point, if it is to be there.
func (s *Session) wanted(b *block) (name string, ok bool) {
	if len(s.o.Disks) == 0 {
		return safe(b.names()[0]), !b.Removable && !b.Inserted.RO
	}
	for name, device := range s.o.Disks {
		if slices.Contains(b.names(), device) {
			return name, true
		}
	}
	return "", false
}

// safe is a name that a disk of a point may have.
func safe(name string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("/@:=,\\*?\"<>| #", r) || r < ' ' {
			return '-'
		}
		return r
	}, name)
}

// settle gets the bitmaps ready that are there: the one of the last point, whichever that is, must have all changes since, and
// must not be thrown away by mistake. A backup that failed or was killed left a newer one that records, and older ones
// that do not: what the newer one has is added to them, and they record again.
func (s *Session) settle(ctx context.Context, d *drive) error {
	var good []bitmap
	newer := ""
	for _, b := range d.bitmaps {
		switch {
		case b.Busy:
			return errs.New(errs.Busy, "bitmap %s of %s is in use", b.Name, d.node)
		case b.Inconsistent:
			if err := s.removeBitmap(ctx, d, b.Name); err != nil {
				return err
			}
			continue
		case b.Recording:
			newer = b.Name
		}
		good = append(good, b)
	}
	d.bitmaps = nil
	for _, b := range good {
		if !b.Recording && newer == "" { // nobody knows what changed since it stopped
			if err := s.removeBitmap(ctx, d, b.Name); err != nil {
				return err
			}
			continue
		}
		d.bitmaps = append(d.bitmaps, b)
		if b.Recording {
			continue
		}
		err := s.transaction(ctx, []action{ // in this order what is written meanwhile is in both
			{"block-dirty-bitmap-enable", map[string]any{"node": d.node, "name": b.Name}},
			{"block-dirty-bitmap-merge", map[string]any{"node": d.node, "target": b.Name, "bitmaps": []string{newer}}},
		})
		if err != nil {
			return fmt.Errorf("bitmap %s of %s: %w", b.Name, d.node, err)
		}
	}
	return nil
}

func (s *Session) removeBitmap(ctx context.Context, d *drive, name string) error {
	return s.m.run(ctx, "block-dirty-bitmap-remove", map[string]any{"node": d.node, "name": name}, nil)
}

// action is one of a transaction.
type action struct {
	Type string         `json:"type"`
	Data map[string]any `json:"data"`
}

func (s *Session) transaction(ctx context.Context, list []action) error {
	return s.m.run(ctx, "transaction", map[string]any{"actions": list}, nil)
}
