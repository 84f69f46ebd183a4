// Package daemon is the command line of livemountd: flags, configuration file, signals, logs.
package daemon

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"livemount/internal/errs"
	"livemount/server"
	"livemount/server/api"
)

const help = `livemountd owns a store of backups and serves it: one process for each store.

It listens on a unix socket that only its user can reach, or on a loopback
address. It stops cleanly on SIGTERM and SIGINT; mounts come back when it starts
again, also after kill -9.

While it is stopped, fsck checks a store and rebuild makes its metadata again.

Example:
  livemountd --data /srv/livemount
  livemountd --config /etc/livemount.yaml

The file holds the same names:
  data: /srv/livemount
  listen: unix:/run/livemountd.sock
  key_file: /etc/livemount.key # of an encrypted store; or passphrase_file
  chunk_cache_mib: 64     # decoded chunks in memory
  reserve_mib: 1024       # of the disk, kept free for the store itself
  backups: 2              # at the same time
  nfs_listen: 127.0.0.1:2049
  nfs_mount_port: 20048   # default: that of NFS
  nbd_listen: 127.0.0.1:10809
  nfs_portmap: true       # tell clients the ports, on port 111 or through rpcbind
  nfs_allow: ["10.1.0.0/16", "10.2.3.4,ro,root_squash"]
  scrub_days: 30          # all that is stored is read again so often
  retention_minutes: 60   # how often the rules of retention are applied; -1: only by hand
  clock_catch_up: 1       # hours of an hour, by which the store's clock follows the machine's
  log_level: info

Exit codes: 0 stopped, 1 error, 2 usage, 11 store in use, 12 denied, 13 corrupt,
15 no space, 18 store of a newer version, 19 fsck found damage.`

// memoryLimit makes the collector work harder before the daemon takes more, in bytes. What it really needs
// is bounded by the caches and buffers that docs/ARCHITECTURE.md lists.
const memoryLimit = 400 << 20

// chunkCacheDefault is what memoryLimit has room for, in MiB.
const chunkCacheDefault = 64

// Main runs livemountd and returns its exit code.
func Main(args []string, stdout, stderr io.Writer) int {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	cmd := command(stdout, stderr)
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "livemountd: %v\n", err)
	if try := errs.TryOf(err); try != "" {
		fmt.Fprintf(stderr, "Try: %s\n", try)
	}
	return errs.KindOf(err).ExitCode()
}

