package server

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"livemount/fs"
	"livemount/fs/vmfiles"
	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/nfsd"
	"livemount/server/api"
)

// place notes where the mount is shown, but for the folder.
func (r *mountRecord) place(at *api.Place) error {
	switch {
	case at.Datastore && at.Path == "":
		return errs.New(errs.Invalid, "no folder to show the datastore in")
	case len(at.Allow) > 0 && !at.NFS:
		return errs.WithTry(errs.New(errs.Invalid, "rules say who may mount through NFS, which was not asked for"), "--nfs")
	}
	if at.NBDAddress != "" {
		if !at.NBD {
			return errs.WithTry(errs.New(errs.Invalid, "an address of NBD, which was not asked for"), "--nbd")
		}
		if _, _, err := parseNBD(at.NBDAddress); err != nil {
			return err
		}
	}
	r.NBD, r.NBDAddress = at.NBD, at.NBDAddress
	rules, err := parseRules(at.Allow)
	if err != nil {
		return err
	}
	if len(rules) > rulesMax {
		return errs.New(errs.Invalid, "%d rules, more than %d", len(rules), rulesMax)
	}
	r.Datastore, r.NFS, r.Allow = at.Datastore, at.NFS, nil
	if len(rules) > 0 {
		r.Allow = ruleTexts(rules)
	}
	return nil
}

// exportPath is what clients mount: it says which VM it is, and is unique.
func (m *mount) exportPath() string {
	return "/" + vmfiles.SafeName(m.rec.VM) + "-" + m.rec.ID.String()[:8]
}

// newExport describes the mount to the NFS server.
func (m *mount) newExport() (*nfsd.Export, error) {
	rules, err := m.rules()
	if err != nil {
		return nil, err
	}
	e := &nfsd.Export{
		ID: uint64(m.rec.ID), Path: m.exportPath(), Rules: rules, Traffic: &nfsd.Traffic{},
		Mounted: func(c netip.Addr, path string, mounted bool) error { return m.nfs.note(m, c, path, mounted) },
		Clients: m.nfs.addresses,
	}
	if m.datastore != nil {
		e.Tree = m.datastore
	}
	return e, nil
}

// rules are those of the mount, or the daemon's.
func (m *mount) rules() ([]nfsd.Rule, error) {
	rules, err := parseRules(m.rec.Allow)
	if err == nil && len(rules) == 0 {
		rules, err = m.s.config.defaultRules()
	}
	return rules, err
}

// exportNFS serves the datastore through NFS.
func (m *mount) exportNFS() error {
	e, err := m.newExport()
	if err == nil {
		err = m.s.nfs.listen()
	}
	if err == nil {
		err = m.s.nfs.Put(e)
	}
	if err == nil {
		m.export = e
	}
	return err
}

// holdNFS lets clients of a mount that could not come back wait, instead of telling them that it is gone.
func (m *mount) holdNFS() {
	if !m.rec.NFS {
		return
	}
	e, err := m.newExport()
	if err == nil {
		e.Tree = nil
		err = m.s.nfs.Put(e)
	}
	if err == nil {
		err = m.s.nfs.listen()
	}
	if err != nil {
		m.s.log.Error("clients of a mount that did not come back are not held", "mount", m.rec.ID.String(), "err", err)
	}
}

// holdUnknown lets the clients wait of a mount whose record is bad: if it was exported, it is not gone.
func (s *Server) holdUnknown(name string) {
	var id mountID
	rules, err := s.config.defaultRules()
	if err == nil {
		err = id.UnmarshalText([]byte(name))
	}
	if err == nil {
		err = s.nfs.Put(&nfsd.Export{ID: uint64(id), Path: "/unavailable-" + name, Rules: rules, Traffic: &nfsd.Traffic{},
			Clients: func() []netip.Addr { return nil }, Mounted: func(netip.Addr, string, bool) error { return nil }})
	}
	if err != nil {
		s.log.Warn("clients of a mount with a bad record are not held", "mount", name, "err", err)
	}
}

// withdraw ends the export, if there is one, also one that holds clients.
func (m *mount) withdraw() {
	if !m.s.stopping() {
		m.s.nfs.Withdraw(uint64(m.rec.ID))
	}
	m.export = nil
}

