package mountctl

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"livemount/server/api"
)

func (a *app) diffCmd() *cobra.Command {
	var disk string
	var extents bool
	c := &cobra.Command{
		Use:   "diff VM@TIME VM@TIME",
		Short: "Show what differs between two points, disk by disk",
		Long: `diff compares the disks of two points, of one VM or of two, or of branches, by name,
in pages of 4 KiB: what must be written to get from the first to the second. It
reads maps and hashes, no data, and only where the points differ.

With --extents the ranges are listed. As JSON the list of a disk is what
backup --changed takes.`,
		Example: `  mountctl diff web@-1 web@latest
  mountctl diff web@2026-11-20 web:patched@latest --disk sda --extents
  mountctl diff web@-1 web@latest --disk sda --extents --output json | jq .disks[0].extents`,
		Args: args(2, 2),
	}
	c.Flags().StringVar(&disk, "disk", "", "only the disk of this name")
	c.Flags().BoolVar(&extents, "extents", false, "list the ranges that differ")
	c.RunE = func(c *cobra.Command, list []string) error {
		return a.diff(c.Context(), list[0], list[1], disk, extents)
	}
	return c
}

func (a *app) diff(ctx context.Context, from, to, disk string, extents bool) error {
	q := url.Values{"a": {from}, "b": {to}}
	if disk != "" {
		q.Set("disk", disk)
	}
	var v api.Diff
	if err := a.call(ctx, "GET", "/v1/diff", q, nil, &v); err != nil {
		return err
	}
	for i := range v.Disks {
		if !extents {
			break
		}
		if err := a.listExtents(ctx, &v, &v.Disks[i]); err != nil {
			return err
		}
	}
	return a.show(&v, func(w io.Writer) { diffTable(w, &v, extents) })
}

// listExtents adds the list to a disk, page by page, up to what backup --changed takes. The points are named by
// their ids, so that latest cannot move meanwhile.
func (a *app) listExtents(ctx context.Context, v *api.Diff, d *api.DiffDisk) error {
	q := url.Values{"a": {v.A.VM + "@id:" + v.A.Point}, "b": {v.B.VM + "@id:" + v.B.Point}, "disk": {d.Name}, "extents": {"1"}}
	d.Extents = []api.DiffExtent{}
	for next := int64(0); d.ExtentCount > 0; {
		q.Set("offset", strconv.FormatInt(next, 10))
		var page api.Diff
		if err := a.call(ctx, "GET", "/v1/diff", q, nil, &page); err != nil {
			return err
		}
		if len(page.Disks) != 1 || (page.Disks[0].NextOffset != nil && *page.Disks[0].NextOffset <= next) {
			return fmt.Errorf("livemountd's list of disk %s does not go on at %d", d.Name, next)
		}
		p := &page.Disks[0]
		d.Extents = append(d.Extents, p.Extents...)
		switch {
		case p.NextOffset == nil:
			return nil
		case len(d.Extents)+api.MaxExtents > maxExtents:
			d.Truncated, d.NextOffset = true, p.NextOffset
			return nil
		}
		next = *p.NextOffset
	}
	return nil
}

func diffTable(w io.Writer, v *api.Diff, extents bool) {
	rows := [][]string{{"DISK", "STATE", "SIZE BEFORE", "SIZE AFTER", "CHANGED", "EXTENTS"}}
	var before, after, changed, count int64
	for _, d := range v.Disks {
		rows = append(rows, []string{d.Name, d.State, size(d.SizeBytesBefore), size(d.SizeBytesAfter), size(d.ChangedBytes), strconv.FormatInt(d.ExtentCount, 10)})
		before, after, changed, count = before+d.SizeBytesBefore, after+d.SizeBytesAfter, changed+d.ChangedBytes, count+d.ExtentCount
	}
	if len(v.Disks) > 1 {
		rows = append(rows, []string{"total", "", size(before), size(after), size(changed), strconv.FormatInt(count, 10)})
	}
	table(w, rows)
	if !extents {
		return
	}
	rows = [][]string{{"DISK", "OFFSET", "LENGTH", "KIND"}}
	for _, d := range v.Disks {
		for _, e := range d.Extents {
			rows = append(rows, []string{d.Name, strconv.FormatInt(e.Offset, 10), strconv.FormatInt(e.Length, 10), e.Kind})
		}
		if d.Truncated {
			rows = append(rows, []string{d.Name, strconv.FormatInt(*d.NextOffset, 10), "…", "more than are listed"})
		}
	}
	fmt.Fprintln(w)
	table(w, rows)
}
