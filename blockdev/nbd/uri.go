package nbd

import (
	"net"
	"net/url"
	"strings"

	"livemount/internal/errs"
)

// URI says where an export is (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md).
type URI struct {
	Network string // tcp or unix
	Address string // HOST:PORT, or the path of a socket
	Export  string // "" is the default
	TLS     bool

	// Of TLS; "" when not given.
	Hostname     string // that the server's certificate is for; default the host
	Certificates string // a folder with ca-cert.pem, client-cert.pem and client-key.pem
	Username     string // of a pre-shared key
	PSKFile      string
}

// DefaultPort is that of NBD.
const DefaultPort = "10809"

// ParseURI reads nbd://HOST[:PORT]/EXPORT, nbds:// with TLS, and nbd+unix:///EXPORT?socket=PATH, nbds+unix://.
func ParseURI(text string) (URI, error) {
	u, err := url.Parse(text)
	if err != nil {
		return URI{}, errs.New(errs.Invalid, "NBD URI %q: %w", text, err)
	}
	out := URI{Network: "tcp", Export: strings.TrimPrefix(u.Path, "/")}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return URI{}, errs.New(errs.Invalid, "NBD URI %q: %w", text, err)
	}
	switch u.Scheme {
	case "nbd", "nbds":
		out.TLS = u.Scheme == "nbds"
		err = out.tcp(u)
	case "nbd+unix", "nbds+unix":
		out.TLS = u.Scheme == "nbds+unix"
		if out.Network, out.Address = "unix", q.Get("socket"); out.Address == "" || u.Host != "" {
			err = errs.New(errs.Invalid, "no socket=PATH, or a host")
		}
	default:
		err = errs.New(errs.Invalid, "unknown scheme %q", u.Scheme)
	}
	if err == nil {
		err = out.parameters(q)
	}
	if u.User != nil && out.Username == "" {
		out.Username = u.User.Username()
	}
	if err != nil || len(out.Export) > maxName {
		return URI{}, errs.WithTry(errs.New(errs.Invalid, "NBD URI %q: %w", text, err), "nbd://HOST:PORT/EXPORT, or nbd+unix:///EXPORT?socket=PATH")
	}
	return out, nil
}

func (u *URI) tcp(from *url.URL) error {
	host, port := from.Hostname(), from.Port()
	if host == "" {
		return errs.New(errs.Invalid, "no host")
	}
	if port == "" {
		port = DefaultPort
	}
	u.Address, u.Hostname = net.JoinHostPort(host, port), host
	return nil
}

// parameters takes those that are known; others are ignored, as uri.md says.
func (u *URI) parameters(q url.Values) error {
	for name, into := range map[string]*string{
		"tls-certificates": &u.Certificates, "tls-psk-file": &u.PSKFile, "tls-username": &u.Username, "tls-hostname": &u.Hostname,
	} {
		if v := q.Get(name); v != "" {
			if !u.TLS {
				return errs.New(errs.Invalid, "%s without TLS", name)
			}
			*into = v
		}
	}
	return nil
}

// String is the URI, with which ParseURI gives the same.
func (u URI) String() string {
	scheme, host := "nbd", u.Address
	if u.TLS {
		scheme = "nbds"
	}
	q := url.Values{}
	if u.Network == "unix" {
		scheme, host = scheme+"+unix", ""
		q.Set("socket", u.Address)
	}
	for name, v := range map[string]string{"tls-certificates": u.Certificates, "tls-psk-file": u.PSKFile, "tls-username": u.Username} {
		if v != "" {
			q.Set(name, v)
		}
	}
	if h, _, err := net.SplitHostPort(u.Address); u.Hostname != "" && (err != nil || h != u.Hostname) {
		q.Set("tls-hostname", u.Hostname)
	}
	// What stands in a query as it is may stay: people read it, and qemu takes it.
	query := strings.ReplaceAll(q.Encode(), "%2F", "/")
	return (&url.URL{Scheme: scheme, Host: host, Path: "/" + u.Export, RawQuery: query}).String()
}
