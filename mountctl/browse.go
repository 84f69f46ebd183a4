package mountctl

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"livemount/server/api"
)

func (a *app) browseCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "browse DIR",
		Short: "Show every point of every VM under a folder, read-only",
		Long: `browse shows all VMs and all their points as DIR/<vm>/<time>/<disk>.raw, read-only.
A branch is a folder <vm>:<branch>; <vm>/latest leads to the newest point. The time
is that of the point in UTC, and names it behind the @ of VM@TIME as well. Nothing
is opened or read before somebody reads a disk.

New points appear, and removed ones go, while it is mounted; a file that is open
goes on being readable. DIR must be empty, or missing in a folder that exists. The
mount comes back when livemountd or the machine starts again, until it is unmounted.`,
		Example: `  mountctl browse /mnt/all
  ls /mnt/all/web
  qemu-img compare -f raw -F raw /mnt/all/web/latest/sda.raw /images/web.raw
  mountctl unmount /mnt/all`,
		Args: args(1, 1),
		RunE: func(c *cobra.Command, list []string) error { return a.browse(c.Context(), list[0]) },
	}
}

func (a *app) browse(ctx context.Context, dir string) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	var m api.Mount
	if err := a.call(ctx, "POST", "/v1/browse", nil, &api.BrowseRequest{Path: abs}, &m); err != nil {
		return err
	}
	return a.show(&m, func(w io.Writer) {
		fmt.Fprintf(w, "mount %s: all points of all VMs, in %s\n%s\n", short(m.Mount), seconds(m.ElapsedSeconds), m.Path)
	})
}
