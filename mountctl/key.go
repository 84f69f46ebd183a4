package mountctl

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"os"

	"github.com/spf13/cobra"

	"livemount/internal/errs"
	"livemount/server/api"
)

func (a *app) keyCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "key", Short: "Say who can open an encrypted store",
		Long: `key manages the passphrases and key files that open an encrypted store. Encryption is chosen
when a store is made: livemountd init --encrypt. When all are lost, everything is.`,
		Example: "  mountctl key list\n  mountctl key add --passphrase-file new.txt --label ann\n  mountctl key rotate", Args: args(0, 0),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	list := &cobra.Command{
		Use: "list", Short: "List the keys", Long: "list lists the keys that open the store.", Example: "  mountctl key list", Args: args(0, 0),
		RunE: func(c *cobra.Command, _ []string) error { return a.keys(c.Context(), "GET", "/v1/keys", nil) },
	}
	remove := &cobra.Command{
		Use: "remove SLOT", Short: "Keep a key from opening the store",
		Long: `remove keeps a key from opening the store, and gives new files new keys: whoever has the key and
a copy of the store's FORMAT can read what was written before, and nothing that is written
from now on. The last key cannot be removed.`,
		Example: "  mountctl key remove 3f2a91c0", Args: args(1, 1),
		RunE: func(c *cobra.Command, list []string) error {
			return a.keys(c.Context(), "POST", "/v1/keys/"+url.PathEscape(list[0])+"/remove", struct{}{})
		},
	}
	rotate := &cobra.Command{
		Use: "rotate", Short: "Give new files new keys",
		Long:    "rotate gives new files new keys. Passphrases and key files stay what they are; old files stay readable.",
		Example: "  mountctl key rotate", Args: args(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.keys(c.Context(), "POST", "/v1/keys/rotate", struct{}{})
		},
	}
	c.AddCommand(list, a.keyAddCmd(), remove, rotate)
	return c
}

func (a *app) keyAddCmd() *cobra.Command {
	var keyFile, passphraseFile, label string
	c := &cobra.Command{
		Use: "add", Short: "Let another key open the store",
		Long:    "add lets another passphrase or key file open the store. It is read from a file, never from the command line.",
		Example: "  mountctl key add --key-file /root/second.key --label vault", Args: args(0, 0),
	}
	c.Flags().StringVar(&keyFile, "key-file", "", "file with at least 32 random bytes")
	c.Flags().StringVar(&passphraseFile, "passphrase-file", "", "file with a passphrase in its first line; - is standard input")
	c.Flags().StringVar(&label, "label", "", "shown in the list")
	c.RunE = func(c *cobra.Command, _ []string) error {
		req := &api.KeyAddRequest{Kind: "keyfile", Label: label}
		path := keyFile
		if passphraseFile != "" {
			req.Kind, path = "passphrase", passphraseFile
		}
		if (keyFile == "") == (passphraseFile == "") {
			return errs.WithTry(errs.New(errs.Invalid, "a key file or a passphrase file is needed"), "--key-file FILE, or --passphrase-file FILE")
		}
		var err error
		if req.Secret, err = a.readSecret(path); err != nil {
			return err
		}
		return a.keys(c.Context(), "POST", "/v1/keys", req)
	}
	return c
}

// maxSecret bounds what is read of a secret, in bytes.
const maxSecret = 64 << 10

func (a *app) readSecret(path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(io.LimitReader(a.in, maxSecret))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxSecret))
}

// keys changes or lists the keys, and shows them.
func (a *app) keys(ctx context.Context, method, path string, req any) error {
	var k api.Keys
	if err := a.call(ctx, method, path, nil, req, &k); err != nil {
		return err
	}
	return a.show(&k, func(w io.Writer) {
		rows := [][]string{{"SLOT", "KIND", "LABEL", "CREATED", ""}}
		for _, s := range k.Slots {
			rows = append(rows, []string{s.Slot, s.Kind, orDash(s.Label), when(s.Created), s.Damage})
		}
		table(w, rows)
		fmt.Fprintf(w, "keys of new files are of %s\n", when(k.Rotated))
	})
}
