package mountctl

import (
	"strings"

	"github.com/spf13/cobra"

	"livemount/server/api"
)

// Completions ask livemountd; when it does not answer there is nothing to offer.

type completion = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// completeVMs offers the names of VMs as the first argument, followed by suffix.
func (a *app) completeVMs(suffix string, next cobra.ShellCompDirective) completion {
	return func(c *cobra.Command, list []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(list) > 0 {
			return nil, next
		}
		if vm, _, ok := strings.Cut(typed, "@"); ok {
			return a.pointNames(c, vm), cobra.ShellCompDirectiveNoFileComp
		}
		var v api.VMs
		if err := a.call(c.Context(), "GET", "/v1/vms", nil, nil, &v); err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		for _, m := range v.VMs {
			names = append(names, m.VM+suffix)
		}
		if suffix != "" {
			return names, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// pointNames offers latest and the times of the newest points.
func (a *app) pointNames(c *cobra.Command, vm string) []string {
	var v api.Points
	names := []string{vm + "@latest"}
	if err := a.call(c.Context(), "GET", "/v1/points", map[string][]string{"vm": {vm}}, nil, &v); err != nil {
		return names
	}
	for i := len(v.Points) - 1; i >= 0 && len(names) < 50; i-- {
		names = append(names, vm+"@"+when(v.Points[i].Time))
	}
	return names
}

// completeMounts offers the ids and folders of mounts.
func (a *app) completeMounts(c *cobra.Command, list []string, _ string) ([]string, cobra.ShellCompDirective) {
	var v api.Mounts
	if len(list) > 0 || a.call(c.Context(), "GET", "/v1/mounts", nil, nil, &v) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, m := range v.Mounts {
		names = append(names, short(m.Mount)+"\t"+m.VM+" at "+m.Path, m.Path)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