// standBack lets clients wait again, after a failure to serve a mount that they may have mounted. One that nobody can
// have mounted yet is not held.
func (m *mount) standBack(fresh bool) {
	switch m.export = nil; {
	case fresh:
		m.withdraw()
	case m.rec.NFS:
		m.holdNFS()
	}
}

// callersFor is how long ago a client that is connected must have called, to count as one that has it mounted. Clients
// that mounted count without that: this is for those whose mounting is not known, or was taken back by another on
// their machine.
const callersFor = time.Minute

// inUse are the clients that have the datastore mounted.
func (m *mount) inUse() []netip.Addr {
	list := m.nfs.addresses()
	if m.export == nil {
		return list
	}
	for _, a := range m.export.Callers(m.s.clock.Now().Add(-callersFor)) {
		if !slices.Contains(list, a) && m.s.nfs.Client(a).Connections > 0 {
			list = append(list, a)
		}
	}
	return list
}

// mustHaveNoClients is Busy while clients have the datastore mounted.
func (m *mount) mustHaveNoClients() error {
	list := m.inUse()
	if len(list) == 0 {
		return nil
	}
	var names []string
	for _, a := range list {
		names = append(names, a.String()+m.s.nfs.lastHeard(a))
	}
	return errs.WithTry(errs.New(errs.Busy, "unmount %s: NFS clients have it mounted: %s", m.rec.ID, strings.Join(names, ", ")),
		"umount there, or add --force: their calls fail then")
}

// lastHeard says of a client whether it seems to be there still. A client that is idle has no connection either.
func (n *nfsService) lastHeard(a netip.Addr) string {
	switch st := n.Client(a); {
	case st.Connections > 0:
		return " (connected)"
	case st.Seen.IsZero():
		return " (not connected, not heard since livemountd started)"
	default:
		return " (not connected, last heard " + st.Seen.UTC().Format(time.RFC3339) + ")"
	}
}

// nfsClients are those that mounted and did not say that they unmounted: by address and path, because a host may have
// several mounts. They are written down, because a client does not mount again when the daemon starts again.
type nfsClients struct {
	mu   sync.Mutex // guards list, and is held while it is written
	list map[netip.Addr]map[string]time.Time
}

// clientsMax bounds the clients of a mount, pathsMax what one has mounted of it.
const (
	clientsMax = 2000
	pathsMax   = 20
)

func clientsFile(m *mount) string { return filepath.Join(m.dir, "clients") }

// load reads what an earlier run wrote. When it is bad nobody is known: that is said, for unmount will not refuse.
func (c *nfsClients) load(m *mount) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, err := vfs.ReadChecked(vfs.OS{}, clientsFile(m), 64<<20)
	if errs.Is(err, errs.NotFound) {
		return
	}
	if err == nil {
		err = json.Unmarshal(b, &c.list)
	}
	if err != nil {
		m.s.log.Error("list of NFS clients is bad", "mount", m.rec.ID.String(), "err", err)
		m.damage.add("mount %s: list of NFS clients: %v", m.rec.ID, err)
	}
}

// note writes down that a client mounted a path, or unmounted it; "" is all of its paths.
func (c *nfsClients) note(m *mount, client netip.Addr, path string, mounted bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	paths := maps.Clone(c.list[client])
	if _, there := paths[path]; there && mounted || !mounted && len(paths) == 0 {
		return nil
	}
	switch {
	case mounted && len(paths) == 0 && len(c.list) >= clientsMax, mounted && len(paths) >= pathsMax:
		return errs.New(errs.Busy, "%d clients have mounted, or one %d paths: the most there may be", clientsMax, pathsMax)
	case mounted && paths == nil:
		paths = map[string]time.Time{path: m.s.clock.Now().UTC()}
	case mounted:
		paths[path] = m.s.clock.Now().UTC()
	case path == "":
		clear(paths)
	default:
		delete(paths, path)
	}
	next := maps.Clone(c.list)
	if next == nil {
		next = map[netip.Addr]map[string]time.Time{}
	}
	if next[client] = paths; len(paths) == 0 {
		delete(next, client)
	}
	b, err := json.Marshal(next)
	if err == nil {
		err = vfs.WriteChecked(vfs.OS{}, clientsFile(m), b)
	}
	if err == nil {
		c.list = next
	}
	return err
}

