package server

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"path"
	"strings"

	"livemount/blockdev"
	"livemount/blockdev/overlay"
	"livemount/fs"
	"livemount/fs/datastore"
	"livemount/fs/vmfiles"
	"livemount/internal/errs"
)

// scratchLog is the log of a mount as its datastore takes it.
type scratchLog struct{ *overlay.Log }

// AddNode implements datastore.Log.
func (l scratchLog) AddNode(id uint64) error { return l.Add(overlay.Node{ID: id, Grows: true}) }

// startDatastore makes the datastore of the mount work on its log, and lays its first files when it is shown for the
// first time. Without a log it is read-only and made anew each time.
func (m *mount) startDatastore(ctx context.Context) error {
	var disks []datastore.Disk
	for i := range m.rec.Disks {
		d := &m.rec.Disks[i]
		data, err := m.diskData(i)
		if err != nil {
			return err
		}
		disks = append(disks, datastore.Disk{ID: fs.NodeID(d.Node), Data: data, Allocated: d.Disk.DataBytes})
	}
	var log datastore.Log // nil when read-only
	if m.log != nil {
		log = scratchLog{m.log}
	}
	if err := m.datastore.Start(ctx, log, disks); err != nil {
		return err
	}
	if !m.rec.showsDatastore() || m.datastore.Laid() {
		return nil
	}
	first, err := m.firstFiles(ctx)
	if err != nil {
		return err
	}
	untouched := m.log != nil && !m.rec.modified(m.log.Stats())
	if err := m.datastore.Lay(ctx, first); err != nil || !untouched {
		return err
	}
	m.rec.Laid = m.log.Stats().LastSeq
	return m.rec.write(m.dir)
}

// diskData is a disk of the mount, which tells when stored bytes of it are bad.
func (m *mount) diskData(i int) (blockdev.Reader, error) {
	d := &m.rec.Disks[i]
	data := m.metered(i)
	if m.log != nil {
		dev, err := m.log.Device(d.Node)
		if err != nil {
			return nil, err
		}
		data = dev
	}
	return notice(data, func(err error) { m.damage.add("mount %s: disk %s: %v", m.rec.ID, d.Disk.Name, err) }), nil
}

// metered is a disk of the point, which counts what is read of it.
func (m *mount) metered(i int) blockdev.Reader { return blockdev.Metered(m.bases[i], &m.fetched) }

// safeNames are the names of the disks' files: of disks that would have the same, the later ones get a number.
func safeNames(disks []mountDisk) []string {
	taken, names := map[string]bool{}, make([]string, len(disks))
	for i := range disks {
		name := vmfiles.SafeName(disks[i].Disk.Name)
		for n := 2; taken[vmfiles.DescriptorName(name)] || taken[vmfiles.FlatName(name)]; n++ {
			name = fmt.Sprintf("%s-%d", vmfiles.SafeName(disks[i].Disk.Name), n)
		}
		taken[vmfiles.DescriptorName(name)], taken[vmfiles.FlatName(name)] = true, true
		names[i] = name
	}
	return names
}

// firstFiles are the folder of the VM with its configuration, disk descriptors and disks.
func (m *mount) firstFiles(ctx context.Context) ([]datastore.First, error) {
	folder := vmfiles.SafeName(m.s.nameOf(m.rec))
	machine := vmfiles.Machine{Name: folder, Disks: m.vmDisks(safeNames(m.rec.Disks))}
	vmx, notes, err := m.vmx(ctx, machine)
	if err != nil {
		return nil, err
	}
	for _, note := range notes {
		m.s.log.Info("configuration was adjusted", "mount", m.rec.ID.String(), "note", note)
	}
	at := m.rec.PointTime
	list := []datastore.First{{Path: path.Join(folder, folder+".vmx"), Content: vmx.Bytes(), Perm: 0o755, Time: at}}
	for i, d := range machine.Disks {
		d.Bus = vmfiles.BusOf(vmx, d.Name)
		list = append(list,
			datastore.First{Path: path.Join(folder, vmfiles.DescriptorName(d.Name)), Content: vmfiles.Descriptor(d), Perm: 0o600, Time: at},
			datastore.First{Path: path.Join(folder, vmfiles.FlatName(d.Name)), Disk: fs.NodeID(m.rec.Disks[i].Node), Perm: 0o600, Time: at})
	}
	return list, m.roundUp(ctx, machine.Disks)
}

