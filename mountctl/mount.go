package mountctl

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"livemount/internal/errs"
	"livemount/server/api"
)

func (a *app) mountCmd() *cobra.Command {
	var readOnly bool
	var resume string
	var place placeFlags
	c := &cobra.Command{
		Use:   "mount VM@TIME [DIR]",
		Short: "Show a point in time as writable disks: under a folder, through NFS or NBD",
		Long: `mount shows the disks of a point as DIR/<disk>.raw, at once and without copying
anything. They can be written: what is written goes to a log beside the point,
which never changes. DIR must be empty, or missing in a folder that exists.

--nfs exports the same disks as an NFS version 3 datastore: a folder with the VM's
.vmx, a descriptor and a flat file for each disk, and room for whatever the
hypervisor writes beside them. --datastore DIR shows that datastore under a folder.
--nbd exports each disk through NBD.

A mount comes back when livemountd or the machine starts again. --resume brings a
kept mount back with what was written to it.`,
		Example: `  mountctl mount web@latest /mnt/web
  losetup -fP --show /mnt/web/sda.raw
  mountctl mount web@2026-11-20 /mnt/old --read-only
  mountctl mount web@latest --nfs --allow 10.1.0.0/16
  mountctl mount web@latest --nbd
  mountctl mount web@latest --datastore /mnt/store
  mountctl mount --resume 7c1e /mnt/web`,
		Args: args(0, 2),
	}
	c.Flags().BoolVar(&readOnly, "read-only", false, "refuse writes; needs no log")
	c.Flags().StringVar(&resume, "resume", "", "a kept mount, by its id or the beginning of it")
	place.add(c)
	c.RunE = func(c *cobra.Command, list []string) error {
		if resume != "" {
			return a.resume(c.Context(), resume, list, &place, readOnly)
		}
		if len(list) == 0 {
			return errs.WithTry(errs.New(errs.Invalid, "usage: %s", c.UseLine()), "mountctl mount web@latest /mnt/web")
		}
		return a.mount(c.Context(), list[0], append(list, "")[1], &place, readOnly)
	}
	return c
}

func (a *app) mount(ctx context.Context, ref, dir string, f *placeFlags, readOnly bool) error {
	p, err := f.place(dir)
	if err != nil {
		return err
	}
	var m api.Mount
	err = a.call(ctx, "POST", "/v1/mounts", nil, &api.MountRequest{Ref: ref, Place: p, ReadOnly: readOnly}, &m)
	if err != nil {
		return err
	}
	return a.show(&m, func(w io.Writer) { mounted(w, &m) })
}

func (a *app) resume(ctx context.Context, id string, list []string, f *placeFlags, readOnly bool) error {
	if len(list) > 1 || readOnly {
		return errs.WithTry(errs.New(errs.Invalid, "usage: mountctl mount --resume MOUNT [DIR]"), "mountctl mounts")
	}
	p, err := f.place(append(list, "")[0])
	if err != nil {
		return err
	}
	var m api.Mount
	if err := a.call(ctx, "POST", "/v1/mounts/"+url.PathEscape(id)+"/resume", nil, &api.ResumeRequest{Place: p}, &m); err != nil {
		return err
	}
	return a.show(&m, func(w io.Writer) { mounted(w, &m) })
}

func mounted(w io.Writer, m *api.Mount) {
	fmt.Fprintf(w, "mount %s: %s of %s, in %s\n", short(m.Mount), m.VM, when(m.PointTime), seconds(m.ElapsedSeconds))
	shown(w, m)
}

func (a *app) mountsCmd() *cobra.Command {
	return &cobra.Command{
		Use: "mounts", Short: "List the mounts",
		Long: `mounts lists what is mounted, what was kept to be mounted again, and what failed to
come back, with the reason. FETCHED is what was read of the point; CLIENTS, NFS READ
and NFS WRITTEN are those of the NFS export (mountctl exports names the clients).`,
		Example: "  mountctl mounts\n  mountctl mounts --output json", Args: args(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			var v api.Mounts
			if err := a.call(c.Context(), "GET", "/v1/mounts", nil, nil, &v); err != nil {
				return err
			}
			return a.show(&v, func(w io.Writer) { a.mountTable(w, v.Mounts) })
		},
	}
}

func (a *app) mountTable(w io.Writer, mounts []api.Mount) {
	rows := [][]string{{"MOUNT", "VM", "POINT", "STATE", "MODE", "AGE", "WRITTEN", "FETCHED", "CLIENTS", "NFS READ", "NFS WRITTEN", "PATH"}}
	for _, m := range mounts {
		mode := "writable"
		if m.ReadOnly {
			mode = "read-only"
		}
		written, fetched := size(m.WrittenBytes), size(m.FetchedBytes)
		if m.State != "mounted" {
			written, fetched = "-", "-" // not counted while it is not served
		}
		clients, nfsRead, nfsWritten, path := "-", "-", "-", m.Path
		if n := m.NFS; n != nil {
			clients, nfsRead, nfsWritten = strconv.Itoa(len(n.Clients)), size(n.ReadBytes), size(n.WrittenBytes)
			if path == "" {
				path = m.NFSURL
			}
		}
		if path == "" && len(m.Disks) > 0 {
			path = m.Disks[0].NBDURL
		}
		age := took(a.clock.Now().Sub(m.Created))
		rows = append(rows, []string{short(m.Mount), m.VM, when(m.PointTime), m.State, mode, age, written, fetched, clients, nfsRead, nfsWritten, path})
	}
	table(w, rows)
	for _, m := range mounts {
		if m.Reason != "" {
			fmt.Fprintf(w, "%s: %s\n", short(m.Mount), m.Reason)
		}
	}
}

