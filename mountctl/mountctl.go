// Package mountctl is the command line: a client of livemountd's API and nothing else.
//
// Results go to standard output, as tables or as JSON; everything else goes to standard error. What
// destroys something says what would go and wants --yes. The exit code tells the kind of an error.
package mountctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/server/api"
)

const exitCodes = `
Exit codes: 0 done, 1 error, 2 usage, 10 not found, 11 busy or pinned, 12 denied,
13 corrupt, 14 unreachable, 15 no space, 16 exists, 17 canceled, 18 store of a newer
version, 19 a check failed.`

// app is what all commands share.
type app struct {
	in       io.Reader
	out, err io.Writer
	clock    clock.Clock
	server   string
	output   string
}

// Main runs mountctl and returns its exit code.
func Main(args []string, in io.Reader, out, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	a := &app{in: in, out: out, err: stderr, clock: clock.System{}}
	cmd := a.root()
	cmd.SetArgs(args)
	cmd.SetOut(out)
	cmd.SetErr(stderr)
	err := checkText(args)
	if err == nil {
		err = cmd.ExecuteContext(ctx)
	}
	if err == nil {
		return 0
	}
	a.report(err)
	return errs.KindOf(err).ExitCode()
}

// checkText refuses arguments that JSON cannot carry as they are: a name would silently become another.
func checkText(args []string) error {
	for _, arg := range args {
		if !utf8.ValidString(arg) {
			return errs.New(errs.Invalid, "argument %q is not UTF-8", arg)
		}
	}
	return nil
}

func (a *app) report(err error) {
	var known told
	if a.output == "json" && !errors.As(err, &known) {
		a.json(api.ErrorBody{Error: api.FromErr(err)})
	}
	fmt.Fprintf(a.err, "mountctl: %v\n", err)
	if try := errs.TryOf(err); try != "" {
		fmt.Fprintf(a.err, "Try: %s\n", try)
	}
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "mountctl",
		Short: "Back up disks of virtual machines and mount any point in time, writable",
		Long: `mountctl talks to livemountd: it takes in disks of virtual machines, and shows any
point in time under a folder as a writable disk, at once.

A point is named VM@TIME: web@latest, web@2026-11-20, web@2026-11-20T18:00,
web@-3 (three before the latest), web@2h-ago, web@id:3f2a.`,
		Example: `  mountctl backup web --disk sda=/images/web.raw
  mountctl mount web@latest /mnt/web
  mountctl unmount /mnt/web --yes`,
		Version: api.Version, SilenceUsage: true, SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&a.server, "server", "", "livemountd: unix:PATH or HOST:PORT (default $LIVEMOUNT_SERVER, else its socket)")
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "table", "table or json")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return errs.WithTry(errs.As(errs.Invalid, err), "%s --help", c.CommandPath())
	})
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if a.output != "table" && a.output != "json" {
			return errs.New(errs.Invalid, "output %q is neither table nor json", a.output)
		}
		return nil
	}
	root.RunE = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return errs.WithTry(errs.New(errs.Invalid, "no command is named %q", args[0]), "mountctl --help")
		}
		return c.Help()
	}
	root.Args = cobra.ArbitraryArgs
	a.addCommands(root)
	return root
}

func (a *app) addCommands(root *cobra.Command) {
	none := cobra.ShellCompDirectiveNoFileComp
	complete := map[string]completion{
		"backup": a.completeVMs("", none), "points": a.completeVMs("", none), "config": a.completeVMs("@", none),
		"mount": a.completeVMs("@", cobra.ShellCompDirectiveFilterDirs), "unmount": a.completeMounts, "exports": a.completeMounts,
		"browse": func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		"expire": a.completeVMs("@", none), "hold": a.completeVMs("@", none), "release": a.completeVMs("@", none), "lock": a.completeVMs("@", none), "verify": a.completeVMs("@", none),
		"export": a.completeVMs("@", none), "diff": a.completeVMs("@", none),
	}
	for _, c := range []*cobra.Command{
		a.backupCmd(), a.vmsCmd(), a.pointsCmd(), a.configCmd(), a.vmCmd(), a.mountCmd(), a.browseCmd(), a.mountsCmd(), a.unmountCmd(), a.exportsCmd(), a.commitCmd(), a.forkCmd(),
		a.exportCmd(), a.diffCmd(), a.expireCmd(), a.holdCmd(), a.releaseCmd(), a.lockCmd(), a.retentionCmd(), a.keyCmd(), a.gcCmd(), a.verifyCmd(), a.scrubCmd(), a.jobsCmd(), a.statusCmd(),
	} {
		c.Long += "\n" + exitCodes
		c.ValidArgsFunction = complete[c.Name()]
		root.AddCommand(c)
	}
}

// args wants between least and most arguments, named as in the usage line.
func args(least, most int) cobra.PositionalArgs {
	return func(c *cobra.Command, list []string) error {
		if len(list) < least || len(list) > most {
			return errs.WithTry(errs.New(errs.Invalid, "usage: %s", c.UseLine()), "%s --help", c.CommandPath())
		}
		return nil
	}
}

func (a *app) client() (*api.Client, error) {
	address := a.server
	if address == "" {
		address = api.DefaultAddress()
	}
	return api.NewClient(address)
}

// call sends a request to livemountd.
func (a *app) call(ctx context.Context, method, path string, query map[string][]string, in, out any) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	return c.Do(ctx, method, path, query, in, out)
}

// show prints v as JSON, or with table.
func (a *app) show(v any, table func(w io.Writer)) error {
	if a.output == "json" {
		return a.json(v)
	}
	table(a.out)
	return nil
}

func (a *app) json(v any) error {
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false) // URLs are copied from here
	return e.Encode(v)
}

// isTerminal says whether w is a terminal that a person looks at.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS) // /dev/null is a character device as well
	return err == nil && os.Getenv("TERM") != "dumb"
}