// vmDisks describes the disks for the files of the VM. The identities stay the same for as long as the mount lives.
func (m *mount) vmDisks(names []string) []vmfiles.Disk {
	var list []vmfiles.Disk
	for i := range m.rec.Disks {
		d := &m.rec.Disks[i]
		id := m.s.overlayID(m.rec.ID)
		sum := sha256.Sum256(binary.BigEndian.AppendUint64(id[:], d.Node))
		v := vmfiles.Disk{Name: names[i], SizeBytes: d.Disk.SizeBytes, CID: binary.BigEndian.Uint32(sum[16:])}
		copy(v.UUID[:], sum[:])
		list = append(list, v)
	}
	return list
}

// roundUp makes disks whose size is no multiple of 512 as long as their descriptors say.
func (m *mount) roundUp(ctx context.Context, disks []vmfiles.Disk) error {
	for i, d := range disks {
		if size := d.Sectors() * 512; m.log != nil && size != d.SizeBytes {
			if err := m.log.SetSize(ctx, m.rec.Disks[i].Node, size); err != nil {
				return err
			}
		}
	}
	return nil
}

// vmx is the configuration that was captured with the point, with paths that lead to the files beside it, or one made of
// what is known.
func (m *mount) vmx(ctx context.Context, machine vmfiles.Machine) (*vmfiles.VMX, []string, error) {
	name, config, err := m.config(ctx)
	if err != nil {
		return nil, nil, err
	}
	var notes []string
	if strings.HasSuffix(strings.ToLower(name), ".vmx") {
		v, err := vmfiles.ParseVMX(config)
		if err == nil {
			if _, ok := v.Get("config.version"); ok {
				return v, vmfiles.Adjust(v, machine), nil
			}
			err = errs.New(errs.Invalid, "it has no config.version")
		}
		notes = append(notes, fmt.Sprintf("the captured %s is not used: %v", name, err))
	} else if strings.HasSuffix(strings.ToLower(name), ".xml") {
		known, err := vmfiles.FromLibvirt(config)
		if err == nil {
			known.Name, known.Disks = machine.Name, machine.Disks
			machine = known
		} else {
			notes = append(notes, fmt.Sprintf("the captured %s is not used: %v", name, err))
		}
	}
	if machine.Firmware == "" {
		machine.Firmware = m.firmware(ctx)
	}
	return vmfiles.Generate(machine), append(notes, vmfiles.GenerateNotes(machine)...), nil
}

// firmware is what the first disk looks as if it were booted by. A disk that cannot be read is noticed by those who read
// it for its data.
func (m *mount) firmware(ctx context.Context) string {
	if len(m.bases) == 0 {
		return vmfiles.FirmwareBIOS
	}
	head := make([]byte, min(24<<10, m.bases[0].Size()))
	data, err := m.diskData(0)
	if err == nil {
		err = data.ReadAt(ctx, head, 0)
	}
	if err != nil {
		return vmfiles.FirmwareBIOS
	}
	return vmfiles.SniffFirmware(head)
}

// config returns the configuration that was captured with the mount's point; "" when there is none.
func (m *mount) config(ctx context.Context) (name string, b []byte, err error) {
	_, points, err := m.s.store.PointsOf(ctx, m.rec.VMID)
	if err != nil {
		return "", nil, err
	}
	for i := range points {
		if p := &points[i]; p.ID == m.rec.Point && p.Config != nil {
			b, err = m.s.store.Config(ctx, p)
			return p.Config.Name, b, err
		}
	}
	return "", nil, nil
}

// showsDatastore says whether anybody sees more than the disks.
func (r *mountRecord) showsDatastore() bool { return r.Datastore || r.NFS }

// modified says whether anything was written to the mount, be it only zeroes.
func (r *mountRecord) modified(st overlay.Stats) bool {
	if r.Laid != 0 {
		return st.LastSeq > r.Laid
	}
	return st.Extents > 0
}

// written is how much data in the log differs from the point; the first files are no difference.
func (r *mountRecord) written(st overlay.Stats) int64 {
	if !r.modified(st) {
		return 0
	}
	return st.LiveBytes
}

// checkDisksAreThere refuses to commit a mount in whose datastore disks were removed.
func (m *mount) checkDisksAreThere() error {
	if m.datastore == nil || !m.datastore.Laid() {
		return nil
	}
	for i := range m.rec.Disks {
		d := &m.rec.Disks[i]
		if _, err := m.datastore.Node(fs.NodeID(d.Node)); err != nil {
			return errs.New(errs.Invalid, "commit %s: disk %s was removed from its datastore", m.rec.ID, d.Disk.Name)
		}
	}
	return nil
}
