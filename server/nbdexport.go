package server

import (
	"context"
	"net"
	"slices"
	"strings"
	"time"

	"livemount/blockdev"
	"livemount/blockdev/nbd"
	"livemount/fs/vmfiles"
	"livemount/internal/errs"
	"livemount/server/api"
)

// nbdExports are the disks of mounts that were asked for, as VM-ID/DISK, and, read-only, those of all points, as VM/DISK@TIME.
type nbdExports struct{ s *Server }

// maxListed bounds a list of exports.
const maxListed = 5000

// Open implements nbd.Exports. It waits for no mount: who ends one waits for its clients.
func (x nbdExports) Open(ctx context.Context, name string) (*nbd.Export, error) {
	if open, ok := x.s.nbd.find(name); ok {
		return open(), nil
	}
	return x.s.pointExport(ctx, name)
}

// List implements nbd.Exports.
func (x nbdExports) List(context.Context) (list []nbd.Info, err error) {
	x.s.nbd.mu.Lock()
	for name, e := range x.s.nbd.exports {
		list = append(list, nbd.Info{Name: name, Description: e().Description})
	}
	x.s.nbd.mu.Unlock()
	slices.SortFunc(list, func(a, b nbd.Info) int { return strings.Compare(a.Name, b.Name) })
	for _, vm := range x.s.store.VMs() {
		for _, d := range vm.Disks {
			if vm.Points > 0 && len(list) < maxListed {
				list = append(list, nbd.Info{Name: vm.Name + "/" + d.Name + "@latest", Description: "read-only; any point as VM/DISK@TIME"})
			}
		}
	}
	return list, nil
}

// exportName is that of a disk of the mount: it says which VM it is, and is unique.
func (m *mount) exportName(disk int) string {
	return vmfiles.SafeName(m.rec.VM) + "-" + m.rec.ID.String()[:8] + "/" + m.rec.Disks[disk].Disk.Name
}

// nbdDescription marks the exports of a mount.
func (m *mount) nbdDescription() string { return "mount " + m.rec.ID.String() }

// pointExport opens VM/DISK@TIME.
func (s *Server) pointExport(ctx context.Context, name string) (*nbd.Export, error) {
	left, when, ok := cutLast(name, "@")
	vm, disk, ok2 := cutLast(left, "/")
	if !ok || !ok2 {
		return nil, errs.New(errs.NotFound, "no export is named %q: neither a disk of a mount nor VM/DISK@TIME", name)
	}
	_, p, err := s.store.Resolve(ctx, vm+"@"+when, s.clock.Now(), time.Local)
	if err != nil {
		return nil, err
	}
	d := p.Disk(disk)
	if d == nil {
		return nil, errs.New(errs.NotFound, "%s@%s has no disk %q", vm, when, disk)
	}
	opened, err := s.store.OpenDisk(ctx, d)
	if err != nil {
		return nil, err
	}
	before := &earlier{s: s}
	return &nbd.Export{
		Description: "point " + p.ID.String() + " of " + p.Time.Format(time.RFC3339), Disk: opened, ReadOnly: true,
		Context: func(ctx context.Context, name string) (nbd.StatusOf, error) {
			old, err := before.disk(ctx, vm, disk, name)
			if err != nil {
				return nil, err
			}
			return changedOf(old, opened), nil
		},
		Release: func() {
			before.close()
			if err := opened.Close(); err != nil {
				s.log.Warn("disk of an NBD export was not closed", "export", name, "err", err)
			}
		},
	}, nil
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// ofMountNBD says which exports are the mount's.
func (m *mount) ofMountNBD(e *nbd.Export) bool { return e.Description == m.nbdDescription() }

// nbdClients are those who have a disk of the mount.
func (m *mount) nbdClients() []net.Addr { return m.s.nbd.Clients(m.ofMountNBD) }

// exportNBD serves the disks. The caller holds mu.
func (m *mount) exportNBD() error {
	if err := m.s.nbd.listen(m.s.nbd.address(m.rec.NBDAddress)); err != nil {
		return err
	}
	m.nbd = true
	for i := range m.rec.Disks {
		data, err := m.diskData(i)
		if err != nil {
			return err
		}
		m.s.nbd.put(m.exportName(i), m.nbdExport(i, data))
	}
	return nil
}

// nbdExport makes the export of a disk for each client that opens it.
func (m *mount) nbdExport(i int, data blockdev.Reader) func() *nbd.Export {
	s, log, base, d, readOnly := m.s, m.log, m.bases[i], m.rec.Disks[i], m.rec.ReadOnly
	description := m.nbdDescription()
	vm := m.rec.VMID
	return func() *nbd.Export {
		before := &earlier{s: s}
		return &nbd.Export{
			Description: description, Disk: data, ReadOnly: readOnly, Release: before.close,
			Context: func(ctx context.Context, name string) (nbd.StatusOf, error) {
				now, err := s.store.VMByID(vm)
				if err != nil {
					return nil, err
				}
				old, err := before.disk(ctx, now.Name, d.Disk.Name, name)
				switch {
				case err != nil:
					return nil, err
				case log == nil:
					return changedOf(old, base), nil
				}
				return changedOfMount(log, d.Node, old, base), nil
			},
		}
	}
}

// withdrawNBD ends the connections to the disks; there are no new ones. The caller holds mu.
func (m *mount) withdrawNBD() {
	if m.nbd {
		m.nbd = false
		m.s.nbd.drop(m.ofMountNBD)
	}
}

// mustHaveNoNBDClients is Busy while somebody has a disk.
func (m *mount) mustHaveNoNBDClients() error {
	if !m.nbd {
		return nil
	}
	list := m.nbdClients()
	if len(list) == 0 {
		return nil
	}
	return errs.WithTry(errs.New(errs.Busy, "unmount %s: %d NBD connections are open", m.rec.ID, len(list)), "end them, or add --force: their requests fail then")
}

// viewNBD tells about the exports. The caller holds mu.
func (m *mount) viewNBD(v *api.Mount) {
	if !m.nbd {
		return
	}
	v.NBD = &api.MountNBD{Address: m.s.nbd.address(m.rec.NBDAddress), Connections: len(m.nbdClients())}
	for i := range m.rec.Disks {
		v.Disks[i].NBDURL = m.s.nbd.uri(v.NBD.Address, m.exportName(i))
	}
}
