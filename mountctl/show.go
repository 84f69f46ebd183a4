package mountctl

import (
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"livemount/server/api"
)

func (a *app) vmsCmd() *cobra.Command {
	return &cobra.Command{
		Use: "vms", Short: "List the VMs that have points", Long: "vms lists the VMs by name.",
		Example: "  mountctl vms\n  mountctl vms --output json | jq -r '.vms[].vm'", Args: args(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			var v api.VMs
			if err := a.call(c.Context(), "GET", "/v1/vms", nil, nil, &v); err != nil {
				return err
			}
			return a.show(&v, func(w io.Writer) {
				rows := [][]string{{"VM", "DISKS", "POINTS", "LATEST"}}
				for _, m := range v.VMs {
					rows = append(rows, []string{m.VM, strings.Join(m.Disks, ","), strconv.Itoa(m.Points), when(m.LatestTime)})
				}
				table(w, rows)
			})
		},
	}
}

func (a *app) pointsCmd() *cobra.Command {
	var unique bool
	c := &cobra.Command{
		Use: "points VM", Short: "List the points in time of a VM", Aliases: []string{"snapshots"},
		Long: `points lists the points in time of a VM, oldest first. Give VM@TIME to see which
point that is. UNIQUE is what is stored for one point alone: what would come back if it
went. --unique finds that out, which takes a moment in a large store; else it is as of
the last time.`,
		Example: "  mountctl points web\n  mountctl points web --unique\n  mountctl points web@2h-ago --output json", Args: args(1, 1),
		RunE: func(c *cobra.Command, list []string) error {
			q := url.Values{"vm": {list[0]}}
			if strings.Contains(list[0], "@") {
				q = url.Values{"ref": {list[0]}}
			}
			if unique {
				q.Set("unique", "1")
			}
			var v api.Points
			if err := a.call(c.Context(), "GET", "/v1/points", q, nil, &v); err != nil {
				return err
			}
			return a.show(&v, func(w io.Writer) { pointTable(w, v.Points) })
		},
	}
	c.Flags().BoolVar(&unique, "unique", false, "find out what is stored for each point alone")
	return c
}

func pointTable(w io.Writer, points []api.Point) {
	rows := [][]string{{"POINT", "TIME", "DISKS", "SIZE", "CHANGED", "STORED", "UNIQUE", "CONFIG", "MOUNTS", "KEPT"}}
	for _, p := range points {
		var names []string
		var total, changed, stored int64
		for _, d := range p.Disks {
			names = append(names, d.Name)
			total, changed, stored = total+d.SizeBytes, changed+d.ChangedBytes, stored+d.StoredBytes
		}
		config, unique := "-", "-"
		if p.UniqueBytes != nil {
			unique = size(*p.UniqueBytes)
		}
		if p.Config != nil {
			config = p.Config.Name
		}
		rows = append(rows, []string{
			short(p.Point), when(p.Time), strings.Join(names, ","), size(total), size(changed), size(stored), unique, config, strconv.Itoa(len(p.Mounts)), keptBy(&p),
		})
	}
	table(w, rows)
}

// keptBy says in a word what keeps a point from being expired.
func keptBy(p *api.Point) string {
	switch {
	case p.LockedUntil != nil:
		return "locked"
	case len(p.Holds) > 0:
		return "held"
	default:
		return "-"
	}
}

func (a *app) configCmd() *cobra.Command {
	return &cobra.Command{
		Use: "config VM@TIME", Short: "Print the configuration that was kept with a point",
		Long:    "config prints what backup --config kept with a point, byte for byte.",
		Example: "  mountctl config web@latest > web.xml", Args: args(1, 1),
		RunE: func(c *cobra.Command, list []string) error {
			var b []byte
			if err := a.call(c.Context(), "GET", "/v1/config", url.Values{"ref": {list[0]}}, nil, &b); err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(map[string]any{"data": b})
			}
			_, err := a.out.Write(b)
			return err
		},
	}
}

