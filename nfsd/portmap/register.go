package portmap

import (
	"context"
	"errors"
	"net"
	"slices"
	"syscall"

	"livemount/internal/errs"
	"livemount/nfsd/oncrpc"
	"livemount/nfsd/xdr"
)

// Local is where the rpcbind of this machine is.
const Local = "127.0.0.1:111"

const (
	portHigh    = 1023 // what was registered from a port below 1024 cannot be removed from another
	portLow     = 665  // below are many ports that have a name
	mappingsMax = 10_000
)

// Register tells the rpcbind at address where programs are; it must be on this machine. What was registered for
// these versions of the programs before is replaced, whosever it was: a server that was killed leaves its
// mappings behind. The error is Denied when this process or rpcbind does not permit it, Unreachable when no
// rpcbind is there, and Busy when a mapping cannot be replaced. Then nothing stays registered.
func Register(ctx context.Context, address string, list []Mapping) error {
	c, err := connect(ctx, address)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.unset(ctx, list); err != nil {
		return err
	}
	for i, m := range list {
		if err := c.set(ctx, m); err != nil {
			return errors.Join(err, c.unset(ctx, list[:i]))
		}
	}
	return nil
}

// Unregister takes the mappings away, as far as they are still ours: a version of a program that another port
// was registered for stays. The errors are those of Register.
func Unregister(ctx context.Context, address string, list []Mapping) error {
	c, err := connect(ctx, address)
	if err != nil {
		return err
	}
	defer c.Close()
	there, err := c.dump(ctx)
	if err != nil {
		return err
	}
	ours := slices.DeleteFunc(slices.Clone(list), func(m Mapping) bool { return !slices.Contains(there, m) })
	if err := c.unset(ctx, ours); err != nil {
		return err
	}
	if there, err = c.dump(ctx); err != nil {
		return err
	}
	for _, m := range ours {
		if slices.Contains(there, m) {
			return denied(address, "UNSET", m)
		}
	}
	return nil
}

// List returns what is registered at a port mapper.
func List(ctx context.Context, address string) ([]Mapping, error) {
	rpc, err := oncrpc.Dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c := &client{rpc, address}
	defer c.Close()
	return c.dump(ctx)
}

type client struct {
	*oncrpc.Client
	address string
}

// connect takes the first privileged port that is free. Ports of connections that ended a short while ago
// are not.
func connect(ctx context.Context, address string) (*client, error) {
	for port := portHigh; port >= portLow; port-- {
		d := net.Dialer{LocalAddr: &net.TCPAddr{Port: port}}
		raw, err := d.DialContext(ctx, "tcp", address)
		switch {
		case err == nil:
			return &client{oncrpc.NewClient(raw), address}, nil
		case errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EADDRNOTAVAIL):
			continue
		case errors.Is(err, syscall.EACCES):
			return nil, errs.WithTry(errs.New(errs.Denied, "register at rpcbind %s from a port below 1024: %w", address, err),
				"run as root, or with the capability CAP_NET_BIND_SERVICE")
		default:
			return nil, errs.WithTry(errs.New(errs.Unreachable, "connect to rpcbind: %w", err), "systemctl start rpcbind")
		}
	}
	return nil, errs.New(errs.Busy, "register at rpcbind %s: no port from %d to %d is free", address, portLow, portHigh)
}

func (c *client) call(ctx context.Context, proc uint32, m Mapping) (bool, error) {
	var args xdr.Encoder
	encode(&args, m)
	results, err := c.Call(ctx, Number, Version, proc, oncrpc.Cred{}, args.B)
	if err != nil {
		return false, errs.New(errs.KindOf(err), "rpcbind %s: %w", c.address, err)
	}
	d := xdr.NewDecoder(results)
	done := d.Bool()
	return done, d.Err()
}

// unset removes all mappings of the versions of programs in list: the request has no place for a transport.
// That nothing was there is no error, and looks the same as that it was not permitted.
func (c *client) unset(ctx context.Context, list []Mapping) error {
	for i, m := range list {
		same := func(o Mapping) bool { return o.Prog == m.Prog && o.Vers == m.Vers }
		if slices.ContainsFunc(list[:i], same) {
			continue
		}
		if _, err := c.call(ctx, procUnset, Mapping{Prog: m.Prog, Vers: m.Vers}); err != nil {
			return err
		}
	}
	return nil
}

func (c *client) set(ctx context.Context, m Mapping) error {
	done, err := c.call(ctx, procSet, m)
	if err != nil || done {
		return err
	}
	there, err := c.dump(ctx)
	if err != nil {
		return err
	}
	for _, o := range there {
		if o.Prog == m.Prog && o.Vers == m.Vers && o.Proto == m.Proto {
			return errs.New(errs.Busy, "register program %d version %d at rpcbind %s: port %d is registered for it", m.Prog, m.Vers, c.address, o.Port)
		}
	}
	return denied(c.address, "SET", m)
}

func denied(address, what string, m Mapping) error {
	return errs.New(errs.Denied, "rpcbind %s: %s of program %d version %d was refused", address, what, m.Prog, m.Vers)
}

func (c *client) dump(ctx context.Context) ([]Mapping, error) {
	results, err := c.Call(ctx, Number, Version, procDump, oncrpc.Cred{}, nil)
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "rpcbind %s: %w", c.address, err)
	}
	return decodeList(results)
}

func decodeList(results []byte) ([]Mapping, error) {
	d := xdr.NewDecoder(results)
	var list []Mapping
	for d.Bool() && len(list) < mappingsMax {
		list = append(list, decode(&d))
	}
	return list, d.Err()
}
