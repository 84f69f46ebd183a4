// Package portmap is the port mapper, version 2 of program 100000 (RFC 1833 section 3): the server that tells
// clients on which ports programs are, and the client that tells a running rpcbind where ours are.
//
// The server answers from a list that never changes. It takes no registrations, and it calls no procedures
// for others (CALLIT): over UDP that would turn one forged datagram into traffic of any size. Versions 3 and 4
// are refused with PROG_MISMATCH, upon which clients ask again with version 2.
package portmap

import (
	"context"
	"slices"

	"livemount/nfsd/oncrpc"
	"livemount/nfsd/xdr"
)

// Number, Version and Port are where every client looks for a port mapper.
const (
	Number  = 100000
	Version = 2
	Port    = 111
)

// Proto is the number of a transport, as in an IP header.
type Proto uint32

// The transports that the port mapper knows.
const (
	TCP Proto = 6
	UDP Proto = 17
)

// Mapping says on which port a version of a program is.
type Mapping struct {
	Prog, Vers uint32
	Proto      Proto
	Port       uint16
}

// The procedures, RFC 1833 section 3.2.
const (
	procNull    = 0
	procSet     = 1
	procUnset   = 2
	procGetPort = 3
	procDump    = 4
	procCallIt  = 5
)

// Program serves a list. When the port mapper is not in the list, it is added where it has to be, because some
// clients ask it for itself first.
func Program(list []Mapping) oncrpc.Program {
	s := server(slices.Clone(list))
	if !slices.ContainsFunc(list, func(m Mapping) bool { return m.Prog == Number }) {
		s = append(s, Mapping{Number, Version, TCP, Port}, Mapping{Number, Version, UDP, Port})
	}
	return oncrpc.Program{
		Number: Number, Low: Version, High: Version, Serve: s.serve, Inline: func(uint32) bool { return true },
	}
}

type server []Mapping

func (s server) serve(_ context.Context, c *oncrpc.Call) oncrpc.Status {
	switch c.Proc {
	case procNull:
		return oncrpc.Success
	case procSet, procUnset:
		decode(&c.Args)
		c.Out.Bool(false)
	case procGetPort:
		c.Out.Uint32(uint32(s.find(decode(&c.Args))))
	case procDump:
		s.dump(&c.Out)
	case procCallIt:
		if c.UDP {
			return oncrpc.Drop
		}
		return oncrpc.ProcUnavail
	default:
		return oncrpc.ProcUnavail
	}
	if !c.Args.OK() {
		return oncrpc.GarbageArgs
	}
	return oncrpc.Success
}

// find returns the port of a program, or 0. When only other versions are there it is the port of one of them,
// as with rpcbind: the program itself then says which versions it has.
func (s server) find(want Mapping) uint16 {
	var other uint16
	for _, m := range s {
		if m.Prog != want.Prog || m.Proto != want.Proto {
			continue
		}
		if m.Vers == want.Vers {
			return m.Port
		}
		other = m.Port
	}
	return other
}

func (s server) dump(out *xdr.Encoder) {
	for _, m := range s {
		out.Bool(true)
		encode(out, m)
	}
	out.Bool(false)
}

func encode(e *xdr.Encoder, m Mapping) {
	e.Uint32(m.Prog)
	e.Uint32(m.Vers)
	e.Uint32(uint32(m.Proto))
	e.Uint32(uint32(m.Port))
}

// decode reads a mapping. A port that is none becomes 0.
func decode(d *xdr.Decoder) Mapping {
	m := Mapping{Prog: d.Uint32(), Vers: d.Uint32(), Proto: Proto(d.Uint32())}
	if port := d.Uint32(); port < 1<<16 {
		m.Port = uint16(port)
	}
	return m
}
