package mountctl

import (
	"context"
	"fmt"
	"io"
	"net/url"

	"github.com/spf13/cobra"

	"livemount/internal/errs"
	"livemount/server/api"
)

func (a *app) commitCmd() *cobra.Command {
	var branch string
	var detach bool
	c := &cobra.Command{
		Use:   "commit MOUNT|DIR --branch NAME",
		Short: "Keep the present state of a mount as a point on a branch",
		Long: `commit makes what a mount shows at this moment, all its disks at once, a point
VM:NAME@TIME. The mount goes on. The VM's own points do not change: VM@latest and
the next backup are what they were. Committing again to the same branch adds a
point with what was written since. Nothing that is stored already is copied.

What programs have not written yet is not in it: stop or freeze the guest, or sync
its file systems, for more than the state after a power cut.`,
		Example: `  mountctl commit 7c1e --branch patched
  mountctl commit /mnt/web --branch patched --output json
  mountctl mount web:patched@latest /mnt/patched`,
		Args: args(1, 1),
	}
	c.Flags().StringVar(&branch, "branch", "", "name of the branch")
	c.Flags().BoolVar(&detach, "detach", false, "do not wait; print the job")
	c.RunE = func(c *cobra.Command, list []string) error {
		if branch == "" {
			return errs.WithTry(errs.New(errs.Invalid, "no branch was named"), "mountctl commit %s --branch NAME", list[0])
		}
		return a.commit(c.Context(), list[0], branch, detach)
	}
	return c
}

func (a *app) commit(ctx context.Context, name, branch string, detach bool) error {
	m, err := a.findMount(ctx, name)
	if err != nil {
		return err
	}
	var j api.Job
	if err := a.call(ctx, "POST", mountPath(m, "commit"), nil, &api.CommitRequest{Branch: branch}, &j); err != nil {
		return err
	}
	return a.followBackup(ctx, &j, detach)
}

func mountPath(m *api.Mount, what string) string {
	return "/v1/mounts/" + url.PathEscape(m.Mount) + "/" + what
}

func (a *app) forkCmd() *cobra.Command {
	var place placeFlags
	c := &cobra.Command{
		Use:   "fork MOUNT|DIR [NEWDIR]",
		Short: "Make a second writable mount with the present state of a mount",
		Long: `fork shows what a mount holds at this moment, all its disks at once, under another
folder as well. Both can be written from then on and do not see each other's
writes. Nothing is copied; either may be unmounted first.`,
		Example: `  mountctl fork 7c1e /mnt/web-test
  mountctl fork /mnt/web /mnt/web-test --output json
  mountctl fork 7c1e --nfs`,
		Args: args(1, 2),
		RunE: func(c *cobra.Command, list []string) error {
			return a.fork(c.Context(), list[0], append(list, "")[1], &place)
		},
	}
	place.add(c)
	return c
}

func (a *app) fork(ctx context.Context, name, dir string, place *placeFlags) error {
	p, err := place.place(dir)
	if err != nil {
		return err
	}
	m, err := a.findMount(ctx, name)
	if err != nil {
		return err
	}
	var f api.Mount
	if err := a.call(ctx, "POST", mountPath(m, "fork"), nil, &api.ForkRequest{Place: p}, &f); err != nil {
		return err
	}
	return a.show(&f, func(w io.Writer) {
		fmt.Fprintf(w, "mount %s: fork of %s, in %s\n", short(f.Mount), short(m.Mount), seconds(f.ElapsedSeconds))
		shown(w, &f)
	})
}