func (a *app) unmountCmd() *cobra.Command {
	var req api.UnmountRequest
	var yes bool
	c := &cobra.Command{
		Use: "unmount MOUNT|DIR", Aliases: []string{"umount"},
		Short: "End a mount; discard or keep what was written to it",
		Long: `unmount ends a mount, named by its id, the beginning of that, or its folder. What
was written to it is discarded, after asking, or kept with --keep for
mount --resume. The point is not touched either way.`,
		Example: `  mountctl unmount /mnt/web --yes
  mountctl unmount 7c1e --keep`,
		Args: args(1, 1),
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "discard without asking")
	c.Flags().BoolVar(&req.Keep, "keep", false, "keep what was written")
	c.Flags().BoolVar(&req.Force, "force", false, "also when programs have files open there, or NFS clients have it mounted")
	c.Flags().BoolVar(&req.DryRun, "dry-run", false, "only show what would go")
	c.RunE = func(c *cobra.Command, list []string) error { return a.unmount(c.Context(), list[0], &req, yes) }
	return c
}

func (a *app) unmount(ctx context.Context, name string, req *api.UnmountRequest, yes bool) error {
	m, err := a.findMount(ctx, name)
	if err != nil {
		return err
	}
	if req.DryRun {
		return a.show(m, func(w io.Writer) {
			fmt.Fprintln(w, whatGoes(m, req))
			if m.NFS != nil && len(m.NFS.Clients) > 0 {
				fmt.Fprintf(w, "%d NFS clients have it mounted: it needs --force, and their calls fail then\n", len(m.NFS.Clients))
			}
		})
	}
	if !req.Keep && !yes && (m.Modified || m.State == "failed") && !m.ReadOnly {
		if err := a.confirm(whatGoes(m, req), "--yes, or --keep", "Discard it?"); err != nil {
			return err
		}
	}
	var out api.Mount
	if err := a.call(ctx, "POST", "/v1/mounts/"+m.Mount+"/unmount", nil, req, &out); err != nil {
		return err
	}
	return a.show(&out, func(w io.Writer) {
		fmt.Fprintf(w, "mount %s ended, %s\n", short(out.Mount), map[bool]string{true: "kept: mountctl mount --resume " + short(out.Mount) + " DIR", false: goneText(m)}[req.Keep])
	})
}

func goneText(m *api.Mount) string {
	if m.State == "failed" {
		return "what had been written to it is gone"
	}
	if m.Modified {
		return "its writes are gone"
	}
	return "nothing had been written to it"
}

func whatGoes(m *api.Mount, req *api.UnmountRequest) string {
	at := cmp.Or(m.Path, m.NFSURL)
	if m.Kind != "" {
		return fmt.Sprintf("mount %s of all points at %s would end; nothing would be lost", short(m.Mount), at)
	}
	if !req.Keep && m.State != "mounted" {
		return fmt.Sprintf("what was written to mount %s of %s, %s, would be lost for good", short(m.Mount), m.VM, m.State)
	}
	if req.Keep {
		return fmt.Sprintf("mount %s of %s at %s would end; %s written to it would be kept", short(m.Mount), m.VM, at, size(m.WrittenBytes))
	}
	return fmt.Sprintf("%s written to mount %s of %s at %s would be lost for good", size(m.WrittenBytes), short(m.Mount), m.VM, at)
}

// minPrefix is the least of an id that names a mount.
const minPrefix = 4

// meansID tells whether a name can be the beginning of an id: what is there as a file or folder is that, mounted
// or not, and never discards a mount elsewhere whose id begins alike.
func meansID(name, abs string) bool {
	_, err := os.Lstat(abs)
	return len(name) >= minPrefix && errors.Is(err, os.ErrNotExist)
}

// findMount finds a mount by id, prefix or folder.
func (a *app) findMount(ctx context.Context, name string) (*api.Mount, error) {
	if name == "" {
		return nil, errs.WithTry(errs.New(errs.Invalid, "the name of the mount is empty"), "mountctl mounts")
	}
	var v api.Mounts
	if err := a.call(ctx, "GET", "/v1/mounts", nil, nil, &v); err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	real, err := filepath.EvalSymlinks(abs) // mounts are listed without links
	if err != nil {
		real = abs
	}
	var found []*api.Mount
	for i := range v.Mounts {
		m := &v.Mounts[i]
		// A folder means what is mounted there now, never a mount that was kept and had it before. It may look
		// like the beginning of an id.
		if (m.Path == abs || m.Path == real) && m.State != "kept" {
			return m, nil
		}
		if strings.HasPrefix(m.Mount, strings.ToLower(name)) && meansID(name, abs) {
			found = append(found, m)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, errs.WithTry(errs.New(errs.NotFound, "no mount is %q", name), "mountctl mounts")
	default:
		return nil, errs.WithTry(errs.New(errs.Invalid, "%q means several mounts", name), "mountctl mounts")
	}
}

// confirm asks a person. Without one there to answer, a flag is needed: try names it.
func (a *app) confirm(what, try, question string) error {
	fmt.Fprintln(a.err, what+".")
	f, ok := a.in.(*os.File)
	if !ok || !isTerminal(f) {
		return errs.WithTry(errs.New(errs.Invalid, "nobody is there to confirm"), "%s", try)
	}
	fmt.Fprint(a.err, question+" [y/N] ")
	line, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil && err != io.EOF {
		return err
	}
	if answer := strings.ToLower(strings.TrimSpace(line)); answer != "y" && answer != "yes" {
		return errs.New(errs.Canceled, "nothing was changed")
	}
	return nil
}
