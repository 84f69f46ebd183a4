package daemon

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"livemount/internal/errs"
	"livemount/server"
)

// fsckCmd checks a stopped store.
func fsckCmd(stdout, stderr io.Writer) *cobra.Command {
	var flags server.Config
	var file, output string
	var quick bool
	c := &cobra.Command{
		Use: "fsck", Short: "Check a stopped store",
		Long: `fsck looks at everything that a stopped store holds, and changes nothing: the journal, every
record of every container, and whether all is there that the points need. It makes
the metadata anew beside the old for that, and needs as much space.
Exit code 19 means that there is damage.`,
		Example: "  livemountd fsck --data /srv/livemount\n  livemountd fsck --quick --output json", Args: noArgs,
	}
	offlineFlags(c, &flags, &file)
	c.Flags().BoolVar(&quick, "quick", false, "do not read the records, only the map")
	c.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := merge(file, flags)
		if err != nil {
			return err
		}
		v, err := server.Check(c.Context(), cfg, quick, func(step string) { fmt.Fprintf(stderr, "%s…\n", step) })
		if err != nil {
			return err
		}
		if output == "json" {
			e := json.NewEncoder(stdout)
			e.SetIndent("", "  ")
			err = e.Encode(v)
		} else {
			v.Print(stdout)
		}
		if err == nil && len(v.Damage) > 0 {
			err = errs.WithTry(errs.New(errs.CheckFailed, "the store is damaged"), "livemountd on a copy, and mountctl export for what is good; a full backup heals what its source still has")
		}
		return err
	}
	return c
}

// rebuildCmd makes the metadata of a stopped store again.
func rebuildCmd(stdout, stderr io.Writer) *cobra.Command {
	var flags server.Config
	var file string
	c := &cobra.Command{
		Use: "rebuild", Short: "Make the metadata of a stopped store again from its containers",
		Long: `rebuild makes the metadata and the dedup index again from the containers alone: every
sealed point, branch, hold, lock and rule as it was; what was expired stays expired. The
old metadata is kept as meta.bad-N. livemountd does the same by itself when the metadata
is missing or bad.`,
		Example: "  livemountd rebuild --data /srv/livemount", Args: noArgs,
	}
	offlineFlags(c, &flags, &file)
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := merge(file, flags)
		if err != nil {
			return err
		}
		damage, err := server.Rebuild(c.Context(), cfg, slog.New(slog.NewTextHandler(stderr, nil)))
		if err != nil {
			return err
		}
		for _, d := range damage {
			fmt.Fprintf(stdout, "DAMAGE: %s\n", d)
		}
		fmt.Fprintln(stdout, "rebuilt")
		if len(damage) > 0 {
			return errs.New(errs.CheckFailed, "the containers are damaged")
		}
		return nil
	}
	return c
}

func offlineFlags(c *cobra.Command, flags *server.Config, file *string) {
	c.Flags().StringVar(file, "config", "", "YAML file with the settings of livemountd")
	c.Flags().StringVar(&flags.Data, "data", "", "folder of the store")
	keyFlags(c.Flags(), flags)
}

func keyFlags(f *pflag.FlagSet, flags *server.Config) {
	f.StringVar(&flags.KeyFile, "key-file", "", "key file that opens an encrypted store")
	f.StringVar(&flags.PassphraseFile, "passphrase-file", "", "file with the passphrase that opens an encrypted store")
}

// initCmd makes an encrypted store; one that is not is made when livemountd starts.
func initCmd(stdout io.Writer) *cobra.Command {
	var flags server.Config
	var file string
	var encrypt bool
	c := &cobra.Command{
		Use: "init --encrypt", Short: "Make an encrypted store",
		Long: `init --encrypt makes an encrypted store in an empty folder. It is opened with a key file,
which is made when it is missing, or with a passphrase; mountctl key adds more. Chunks,
maps, the journal, kept configurations and the metadata are encrypted; docs/CLI.md says
what is not. Encryption is chosen now or never, and when all keys are lost, so is
everything in the store: keep copies of the key in other places.
A store that is not encrypted needs no init: livemountd makes it.`,
		Example: "  livemountd init --encrypt --data /srv/livemount --key-file /etc/livemount.key", Args: noArgs,
	}
	offlineFlags(c, &flags, &file)
	c.Flags().BoolVar(&encrypt, "encrypt", false, "encrypt the store")
	c.RunE = func(*cobra.Command, []string) error {
		if !encrypt {
			return errs.WithTry(errs.New(errs.Invalid, "a store that is not encrypted needs no init"), "livemountd init --encrypt, or livemountd")
		}
		cfg, err := merge(file, flags)
		if err != nil {
			return err
		}
		made, err := server.InitEncrypted(cfg)
		if err != nil {
			return err
		}
		if made {
			fmt.Fprintf(stdout, "key made: %s. Keep copies of it in other places: without it everything in the store is lost for good.\n", cfg.KeyFile)
		}
		fmt.Fprintln(stdout, "encrypted store made")
		return nil
	}
	return c
}
