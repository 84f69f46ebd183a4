package mountctl

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"livemount/internal/errs"
	"livemount/server/api"
)

const rulesHelp = `
RULES are as in last=3,daily=7,weekly=5,monthly=12,yearly=3,within=14d,zone=Europe/Berlin
(docs/RETENTION.md). dialect=sequential, which is the default, counts as Proxmox Backup
does; dialect=independent as restic.`

func (a *app) retentionCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "retention", Short: "Say which points are kept for how long",
		Long: `retention manages the rules by which points expire. Without rules everything is kept.
livemountd applies them each hour. The newest good point of a VM never goes, nor does
one that is mounted, held or locked.
` + rulesHelp,
		Example: "  mountctl retention set web last=3,daily=7,weekly=5\n  mountctl retention explain web\n  mountctl retention apply --dry-run",
		Args:    args(0, 0),
		RunE:    func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.rulesSetCmd(), a.rulesClearCmd(), a.rulesShowCmd(), a.explainCmd(), a.applyCmd())
	return c
}

func (a *app) rulesSetCmd() *cobra.Command {
	var dflt bool
	c := &cobra.Command{
		Use: "set VM RULES | set --default RULES", Short: "Give a VM rules, or all that have none of their own",
		Long:    "set gives a VM (or a branch) rules of its own, or with --default all VMs that have none. Branches have only rules of their own.\n" + rulesHelp,
		Example: "  mountctl retention set web last=3,daily=7,weekly=5\n  mountctl retention set --default within=30d,zone=Europe/Berlin", Args: args(1, 2),
	}
	c.Flags().BoolVar(&dflt, "default", false, "of VMs that have no rules of their own")
	c.RunE = func(c *cobra.Command, list []string) error {
		vm, rules := "", list[len(list)-1]
		if len(list) == 2 {
			vm = list[0]
		}
		if (vm == "") != dflt {
			return errs.WithTry(errs.New(errs.Invalid, "usage: %s", c.UseLine()), "%s --help", c.CommandPath())
		}
		return a.setRules(c.Context(), vm, rules)
	}
	return c
}

func (a *app) rulesClearCmd() *cobra.Command {
	var dflt bool
	c := &cobra.Command{
		Use: "clear VM | clear --default", Short: "Take rules away",
		Long:    "clear takes the rules of a VM away: the default counts for it then. With --default it takes that away.",
		Example: "  mountctl retention clear web", Args: args(0, 1),
	}
	c.Flags().BoolVar(&dflt, "default", false, "of VMs that have no rules of their own")
	c.RunE = func(c *cobra.Command, list []string) error {
		if (len(list) == 0) != dflt {
			return errs.WithTry(errs.New(errs.Invalid, "usage: %s", c.UseLine()), "%s --help", c.CommandPath())
		}
		return a.setRules(c.Context(), strings.Join(list, ""), "")
	}
	return c
}

func (a *app) setRules(ctx context.Context, vm, rules string) error {
	var l api.RulesList
	if err := a.call(ctx, "POST", "/v1/retention/rules", nil, &api.RulesRequest{VM: vm, Rules: rules}, &l); err != nil {
		return err
	}
	return a.show(&l, func(w io.Writer) { rulesTable(w, &l) })
}

func (a *app) rulesShowCmd() *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "List the rules of all VMs", Long: "show lists the rules of all VMs and the default.",
		Example: "  mountctl retention show", Args: args(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			var l api.RulesList
			if err := a.call(c.Context(), "GET", "/v1/retention", nil, nil, &l); err != nil {
				return err
			}
			return a.show(&l, func(w io.Writer) { rulesTable(w, &l) })
		},
	}
}

func rulesTable(w io.Writer, l *api.RulesList) {
	rows := [][]string{{"VM", "RULES", "OF"}, {"(default)", orDash(l.Default), "-"}}
	for _, v := range l.VMs {
		of := "default"
		if v.Own {
			of = "its own"
		}
		if v.Rules == "" {
			of = "-"
		}
		rows = append(rows, []string{v.VM, orDash(v.Rules), of})
	}
	table(w, rows)
}

func (a *app) explainCmd() *cobra.Command {
	return &cobra.Command{
		Use: "explain VM", Short: "Say for each point which rule keeps it, and until when",
		Long:    "explain says for each point of a VM, newest first, which rules keep it, and about when it will go.",
		Example: "  mountctl retention explain web", Args: args(1, 1),
		RunE: func(c *cobra.Command, list []string) error {
			var e api.Explained
			if err := a.call(c.Context(), "GET", "/v1/retention/explain", url.Values{"vm": {list[0]}}, nil, &e); err != nil {
				return err
			}
			return a.show(&e, func(w io.Writer) { explainTable(w, &e) })
		},
	}
}

func explainTable(w io.Writer, e *api.Explained) {
	rows := [][]string{{"POINT", "TIME", "KEPT", "GOES", "WHY"}}
	for _, p := range e.Points {
		kept, goes := "yes", "-"
		if !p.Kept {
			kept = "no"
		}
		if p.Goes != nil {
			goes = when(*p.Goes)
		}
		rows = append(rows, []string{short(p.Point), when(p.Time), kept, goes, orDash(strings.Join(p.Reasons, "; "))})
	}
	table(w, rows)
}

func (a *app) applyCmd() *cobra.Command {
	var yes, dryRun bool
	var plan string
	c := &cobra.Command{
		Use: "apply [VM...]", Short: "Let go now what no rule keeps",
		Long: `apply lets go what no rule keeps, of the VMs that are named or of all, after showing it
and asking. --dry-run shows it as a plan with a hash; --plan HASH does exactly that, or
nothing, and says what has changed.`,
		Example: "  mountctl retention apply --dry-run\n  mountctl retention apply --plan 5b1f…\n  mountctl retention apply web --yes", Args: args(0, 10000),
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only show the plan")
	c.Flags().StringVar(&plan, "plan", "", "do just what this plan says")
	c.RunE = func(c *cobra.Command, list []string) error { return a.apply(c.Context(), list, plan, yes, dryRun) }
	return c
}

func (a *app) apply(ctx context.Context, vms []string, plan string, yes, dryRun bool) error {
	if plan == "" || dryRun {
		what, err := a.plan(ctx, vms, plan, true)
		if err != nil {
			return err
		}
		if dryRun {
			return a.show(what, func(w io.Writer) { planTable(w, what) })
		}
		if !yes && len(what.Points) > 0 {
			var text strings.Builder
			expiredTable(&text, what.Points)
			if err := a.confirm(text.String()+points(len(what.Points))+" would go for good", "--yes", "Expire them?"); err != nil {
				return err
			}
		}
		plan = what.Plan
	}
	what, err := a.plan(ctx, vms, plan, false)
	if err != nil {
		return err
	}
	return a.show(what, func(w io.Writer) { fmt.Fprintf(w, "%s expired, %d are kept\n", points(len(what.Points)), what.Kept) })
}

// plan shows or applies what the rules say.
func (a *app) plan(ctx context.Context, vms []string, hash string, dryRun bool) (*api.Applied, error) {
	var what api.Applied
	return &what, a.call(ctx, "POST", "/v1/retention/apply", nil, &api.ApplyRequest{VMs: vms, DryRun: dryRun, Plan: hash}, &what)
}

func planTable(w io.Writer, what *api.Applied) {
	if len(what.Points) > 0 {
		expiredTable(w, what.Points)
	}
	fmt.Fprintf(w, "%s would go, %d are kept; plan %s\n", points(len(what.Points)), what.Kept, what.Plan)
}
