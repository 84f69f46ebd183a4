package server

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"gopkg.in/yaml.v3"

	"livemount/internal/errs"
	"livemount/server/api"
	"livemount/snapshotchain"
)

// Config is what livemountd is told by its flags or by a YAML file with the same names.
type Config struct {
	// Data is the folder of the store.
	Data string `yaml:"data"`
	// Listen is unix:PATH or a loopback HOST:PORT.
	Listen string `yaml:"listen"`
	// KeyFile or PassphraseFile opens an encrypted store.
	KeyFile        string `yaml:"key_file"`
	PassphraseFile string `yaml:"passphrase_file"`
	// ChunkCacheMiB bounds the decoded chunks in memory; default 64.
	ChunkCacheMiB int64 `yaml:"chunk_cache_mib"`
	// ReserveMiB stays free on the disk of the store; default a twentieth of it, 96 to 1024.
	ReserveMiB int64 `yaml:"reserve_mib"`
	// Backups that run at the same time; more wait. Default 2.
	Backups int `yaml:"backups"`
	// Compression of backups that do not say their own: fast, default or best.
	Compression string `yaml:"compression"`
	// NFSListen is the ADDRESS:PORT of the NFS server, which listens as soon as a mount is exported; default
	// 127.0.0.1:2049.
	NFSListen string `yaml:"nfs_listen"`
	// NFSMountPort is the port of MOUNT, TCP and UDP; default that of NFS.
	NFSMountPort int `yaml:"nfs_mount_port"`
	// NFSPortmap tells clients the ports: through a portmapper of our own on port 111, or, when rpcbind has that port,
	// through it.
	NFSPortmap bool `yaml:"nfs_portmap"`
	// NFSAllow are the rules of exports that have none of their own; default this machine.
	NFSAllow []string `yaml:"nfs_allow"`
	// NFSConnections bounds the connections of all clients; default 512. NFSInFlight the calls of one; default 128.
	NFSConnections int `yaml:"nfs_connections"`
	NFSInFlight    int `yaml:"nfs_in_flight"`
	// NBDListen is where NBD is served, HOST:PORT or unix:PATH: from the start when it is set, else at 127.0.0.1:10809 once a mount is
	// exported.
	NBDListen string `yaml:"nbd_listen"`
	// NBDTLS is a folder with server-cert.pem and server-key.pem: then NBD is served with TLS only, but on unix sockets. With a
	// ca-cert.pem there, clients need a certificate that it signed.
	NBDTLS string `yaml:"nbd_tls"`
	// ScrubDays is within how many days all that is stored is read once more; default 30, negative never.
	ScrubDays int `yaml:"scrub_days"`
	// RetentionMinutes is how often the rules of retention are applied; default 60, negative only by hand.
	RetentionMinutes int `yaml:"retention_minutes"`
	// ClockCatchUp is by how many hours the store's clock comes nearer to the machine's in an hour; default 1.
	ClockCatchUp float64 `yaml:"clock_catch_up"`
	// LogLevel is debug, info, warn or error; default info.
	LogLevel string `yaml:"log_level"`
}

// ReadConfig reads a YAML file. An unknown name is an error.
func ReadConfig(path string, into *Config) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	err = d.Decode(into)
	if err == nil || errors.Is(err, io.EOF) {
		return nil
	}
	var wrong *yaml.TypeError
	if errors.As(err, &wrong) { // in words of the file, not of our source
		text := strings.Join(wrong.Errors, "; ")
		text = strings.ReplaceAll(text, " not found in type server.Config", " is not a setting")
		err = errors.New(strings.ReplaceAll(text, "!!", ""))
	}
	return errs.WithTry(errs.New(errs.Invalid, "%s: %w", path, err), "livemountd --help")
}

func (c *Config) setDefaults() error {
	if c.Data == "" {
		c.Data = api.DefaultData()
	}
	var err error
	if c.Data, err = filepath.Abs(c.Data); err != nil {
		return err
	}
	if c.Listen == "" {
		c.Listen = "unix:" + filepath.Join(c.Data, "livemountd.sock")
	}
	if c.ChunkCacheMiB <= 0 {
		c.ChunkCacheMiB = 64
	}
	if c.Backups <= 0 {
		c.Backups = 2
	}
	if c.RetentionMinutes == 0 {
		c.RetentionMinutes = 60
	}
	if c.ScrubDays == 0 {
		c.ScrubDays = 30
	}
	if !(c.ClockCatchUp >= 0 && c.ClockCatchUp <= 100) { // also what is no number
		return errs.New(errs.Invalid, "clock_catch_up %v is not between 0 and 100", c.ClockCatchUp)
	}
	if c.NFSListen == "" {
		c.NFSListen = "127.0.0.1:2049"
	}
	if _, _, err := splitListen(c.NFSListen); err != nil {
		return err
	}
	if c.NBDListen != "" {
		if _, _, err := parseNBD(c.NBDListen); err != nil {
			return err
		}
	}
	if c.NFSMountPort < 0 || c.NFSMountPort > 65535 || c.NFSConnections < 0 || c.NFSInFlight < 0 {
		return errs.New(errs.Invalid, "NFS mount port %d, %d connections, %d calls in flight", c.NFSMountPort, c.NFSConnections, c.NFSInFlight)
	}
	if _, err := c.defaultRules(); err != nil {
		return err
	}
	_, err = snapshotchain.ParseLevel(c.Compression)
	return err
}

// checkListen refuses addresses that others could reach: there are no users yet.
func checkListen(network, where string) error {
	if network == "unix" {
		return nil
	}
	host, _, err := net.SplitHostPort(where)
	if err != nil {
		return errs.New(errs.Invalid, "listen address %q: %w", where, err)
	}
	if ip := net.ParseIP(host); host == "localhost" || (ip != nil && ip.IsLoopback()) {
		return nil
	}
	return errs.WithTry(errs.New(errs.Denied, "listen address %q: anybody who reaches it could read every disk", where),
		"a unix socket, or 127.0.0.1:PORT behind an SSH tunnel")
}