func (a *app) jobsCmd() *cobra.Command {
	var cancel, steps bool
	c := &cobra.Command{
		Use: "jobs [JOB]", Short: "List jobs, newest first, or show one with its steps",
		Long: `jobs lists what livemountd does and did, newest first. With a job's id (or the
beginning of it) it shows the steps, and --cancel ends the job.`,
		Example: "  mountctl jobs\n  mountctl jobs 3f2a --cancel", Args: args(0, 1),
	}
	c.Flags().BoolVar(&cancel, "cancel", false, "cancel the job")
	c.Flags().BoolVar(&steps, "steps", false, "show the steps of all jobs")
	c.RunE = func(c *cobra.Command, list []string) error {
		if len(list) == 0 {
			var v api.Jobs
			if err := a.call(c.Context(), "GET", "/v1/jobs", nil, nil, &v); err != nil {
				return err
			}
			return a.show(&v, func(w io.Writer) { jobTable(w, v.Jobs, steps) })
		}
		method := "GET"
		if cancel {
			method = "DELETE"
		}
		var j api.Job
		if err := a.call(c.Context(), method, "/v1/jobs/"+url.PathEscape(list[0]), nil, nil, &j); err != nil {
			return err
		}
		return a.show(&j, func(w io.Writer) { jobTable(w, []api.Job{j}, true) })
	}
	return c
}

func jobTable(w io.Writer, jobs []api.Job, steps bool) {
	rows := [][]string{{"JOB", "KIND", "SUBJECT", "STATE", "STARTED", "TOOK", "RESULT"}}
	for i := range jobs {
		j := &jobs[i]
		rows = append(rows, []string{short(j.Job), j.Kind, j.Subject, j.State, when(j.Started), span(j.Started, j.Ended), result(j)})
		for _, s := range j.Steps {
			if steps {
				rows = append(rows, []string{"", "", "  " + s.Name, "", when(s.Started), span(s.Started, s.Ended), ""})
			}
		}
	}
	table(w, rows)
}

func span(from time.Time, to *time.Time) string {
	if to == nil {
		return "…"
	}
	return took(to.Sub(from))
}

func result(j *api.Job) string {
	switch {
	case j.Error != nil:
		return j.Error.Message
	case j.Result != nil:
		return "point " + short(j.Result.Point)
	case j.Verified != nil:
		return "good"
	case j.Scrubbed != nil:
		return "read " + size(j.Scrubbed.ReadBytes)
	case j.Progress != nil:
		return "read " + size(j.Progress.ReadBytes)
	default:
		return ""
	}
}

func (a *app) statusCmd() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the sizes and the health of the store",
		Long: `status shows what the store holds: logical bytes (the data of all points, as if
nothing were shared), how much of that is shared, what is stored, and the ratio of
the two; and whether anything is wrong.`,
		Example: "  mountctl status\n  mountctl status --output json | jq .ratio", Args: args(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			var s api.Status
			if err := a.call(c.Context(), "GET", "/v1/status", nil, nil, &s); err != nil {
				return err
			}
			return a.show(&s, func(w io.Writer) { statusTable(w, &s) })
		},
	}
}

func statusTable(w io.Writer, s *api.Status) {
	table(w, [][]string{
		{"store", s.Store + " at " + s.Data},
		{"VMs, points, mounts", fmt.Sprintf("%d, %d, %d", s.VMs, s.Points, s.Mounts)},
		{"logical", size(s.LogicalBytes)},
		{"shared", size(s.SharedBytes)},
		{"stored", fmt.Sprintf("%s (ratio %.2f)", size(s.StoredBytes), s.Ratio)},
		{"metadata", size(s.MetadataBytes)},
		{"overlays of mounts", size(s.OverlayBytes)},
		{"free", size(s.FreeBytes)},
	})
	if s.ClockAheadSeconds > 60 || s.ClockAheadSeconds < -60 {
		fmt.Fprintf(w, "locks count by the store's clock: %s, the machine's is %s off\n", when(s.StoreTime), time.Duration(s.ClockAheadSeconds)*time.Second)
	}
	if s.LastCollection != nil && s.LastCollection.Error != nil {
		fmt.Fprintf(w, "NOT COLLECTED: %s\n", s.LastCollection.Error.Message)
	}
	if s.ReadOnly != "" {
		fmt.Fprintf(w, "READ-ONLY: %s\n", s.ReadOnly)
	}
	for _, d := range s.Damage {
		fmt.Fprintf(w, "DAMAGE: %s\n", d)
	}
	if s.Healthy {
		fmt.Fprintln(w, "healthy")
	}
}