func command(stdout, stderr io.Writer) *cobra.Command {
	var flags server.Config
	var file string
	cmd := &cobra.Command{
		Use: "livemountd", Short: "Serve a store of backups", Long: help, Version: api.Version,
		Args: noArgs, SilenceUsage: true, SilenceErrors: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	f := cmd.Flags()
	f.StringVar(&file, "config", "", "YAML file with the same settings; flags win over it")
	f.StringVar(&flags.Data, "data", "", "folder of the store (default "+api.DefaultData()+")")
	f.StringVar(&flags.Listen, "listen", "", "unix:PATH or 127.0.0.1:PORT (default unix:DATA/livemountd.sock)")
	keyFlags(f, &flags)
	f.StringVar(&flags.Compression, "compression", "", "of backups that do not say: fast, default or best")
	f.StringVar(&flags.LogLevel, "log-level", "", "debug, info, warn or error (default info)")
	f.Int64Var(&flags.ChunkCacheMiB, "chunk-cache-mib", 0, "decoded chunks in memory, MiB (default 64)")
	f.Int64Var(&flags.ReserveMiB, "reserve-mib", 0, "disk space kept free, MiB (default a twentieth, 96 to 1024)")
	f.StringVar(&flags.NFSListen, "nfs-listen", "", "ADDRESS:PORT of NFS, once a mount is exported (default 127.0.0.1:2049)")
	f.StringVar(&flags.NBDListen, "nbd-listen", "", "HOST:PORT or unix:PATH of NBD, from the start (default 127.0.0.1:10809 once a mount is exported)")
	f.StringVar(&flags.NBDTLS, "nbd-tls", "", "folder with server-cert.pem, server-key.pem and, for clients that must have certificates, ca-cert.pem")
	f.IntVar(&flags.NFSMountPort, "nfs-mount-port", 0, "port of MOUNT (default that of NFS)")
	f.BoolVar(&flags.NFSPortmap, "nfs-portmap", false, "tell clients the ports, on port 111 or through rpcbind")
	f.StringArrayVar(&flags.NFSAllow, "nfs-allow", nil, "ADDRESS or NETWORK[,ro][,insecure][,root_squash]… that may mount exports without rules (default this machine)")
	f.IntVar(&flags.NFSConnections, "nfs-connections", 0, "NFS connections at the same time (default 512)")
	f.IntVar(&flags.NFSInFlight, "nfs-in-flight", 0, "NFS calls of one connection at the same time (default 128)")
	f.IntVar(&flags.ScrubDays, "scrub-days", 0, "read all that is stored once more within so many days (default 30; -1 never)")
	f.IntVar(&flags.RetentionMinutes, "retention-minutes", 0, "apply the rules of retention so often (default 60; -1 only by hand)")
	f.Float64Var(&flags.ClockCatchUp, "clock-catch-up", 0, "hours by which the store's clock, by which locks count, comes nearer to the machine's in an hour (default 1)")
	f.IntVar(&flags.Backups, "backups", 0, "backups that run at the same time (default 2)")
	cmd.AddCommand(initCmd(stdout), fsckCmd(stdout, stderr), rebuildCmd(stdout, stderr))
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return errs.WithTry(errs.As(errs.Invalid, err), "livemountd --help")
	})
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := merge(file, flags)
		if err != nil {
			return err
		}
		log, err := logger(stderr, c.LogLevel)
		if err != nil {
			return err
		}
		if more := c.ChunkCacheMiB - chunkCacheDefault; more > 0 && os.Getenv("GOMEMLIMIT") == "" { // or the collector would never rest
			debug.SetMemoryLimit(memoryLimit + more<<20*5/4)
		}
		return server.Run(cmd.Context(), c, log, notifyReady)
	}
	return cmd
}

func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return errs.WithTry(errs.New(errs.Invalid, "unexpected argument %q", args[0]), "livemountd --help")
	}
	return nil
}

// merge reads the file and lets the flags that were given win.
func merge(file string, flags server.Config) (server.Config, error) {
	var c server.Config
	if file != "" {
		if err := server.ReadConfig(file, &c); err != nil {
			return c, err
		}
	}
	set(&c.Data, flags.Data)
	set(&c.Listen, flags.Listen)
	set(&c.KeyFile, flags.KeyFile)
	set(&c.PassphraseFile, flags.PassphraseFile)
	set(&c.Compression, flags.Compression)
	set(&c.LogLevel, flags.LogLevel)
	set(&c.ChunkCacheMiB, flags.ChunkCacheMiB)
	set(&c.ReserveMiB, flags.ReserveMiB)
	set(&c.Backups, flags.Backups)
	set(&c.NFSListen, flags.NFSListen)
	set(&c.NBDListen, flags.NBDListen)
	set(&c.NBDTLS, flags.NBDTLS)
	set(&c.NFSMountPort, flags.NFSMountPort)
	set(&c.NFSPortmap, flags.NFSPortmap)
	set(&c.NFSConnections, flags.NFSConnections)
	set(&c.NFSInFlight, flags.NFSInFlight)
	set(&c.ScrubDays, flags.ScrubDays)
	set(&c.RetentionMinutes, flags.RetentionMinutes)
	set(&c.ClockCatchUp, flags.ClockCatchUp)
	if len(flags.NFSAllow) > 0 {
		c.NFSAllow = flags.NFSAllow
	}
	return c, nil
}

func set[T comparable](dst *T, v T) {
	var zero T
	if v != zero {
		*dst = v
	}
}

func logger(w io.Writer, level string) (*slog.Logger, error) {
	var l slog.Level
	if level != "" {
		if err := l.UnmarshalText([]byte(level)); err != nil {
			return nil, errs.New(errs.Invalid, "log level %q: use debug, info, warn or error", level)
		}
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: l})), nil
}

// notifyReady tells systemd, when it asked to be told, that requests are answered (sd_notify(3)).
func notifyReady() {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	c.Write([]byte("READY=1")) // systemd gives up on us when this fails, and says so
}