// forget empties the list.
func (c *nfsClients) forget(m *mount) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = nil
	if err := (vfs.OS{}).Remove(clientsFile(m)); err != nil && !errs.Is(err, errs.NotFound) {
		m.s.log.Warn("list of NFS clients was not removed", "mount", m.rec.ID.String(), "err", err)
	}
}

func (c *nfsClients) addresses() []netip.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.SortedFunc(maps.Keys(c.list), netip.Addr.Compare)
}

// since is when a client mounted the path that it has longest.
func (c *nfsClients) since(a netip.Addr) (first time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, at := range c.list[a] {
		if first.IsZero() || at.Before(first) {
			first = at
		}
	}
	return first
}

// diskPath is where a disk is below the folder of the mount; "" when there is none.
func (m *mount) diskPath(d *mountDisk) string {
	switch {
	case m.rec.Path == "":
		return ""
	case !m.rec.Datastore:
		return filepath.Join(m.rec.Path, diskFile(d.Disk.Name))
	case m.datastore == nil:
		return ""
	}
	if path := m.datastore.PathOf(fs.NodeID(d.Node)); path != "" {
		return filepath.Join(m.rec.Path, path)
	}
	return ""
}

// viewNFS tells about the export. The caller holds mu.
func (m *mount) viewNFS(v *api.Mount) {
	if m.export == nil {
		return
	}
	port, mountPort, portmap := m.s.nfs.where()
	if problem := m.s.nfs.problem(); problem != nil && v.Reason == "" {
		v.Reason = problem.Error()
	}
	n := &api.MountNFS{
		Server: m.s.nfs.host(), Export: m.export.Path, Port: port, MountPort: mountPort, Portmap: portmap,
		Allow: ruleTexts(m.export.Rules), Clients: []api.NFSClient{},
		ReadBytes: m.export.Traffic.Read.Load(), WrittenBytes: m.export.Traffic.Written.Load(), Calls: m.export.Traffic.Calls.Load(),
	}
	for _, a := range m.nfs.addresses() {
		st := m.s.nfs.Client(a)
		n.Clients = append(n.Clients, api.NFSClient{Address: a.String(), Mounted: m.nfs.since(a), Seen: st.Seen, Connections: st.Connections})
	}
	if v.NFS = n; port == 0 { // nobody listens
		return
	}
	v.NFSURL = n.URL("")
	for i := range m.rec.Disks {
		if path := m.datastore.PathOf(fs.NodeID(m.rec.Disks[i].Node)); path != "" {
			v.Disks[i].NFSURL = n.URL("/" + path)
		}
	}
}

// postExports changes who may mount.
func (s *Server) postExports(r *http.Request) (int, any, error) {
	var req api.ExportsRequest
	if err := body(r, &req); err != nil {
		return 0, nil, err
	}
	m, err := s.findMount(r.PathValue("id"))
	if err != nil {
		return 0, nil, err
	}
	if err := m.changeRules(&req); err != nil {
		return 0, nil, err
	}
	return http.StatusOK, m.view(), nil
}

// changeRules changes who may mount, durably and at once.
func (m *mount) changeRules(req *api.ExportsRequest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.export == nil {
		return errs.WithTry(errs.New(errs.Invalid, "mount %s is not exported through NFS", m.rec.ID), "mountctl mount VM@TIME --nfs")
	}
	rules := slices.Clone(m.export.Rules)
	for _, text := range req.Remove {
		n, err := parseNetwork(text)
		if err != nil {
			return err
		}
		if len(dropRule(rules, n)) == len(rules) {
			return errs.New(errs.NotFound, "mount %s has no rule for %s", m.rec.ID, n)
		}
		rules = dropRule(rules, n)
	}
	for _, text := range req.Allow {
		rule, err := parseRule(text)
		if err != nil {
			return err
		}
		rules = putRule(rules, rule)
	}
	if len(rules) > rulesMax {
		return errs.New(errs.Invalid, "%d rules, more than %d", len(rules), rulesMax)
	}
	if len(rules) == 0 {
		return errs.WithTry(errs.New(errs.Invalid, "nobody could mount %s any more", m.rec.ID), "mountctl unmount %s", m.rec.ID)
	}
	old := m.rec.Allow
	m.rec.Allow = ruleTexts(rules)
	if err := m.rec.write(m.dir); err != nil {
		m.rec.Allow = old
		return err
	}
	m.s.nfs.SetRules(m.export, rules)
	return nil
}
