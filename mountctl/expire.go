package mountctl

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"livemount/internal/errs"
	"livemount/server/api"
)

func (a *app) expireCmd() *cobra.Command {
	var yes, dryRun bool
	c := &cobra.Command{
		Use: "expire VM@TIME...", Short: "Let points go for good",
		Long: `expire makes points invisible at once, wherever in the history of their VM they
are; all others stay exactly as they are. The space comes back in the background
(see gc). It cannot be undone, and asks before. A point that is mounted, held,
locked, or needed by a running backup or export is refused.`,
		Example: "  mountctl expire web@2026-11-20 --dry-run\n  mountctl expire web@id:3f2a web@-9 --yes", Args: args(1, 10000),
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only show what would go, and what keeps it")
	c.RunE = func(c *cobra.Command, list []string) error { return a.expire(c.Context(), list, yes, dryRun) }
	return c
}

func (a *app) expire(ctx context.Context, refs []string, yes, dryRun bool) error {
	var what api.Expired
	if err := a.call(ctx, "POST", "/v1/points/expire", nil, &api.ExpireRequest{Refs: refs, DryRun: true}, &what); err != nil {
		return err
	}
	if dryRun {
		return a.show(&what, func(w io.Writer) { expiredTable(w, what.Points) })
	}
	var list []string // the points as they were shown: latest may be another by now
	for _, p := range what.Points {
		list = append(list, p.VM+"@id:"+p.Point)
	}
	if !yes && !anyReason(what.Points) {
		var text strings.Builder
		expiredTable(&text, what.Points)
		if err := a.confirm(text.String()+points(len(list))+" would go for good", "--yes", "Expire them?"); err != nil {
			return err
		}
	}
	if err := a.call(ctx, "POST", "/v1/points/expire", nil, &api.ExpireRequest{Refs: list}, &what); err != nil {
		return err
	}
	return a.show(&what, func(w io.Writer) { fmt.Fprintln(w, points(len(what.Points)), "expired") })
}

func points(n int) string {
	if n == 1 {
		return "1 point"
	}
	return fmt.Sprintf("%d points", n)
}

func anyReason(list []api.ExpiredPoint) bool {
	for _, p := range list {
		if p.Reason != "" {
			return true
		}
	}
	return false
}

func expiredTable(w io.Writer, list []api.ExpiredPoint) {
	rows := [][]string{{"VM", "POINT", "TIME", "KEPT BY"}}
	for _, p := range list {
		rows = append(rows, []string{p.VM, short(p.Point), when(p.Time), orDash(p.Reason)})
	}
	table(w, rows)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (a *app) holdCmd() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "hold VM@TIME", Short: "Keep a point until it is released",
		Long: `hold keeps a point from being expired, by hand or by a rule, and its VM from being
removed, until it is released. A point may have several holds, each with a reason of its own.`,
		Example: "  mountctl hold web@2026-11-20 --reason 'audit, ask Ann'", Args: args(1, 1),
	}
	c.Flags().StringVar(&reason, "reason", "", "shown to whoever wants the point to go")
	c.RunE = func(c *cobra.Command, list []string) error {
		if reason == "" {
			return errs.WithTry(errs.New(errs.Invalid, "a hold needs a reason"), "--reason TEXT")
		}
		return a.guard(c.Context(), "hold", &api.HoldRequest{Ref: list[0], Reason: reason}, "held")
	}
	return c
}

func (a *app) releaseCmd() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "release VM@TIME", Short: "End the holds of a point",
		Long:    "release ends all holds of a point, or with --reason the one that has it. A lock cannot be released.",
		Example: "  mountctl release web@2026-11-20\n  mountctl release web@id:3f2a --reason 'audit, ask Ann'", Args: args(1, 1),
	}
	c.Flags().StringVar(&reason, "reason", "", "only the hold with this reason")
	c.RunE = func(c *cobra.Command, list []string) error {
		return a.guard(c.Context(), "release", &api.HoldRequest{Ref: list[0], Reason: reason}, "released")
	}
	return c
}

func (a *app) lockCmd() *cobra.Command {
	var until string
	c := &cobra.Command{
		Use: "lock VM@TIME", Short: "Keep a point until a date, whatever happens",
		Long: `lock keeps a point, and its VM, until a date. It can be made longer; no command makes it
shorter or takes it back, not even for who runs livemountd. The date counts by a
clock of the store's own, which follows the running time of the machine: setting
the machine's clock opens nothing (see status).`,
		Example: "  mountctl lock web@latest --until 2027-06-30\n  mountctl lock web@latest --until 30d", Args: args(1, 1),
	}
	c.Flags().StringVar(&until, "until", "", "a date, a date with time, or a duration from now (30d, 12w)")
	c.RunE = func(c *cobra.Command, list []string) error {
		if until == "" {
			return errs.WithTry(errs.New(errs.Invalid, "a lock needs an end"), "--until 2027-06-30, or --until 30d")
		}
		return a.guard(c.Context(), "lock", &api.LockRequest{Ref: list[0], Until: until}, "locked")
	}
	return c
}

// guard changes what keeps a point.
func (a *app) guard(ctx context.Context, what string, req any, done string) error {
	var p api.Point
	if err := a.call(ctx, "POST", "/v1/points/"+what, nil, req, &p); err != nil {
		return err
	}
	return a.show(&p, func(w io.Writer) {
		fmt.Fprintf(w, "%s of %s, point %s: %s\n", p.VM, when(p.Time), short(p.Point), done)
		for _, h := range p.Holds {
			fmt.Fprintf(w, "held since %s: %s\n", when(h.Since), h.Reason)
		}
		if p.LockedUntil != nil {
			fmt.Fprintf(w, "locked until %s by the store's clock\n", when(*p.LockedUntil))
		}
	})
}

func (a *app) gcCmd() *cobra.Command {
	var dryRun bool
	c := &cobra.Command{
		Use: "gc", Short: "Take back the space of what nobody needs any more",
		Long: `gc takes back what no point, mount or reader needs, now and as fast as it can.
livemountd does the same by itself after points have expired and once a day, more slowly.
Backups and mounts go on meanwhile. Ctrl-C ends it; what is done stays done.`,
		Example: "  mountctl gc --dry-run\n  mountctl gc --output json | jq .freed_bytes", Args: args(0, 0),
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only show what would come back")
	c.RunE = func(c *cobra.Command, _ []string) error {
		var r api.Collection
		if err := a.call(c.Context(), "POST", "/v1/gc", nil, &api.CollectRequest{DryRun: dryRun}, &r); err != nil {
			return err
		}
		return a.show(&r, func(w io.Writer) { fmt.Fprintln(w, collection(&r)) })
	}
	return c
}

// collection says what a collection did.
func collection(r *api.Collection) string {
	verb := "came back"
	if r.DryRun {
		verb = "would come back"
	}
	text := fmt.Sprintf("%s %s: %d containers removed, %d written anew; %s of %s in closed containers are needed",
		size(r.FreedBytes), verb, r.RemovedContainers, r.RewrittenContainers, size(r.LiveBytes), size(r.LiveBytes+r.DeadBytes))
	if r.HeldContainers > 0 {
		text += fmt.Sprintf("; %d left for the next time, because a backup runs", r.HeldContainers)
	}
	if r.DamagedContainers > 0 {
		text += fmt.Sprintf("; %d left, because they are damaged", r.DamagedContainers)
	}
	return text
}
