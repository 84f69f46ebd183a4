package mountctl

import (
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"livemount/internal/errs"
	"livemount/server/api"
)

// placeFlags say where a mount is shown.
type placeFlags struct {
	datastore string
	nfs       bool
	allow     []string
	nbd       bool
	address   string // of NBD
}

func (f *placeFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.datastore, "datastore", "", "a folder that shows the mount as a hypervisor's datastore, instead of DIR")
	c.Flags().BoolVar(&f.nfs, "nfs", false, "export the mount as an NFS datastore")
	c.Flags().BoolVar(&f.nbd, "nbd", false, "export the disks through NBD")
	c.Flags().StringVar(&f.address, "nbd-address", "", "HOST:PORT or unix:PATH where NBD serves them (default livemountd's nbd_listen)")
	c.Flags().StringArrayVar(&f.allow, "allow", nil, "ADDRESS or NETWORK[,ro][,insecure][,root_squash]… that may mount it (default livemountd's nfs_allow)")
}

// place makes the place of dir, which is "" when none was given.
func (f *placeFlags) place(dir string) (api.Place, error) {
	p := api.Place{NFS: f.nfs, Allow: f.allow, NBD: f.nbd || f.address != "", NBDAddress: f.address}
	if f.datastore != "" {
		if dir != "" {
			return p, errs.New(errs.Invalid, "a folder shows either the disks (DIR) or the datastore (--datastore)")
		}
		dir, p.Datastore = f.datastore, true
	}
	if dir == "" && !f.nfs && !p.NBD {
		return p, errs.WithTry(errs.New(errs.Invalid, "no folder to mount on"), "a folder, --datastore DIR, --nfs, or --nbd")
	}
	if dir == "" {
		return p, nil
	}
	var err error
	p.Path, err = filepath.Abs(dir)
	return p, err
}

// shown says where the disks of a mount are and how others mount it.
func shown(w io.Writer, m *api.Mount) {
	if m.Datastore {
		fmt.Fprintln(w, m.Path)
	}
	for _, d := range m.Disks {
		if d.Path != "" {
			fmt.Fprintln(w, printable(d.Path))
		}
	}
	for _, d := range m.Disks {
		if d.NBDURL != "" {
			fmt.Fprintln(w, d.NBDURL)
		}
	}
	if m.NFS == nil || m.NFSURL == "" {
		return
	}
	n := m.NFS
	fmt.Fprintln(w, m.NFSURL)
	options := "vers=3,tcp,hard,nolock"
	if !n.Portmap {
		options += fmt.Sprintf(",port=%d,mountport=%d,mountproto=tcp", n.Port, n.MountPort)
	}
	host := n.Server
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	fmt.Fprintf(w, "Linux:  mount -t nfs -o %s %s:%s /mnt\n", options, host, n.Export)
	if n.Portmap && n.Port == 2049 {
		fmt.Fprintf(w, "ESXi:   esxcli storage nfs add -H %s -s %s -v %s\n", n.Server, n.Export, n.Export[1:])
	} else {
		fmt.Fprintln(w, "ESXi:   needs port 2049 and a portmapper: livemountd --nfs-listen ADDRESS:2049 --nfs-portmap")
	}
}

// printable is a path for people: in a datastore clients choose names, also with control characters.
func printable(path string) string {
	if strings.ContainsFunc(path, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(path)
	}
	return path
}

func (a *app) exportsCmd() *cobra.Command {
	var req api.ExportsRequest
	c := &cobra.Command{
		Use: "exports [MOUNT|DIR]", Short: "List the NFS exports, or change who may mount one",
		Long: `exports lists what is exported through NFS, who may mount it, and who did. With a
mount, --allow adds a rule, or replaces that of the same network, and --remove takes
one away, for all calls from then on. A rule is an address or a network, and with
commas ro, insecure, root_squash, all_squash, anonuid=N, anongid=N; the narrowest that fits
counts. The rules of a mount last as long as the mount.`,
		Example: `  mountctl exports
  mountctl exports 7c1e --allow 10.1.0.0/16 --allow 10.1.2.3,ro
  mountctl exports 7c1e --remove 10.1.0.0/16`,
		Args: args(0, 1),
	}
	c.Flags().StringArrayVar(&req.Allow, "allow", nil, "ADDRESS or NETWORK[,ro][,insecure][,root_squash]… that may mount it")
	c.Flags().StringArrayVar(&req.Remove, "remove", nil, "ADDRESS or NETWORK whose rule goes")
	c.RunE = func(c *cobra.Command, list []string) error {
		if len(list) == 0 {
			if len(req.Allow)+len(req.Remove) > 0 {
				return errs.WithTry(errs.New(errs.Invalid, "rules are those of a mount, and none was named"), "mountctl exports MOUNT --allow NETWORK")
			}
			return a.listExports(c)
		}
		m, err := a.findMount(c.Context(), list[0])
		if err != nil {
			return err
		}
		if len(req.Allow)+len(req.Remove) > 0 {
			if err := a.call(c.Context(), "POST", mountPath(m, "exports"), nil, &req, m); err != nil {
				return err
			}
		}
		return a.show(m, func(w io.Writer) { exportTable(w, []api.Mount{*m}) })
	}
	return c
}

func (a *app) listExports(c *cobra.Command) error {
	var v api.Mounts
	if err := a.call(c.Context(), "GET", "/v1/mounts", nil, nil, &v); err != nil {
		return err
	}
	exported := api.Mounts{Mounts: []api.Mount{}}
	for _, m := range v.Mounts {
		if m.NFS != nil {
			exported.Mounts = append(exported.Mounts, m)
		}
	}
	return a.show(&exported, func(w io.Writer) { exportTable(w, exported.Mounts) })
}

func exportTable(w io.Writer, mounts []api.Mount) {
	rows := [][]string{{"MOUNT", "VM", "EXPORT", "ALLOWED", "CLIENT", "SINCE", "LAST CALL", "CONNECTIONS"}}
	for i := range mounts {
		rows = append(rows, exportRows(&mounts[i])...)
	}
	table(w, rows)
}

// exportRows has a line for each rule and each client.
func exportRows(m *api.Mount) (rows [][]string) {
	if m.NFS == nil {
		return nil
	}
	for i := range max(1, len(m.NFS.Allow), len(m.NFS.Clients)) {
		row := make([]string, 8)
		if i == 0 {
			copy(row, []string{short(m.Mount), m.VM, m.NFS.Export})
		}
		if i < len(m.NFS.Allow) {
			row[3] = m.NFS.Allow[i]
		}
		if i < len(m.NFS.Clients) {
			c := m.NFS.Clients[i]
			copy(row[4:], []string{c.Address, when(c.Mounted), when(c.Seen), fmt.Sprint(c.Connections)})
		}
		rows = append(rows, row)
	}
	return rows
}
