package mountctl

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"livemount/server/api"
)

func (a *app) verifyCmd() *cobra.Command {
	var detach bool
	c := &cobra.Command{
		Use: "verify VM@TIME", Short: "Prove a point: read all of it and compare every checksum",
		Long: `verify reads all of a point from the disks, past the caches: every part of the map and
every chunk with its checksums and hashes. It compares the root hash of what it read
with the one that was recorded when the point was made. It fails with exit code 19 when
something cannot be read, and lists what.`,
		Example: "  mountctl verify web@latest\n  mountctl verify web@2026-11-20 --output json | jq .verified.bad", Args: args(1, 1),
	}
	c.Flags().BoolVar(&detach, "detach", false, "do not wait; print the job")
	c.RunE = func(c *cobra.Command, list []string) error {
		var j api.Job
		if err := a.call(c.Context(), "POST", "/v1/verify", nil, &api.VerifyRequest{Ref: list[0]}, &j); err != nil {
			return err
		}
		return a.followCheck(c.Context(), &j, detach)
	}
	return c
}

func (a *app) scrubCmd() *cobra.Command {
	var detach, all bool
	c := &cobra.Command{
		Use: "scrub", Short: "Read what is stored again and compare every checksum",
		Long: `scrub reads what is due now, as fast as it can. livemountd does the same by itself, slowly:
all that is stored is read within --scrub-days. What is bad is listed with the points
and ranges that it spoils, and healed when the same data is in the store once more.`,
		Example: "  mountctl scrub\n  mountctl scrub --all --detach", Args: args(0, 0),
	}
	c.Flags().BoolVar(&detach, "detach", false, "do not wait; print the job")
	c.Flags().BoolVar(&all, "all", false, "also what was read not long ago")
	c.RunE = func(c *cobra.Command, _ []string) error {
		var j api.Job
		if err := a.call(c.Context(), "POST", "/v1/scrub", nil, &api.ScrubRequest{All: all}, &j); err != nil {
			return err
		}
		return a.followCheck(c.Context(), &j, detach)
	}
	return c
}

// followCheck waits for a job that checks, and shows what it found, also when that is bad.
func (a *app) followCheck(ctx context.Context, j *api.Job, detach bool) error {
	if detach {
		return a.show(j, func(w io.Writer) { fmt.Fprintln(w, j.Job) })
	}
	err := a.follow(ctx, j)
	if j.Verified == nil && j.Scrubbed == nil {
		return err
	}
	if shown := a.show(j, func(w io.Writer) { checkTable(w, j) }); shown != nil {
		return errors.Join(err, shown)
	}
	if err != nil {
		return told{err} // the job has it
	}
	return nil
}

// told is an error that the JSON output has already.
type told struct{ error }

func (t told) Unwrap() error { return t.error }

func checkTable(w io.Writer, j *api.Job) {
	list := []api.Damaged{}
	if v := j.Verified; v != nil {
		list = v.Bad
		if v.Good {
			fmt.Fprintf(w, "%s of %s is good: %s in %d chunks\n", v.VM, when(v.Time), size(v.DataBytes), v.Chunks)
		}
	}
	if s := j.Scrubbed; s != nil {
		list = s.Touched
		fmt.Fprintf(w, "%d containers read, %s: %d bad records\n", s.Containers, size(s.ReadBytes), s.BadRecords)
	}
	if len(list) == 0 {
		return
	}
	rows := [][]string{{"VM", "POINT", "DISK", "OFFSET", "LENGTH"}}
	for _, d := range list {
		rows = append(rows, []string{d.VM, short(d.Point), d.Disk, fmt.Sprint(d.Offset), fmt.Sprint(d.Length)})
	}
	table(w, rows)
}
