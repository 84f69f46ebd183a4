package oncrpc

import (
	"encoding/binary"
	"slices"

	"livemount/nfsd/xdr"
)

// The flavors of credentials that are taken, RFC 5531 section 8.2.
const (
	AuthNone uint32 = 0
	AuthSys  uint32 = 1
)

const (
	msgCall    = 0
	msgReply   = 1
	rpcVersion = 2

	msgAccepted = 0
	msgDenied   = 1

	rejectVersion = 0 // reject_stat RPC_MISMATCH
	rejectAuth    = 1 // reject_stat AUTH_ERROR

	authBytesMax    = 400 // body of opaque_auth
	machineBytesMax = 255
	groupsMax       = 16

	markBytes   = 4
	markLast    = 1 << 31
	headerBytes = markBytes + 24 // record mark and header of an accepted reply with an empty verifier
)

// Cred says who a caller claims to be. It holds no pointers but Machine, so that decoding makes no garbage.
type Cred struct {
	Flavor  uint32 // AuthNone or AuthSys; all else belongs to AuthSys
	Machine []byte // part of the call's message
	UID     uint32
	GID     uint32

	gids   [groupsMax]uint32
	groups int
}

// Sys makes credentials of flavor AUTH_SYS. Only 16 further groups fit.
func Sys(machine string, uid, gid uint32, groups ...uint32) Cred {
	c := Cred{Flavor: AuthSys, Machine: []byte(machine), UID: uid, GID: gid}
	c.groups = copy(c.gids[:], groups)
	return c
}

// Groups are the further groups of the caller, at most 16. The slice is part of c.
func (c *Cred) Groups() []uint32 { return c.gids[:c.groups] }

// decodeSys reads the body of AUTH_SYS, RFC 5531 appendix A. Bytes that follow are not looked at.
func (c *Cred) decodeSys(body []byte) bool {
	d := xdr.NewDecoder(body)
	d.Uint32() // an arbitrary stamp
	c.Machine = d.Opaque(machineBytesMax)
	c.UID, c.GID = d.Uint32(), d.Uint32()
	n := d.Uint32()
	if n > groupsMax {
		return false
	}
	for i := range n {
		c.gids[i] = d.Uint32()
	}
	c.groups = int(n)
	return d.OK()
}

func (c *Cred) encode(e *xdr.Encoder) {
	e.Uint32(c.Flavor)
	if c.Flavor != AuthSys {
		e.Uint32(0)
		return
	}
	words := 5 + c.groups
	e.Uint32(uint32(4*words + (len(c.Machine)+3)&^3))
	e.Uint32(0)
	e.Opaque(c.Machine)
	e.Uint32(c.UID)
	e.Uint32(c.GID)
	e.Uint32(uint32(c.groups))
	for _, g := range c.Groups() {
		e.Uint32(g)
	}
}

// decode reads the header of a call from message and leaves Args at its arguments. It is false when the
// message is no call at all, and so cannot be answered. Another status than Success is the answer.
func (c *Call) decode(message []byte) (Status, bool) {
	d := xdr.NewDecoder(message)
	var kind, version uint32
	c.XID, kind, version = d.Uint32(), d.Uint32(), d.Uint32()
	if !d.OK() || kind != msgCall {
		return 0, false
	}
	if version != rpcVersion {
		return rpcMismatch, true // what follows may look different in that version
	}
	c.Prog, c.Vers, c.Proc = d.Uint32(), d.Uint32(), d.Uint32()
	c.Cred.Flavor = d.Uint32()
	body := d.Opaque(authBytesMax)
	d.Uint32() // the verifier says nothing for the flavors that are taken
	d.Opaque(authBytesMax)
	if !d.OK() {
		return 0, false
	}
	c.Args = d
	return c.authenticate(body), true
}

func (c *Call) authenticate(body []byte) Status {
	c.Cred.Machine, c.Cred.UID, c.Cred.GID, c.Cred.groups = nil, 0, 0, 0
	switch c.Cred.Flavor {
	case AuthNone:
		return Success
	case AuthSys:
		if !c.Cred.decodeSys(body) {
			return Denied(AuthBadCred)
		}
		return Success
	default:
		return Denied(AuthRejectedCred)
	}
}

// seal completes the reply in Out: the header before the results, or all of it when there are none.
func (c *Call) seal(s Status) {
	if s >= rpcMismatch {
		c.sealDenied(s)
	} else {
		c.sealAccepted(s)
	}
	binary.BigEndian.PutUint32(c.Out.B, markLast|uint32(len(c.Out.B)-markBytes))
}

func (c *Call) sealAccepted(s Status) {
	if s != Success {
		c.Out.B = c.reply.b[:headerBytes]
	}
	header := c.Out.B[markBytes:headerBytes]
	for i, v := range [...]uint32{c.XID, msgReply, msgAccepted, AuthNone, 0, uint32(s)} {
		binary.BigEndian.PutUint32(header[4*i:], v)
	}
	if s == ProgMismatch {
		c.Out.Uint32(c.program.Low)
		c.Out.Uint32(c.program.High)
	}
}

func (c *Call) sealDenied(s Status) {
	c.Out.B = c.reply.b[:markBytes]
	c.Out.Uint32(c.XID)
	c.Out.Uint32(msgReply)
	c.Out.Uint32(msgDenied)
	if s == rpcMismatch {
		c.Out.Uint32(rejectVersion)
		c.Out.Uint32(rpcVersion)
		c.Out.Uint32(rpcVersion)
		return
	}
	c.Out.Uint32(rejectAuth)
	c.Out.Uint32(uint32(s.Auth()))
}

// appendCall appends a call with its arguments, without a record mark.
func appendCall(b []byte, xid, prog, vers, proc uint32, cred *Cred, args []byte) []byte {
	e := xdr.Encoder{B: slices.Grow(b, 64+len(cred.Machine)+4*groupsMax+len(args))}
	for _, v := range [...]uint32{xid, msgCall, rpcVersion, prog, vers, proc} {
		e.Uint32(v)
	}
	cred.encode(&e)
	e.Uint32(AuthNone)
	e.Uint32(0)
	e.B = append(e.B, args...)
	return e.B
}
