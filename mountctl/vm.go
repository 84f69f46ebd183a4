package mountctl

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"livemount/server/api"
)

func (a *app) vmCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "vm", Short: "Rename or remove a VM",
		Long: "vm changes a VM as a whole: its name, or whether it is there.", Example: "  mountctl vm rename web www\n  mountctl vm remove old-web",
		Args: args(0, 0),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.renameCmd(), a.removeCmd())
	return c
}

func (a *app) renameCmd() *cobra.Command {
	return &cobra.Command{
		Use: "rename VM NAME", Short: "Give a VM another name",
		Long: `rename gives a VM another name. Its points, branches and mounts stay as they are;
branches are called NAME:BRANCH from then on.`,
		Example: "  mountctl vm rename web www", Args: args(2, 2),
		RunE: func(c *cobra.Command, list []string) error { return a.rename(c.Context(), list[0], list[1]) },
	}
}

func (a *app) rename(ctx context.Context, old, name string) error {
	var v api.VMs
	if err := a.call(ctx, "POST", "/v1/vms/"+url.PathEscape(old)+"/rename", nil, &api.RenameRequest{Name: name}, &v); err != nil {
		return err
	}
	return a.show(&v, func(w io.Writer) { fmt.Fprintf(w, "%s is called %s now\n", old, name) })
}

func (a *app) removeCmd() *cobra.Command {
	var yes, dryRun bool
	c := &cobra.Command{
		Use: "remove VM|VM:BRANCH", Short: "Remove a VM, or a branch, with all its points",
		Long: `remove makes a VM go with all its points and branches, or only a branch, after
showing what goes and asking. It cannot be undone. What is mounted must be
unmounted first.`,
		Example: "  mountctl vm remove old-web --dry-run\n  mountctl vm remove old-web --yes\n  mountctl vm remove web:patched", Args: args(1, 1),
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only show what would go")
	c.RunE = func(c *cobra.Command, list []string) error { return a.remove(c.Context(), list[0], yes, dryRun) }
	return c
}

func (a *app) remove(ctx context.Context, name string, yes, dryRun bool) error {
	path := "/v1/vms/" + url.PathEscape(name) + "/remove"
	var what api.Removed
	if err := a.call(ctx, "POST", path, nil, &api.RemoveRequest{DryRun: true}, &what); err != nil {
		return err
	}
	if dryRun {
		return a.show(&what, func(w io.Writer) { fmt.Fprintln(w, removal(&what)) })
	}
	if !yes && len(what.Mounts) == 0 {
		if err := a.confirm(removal(&what), "--yes", "Remove it?"); err != nil {
			return err
		}
	}
	if err := a.call(ctx, "POST", path, nil, &api.RemoveRequest{}, &what); err != nil {
		return err
	}
	return a.show(&what, func(w io.Writer) { fmt.Fprintf(w, "%s is gone, with %s\n", name, points(what.Points)) })
}

// removal says what would go.
func removal(r *api.Removed) string {
	text := fmt.Sprintf("%s would go for good: %d points", r.VM, r.Points)
	if r.Points > 0 {
		text += fmt.Sprintf(" from %s to %s, %s of data", when(r.Oldest), when(r.Newest), size(r.DataBytes))
	}
	if len(r.Branches) > 0 {
		text += ", with the branches " + strings.Join(r.Branches, ", ")
	}
	if len(r.Mounts) > 0 {
		text += "; mounted, and must be unmounted first: " + strings.Join(r.Mounts, ", ")
	}
	if len(r.Guarded) > 0 {
		text += "; cannot go: " + strings.Join(r.Guarded, "; ")
	}
	return text
}
