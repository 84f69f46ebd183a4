// Package nfsclient is a client of NFS version 3 for tests and benchmarks: it says exactly what it is told to, as often
// as it is told to, with many calls under way. It is written from RFC 1813 and shares nothing with the server but XDR and
// the RPC client.
package nfsclient

import (
	"context"
	"fmt"
	"time"

	"livemount/nfsd/oncrpc"
	"livemount/nfsd/xdr"
)

// Programs and their version.
const (
	NFS   = 100003
	Mount = 100005
	v3    = 3
)

// Procedures.
const (
	Null = iota
	Getattr
	Setattr
	Lookup
	Access
	Readlink
	Read
	Write
	Create
	Mkdir
	Symlink
	Mknod
	Remove
	Rmdir
	Rename
	Link
	Readdir
	Readdirplus
	Fsstat
	Fsinfo
	Pathconf
	Commit
)

// Status is an nfsstat3 that is not OK.
type Status uint32

func (s Status) Error() string { return fmt.Sprintf("nfsstat3 %d", uint32(s)) }

// Statuses that tests ask for.
const (
	NoEnt       Status = 2
	IO          Status = 5
	Acces       Status = 13
	Exist       Status = 17
	XDev        Status = 18
	NotDir      Status = 20
	IsDir       Status = 21
	Inval       Status = 22
	FBig        Status = 27
	NoSpc       Status = 28
	ROFS        Status = 30
	NameTooLong Status = 63
	NotEmpty    Status = 66
	Stale       Status = 70
	BadHandle   Status = 10001
	NotSync     Status = 10002
	NotSupp     Status = 10004
	TooSmall    Status = 10005
	Jukebox     Status = 10008
)

// Attr is a fattr3.
type Attr struct {
	Type, Mode, Links, UID, GID uint32
	Size, Used, FSID, ID        uint64
	Atime, Mtime, Ctime         time.Time
}

// Client is one connection.
type Client struct {
	*oncrpc.Client
	Cred oncrpc.Cred
}

// Dial connects.
func Dial(ctx context.Context, address string) (*Client, error) {
	c, err := oncrpc.Dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return &Client{Client: c, Cred: oncrpc.Sys("test", 0, 0)}, nil
}

// Do calls a procedure of NFS, with the arguments that args appends, and returns what follows an OK status.
func (c *Client) Do(ctx context.Context, proc uint32, args func(e *xdr.Encoder)) (xdr.Decoder, error) {
	b, err := c.Call(ctx, NFS, v3, proc, c.Cred, Encode(args))
	if err != nil {
		return xdr.Decoder{}, err
	}
	return Results(b)
}

// Encode returns what args appends.
func Encode(args func(e *xdr.Encoder)) []byte {
	var e xdr.Encoder
	args(&e)
	return e.B
}

// Results splits the status off an answer.
func Results(b []byte) (xdr.Decoder, error) {
	d := xdr.NewDecoder(b)
	st := d.Uint32()
	if err := d.Err(); err != nil {
		return d, err
	}
	if st != 0 {
		return d, Status(st)
	}
	return d, nil
}

// MountPath asks MOUNT for a handle.
func (c *Client) MountPath(ctx context.Context, path string) ([]byte, error) {
	b, err := c.Call(ctx, Mount, v3, 1, c.Cred, Encode(func(e *xdr.Encoder) { e.String(path) }))
	if err != nil {
		return nil, err
	}
	d, err := Results(b)
	if err != nil {
		return nil, err
	}
	h := d.Opaque(64)
	return h, d.Err()
}

// ReadAttr decodes a fattr3.
func ReadAttr(d *xdr.Decoder) (a Attr) {
	a.Type, a.Mode, a.Links, a.UID, a.GID = d.Uint32(), d.Uint32(), d.Uint32(), d.Uint32(), d.Uint32()
	a.Size, a.Used = d.Uint64(), d.Uint64()
	d.Uint64()
	a.FSID, a.ID = d.Uint64(), d.Uint64()
	for _, t := range []*time.Time{&a.Atime, &a.Mtime, &a.Ctime} {
		s := d.Uint32()
		*t = time.Unix(int64(s), int64(d.Uint32()))
	}
	return a
}

// ReadPost decodes a post_op_attr.
func ReadPost(d *xdr.Decoder) (a Attr) {
	if d.Bool() {
		a = ReadAttr(d)
	}
	return a
}

// Getattr asks for attributes.
func (c *Client) Getattr(ctx context.Context, h []byte) (Attr, error) {
	d, err := c.Do(ctx, Getattr, func(e *xdr.Encoder) { e.Opaque(h) })
	if err != nil {
		return Attr{}, err
	}
	a := ReadAttr(&d)
	return a, d.Done()
}

// Lookup finds a name.
func (c *Client) Lookup(ctx context.Context, dir []byte, name string) ([]byte, Attr, error) {
	d, err := c.Do(ctx, Lookup, Dirop(dir, name))
	if err != nil {
		return nil, Attr{}, err
	}
	h := d.Opaque(64)
	a := ReadPost(&d)
	ReadPost(&d)
	return h, a, d.Done()
}

// Dirop encodes a diropargs3.
func Dirop(dir []byte, name string) func(*xdr.Encoder) {
	return func(e *xdr.Encoder) {
		e.Opaque(dir)
		e.String(name)
	}
}

// Read reads, at most once.
func (c *Client) Read(ctx context.Context, h []byte, off uint64, n uint32) (data []byte, eof bool, err error) {
	d, err := c.Do(ctx, Read, func(e *xdr.Encoder) {
		e.Opaque(h)
		e.Uint64(off)
		e.Uint32(n)
	})
	if err != nil {
		return nil, false, err
	}
	ReadPost(&d)
	count := d.Uint32()
	eof = d.Bool()
	if data = d.Opaque(1 << 20); uint32(len(data)) != count {
		return nil, false, fmt.Errorf("READ says %d bytes and has %d", count, len(data))
	}
	return data, eof, d.Done()
}

// How a WRITE is made durable.
const (
	Unstable = 0
	DataSync = 1
	FileSync = 2
)

// Write writes, and returns how it is durable and the verifier.
func (c *Client) Write(ctx context.Context, h []byte, off uint64, data []byte, how uint32) (committed uint32, verf string, err error) {
	d, err := c.Do(ctx, Write, func(e *xdr.Encoder) {
		e.Opaque(h)
		e.Uint64(off)
		e.Uint32(uint32(len(data)))
		e.Uint32(how)
		e.Opaque(data)
	})
	if err != nil {
		return 0, "", err
	}
	ReadWcc(&d)
	if n := d.Uint32(); int(n) != len(data) {
		return 0, "", fmt.Errorf("WRITE took %d of %d bytes", n, len(data))
	}
	committed = d.Uint32()
	verf = string(d.Fixed(8))
	return committed, verf, d.Done()
}

// Commit commits all of a file.
func (c *Client) Commit(ctx context.Context, h []byte) (verf string, err error) {
	d, err := c.Do(ctx, Commit, func(e *xdr.Encoder) {
		e.Opaque(h)
		e.Uint64(0)
		e.Uint32(0)
	})
	if err != nil {
		return "", err
	}
	ReadWcc(&d)
	verf = string(d.Fixed(8))
	return verf, d.Done()
}

// Wcc is a wcc_data.
type Wcc struct {
	Known        bool
	Size         uint64
	Mtime, Ctime time.Time
	After        Attr
}

// ReadWcc decodes a wcc_data.
func ReadWcc(d *xdr.Decoder) (w Wcc) {
	if w.Known = d.Bool(); w.Known {
		w.Size = d.Uint64()
		for _, t := range []*time.Time{&w.Mtime, &w.Ctime} {
			s := d.Uint32()
			*t = time.Unix(int64(s), int64(d.Uint32()))
		}
	}
	w.After = ReadPost(d)
	return w
}

// Set is a sattr3; negative leaves as is.
type Set struct {
	Mode, UID, GID int64
	Size           int64
	Mtime          time.Time // zero leaves it, at the client's time
}

// Nothing sets nothing.
func Nothing() Set { return Set{Mode: -1, UID: -1, GID: -1, Size: -1} }

// Append encodes a sattr3.
func (s Set) Append(e *xdr.Encoder) {
	for _, v := range []int64{s.Mode, s.UID, s.GID} {
		e.Bool(v >= 0)
		if v >= 0 {
			e.Uint32(uint32(v))
		}
	}
	e.Bool(s.Size >= 0)
	if s.Size >= 0 {
		e.Uint64(uint64(s.Size))
	}
	e.Uint32(0)
	if s.Mtime.IsZero() {
		e.Uint32(0)
		return
	}
	e.Uint32(2)
	e.Uint32(uint32(s.Mtime.Unix()))
	e.Uint32(uint32(s.Mtime.Nanosecond()))
}

// Create makes a file: how is 0 unchecked, 1 guarded.
func (c *Client) Create(ctx context.Context, dir []byte, name string, how uint32, s Set) ([]byte, Attr, error) {
	d, err := c.Do(ctx, Create, func(e *xdr.Encoder) {
		Dirop(dir, name)(e)
		e.Uint32(how)
		s.Append(e)
	})
	return made(&d, err)
}

// CreateExclusive makes a file with a verifier.
func (c *Client) CreateExclusive(ctx context.Context, dir []byte, name string, verifier uint64) ([]byte, Attr, error) {
	d, err := c.Do(ctx, Create, func(e *xdr.Encoder) {
		Dirop(dir, name)(e)
		e.Uint32(2)
		e.Uint64(verifier)
	})
	return made(&d, err)
}

// Mkdir makes a folder.
func (c *Client) Mkdir(ctx context.Context, dir []byte, name string) ([]byte, Attr, error) {
	d, err := c.Do(ctx, Mkdir, func(e *xdr.Encoder) {
		Dirop(dir, name)(e)
		Nothing().Append(e)
	})
	return made(&d, err)
}

func made(d *xdr.Decoder, err error) ([]byte, Attr, error) {
	if err != nil {
		return nil, Attr{}, err
	}
	var h []byte
	if d.Bool() {
		h = d.Opaque(64)
	}
	a := ReadPost(d)
	ReadWcc(d)
	return h, a, d.Done()
}

// Setattr sets attributes.
func (c *Client) Setattr(ctx context.Context, h []byte, s Set) error {
	_, err := c.Do(ctx, Setattr, func(e *xdr.Encoder) {
		e.Opaque(h)
		s.Append(e)
		e.Bool(false)
	})
	return err
}

// Remove removes a name; folders with Rmdir.
func (c *Client) Remove(ctx context.Context, dir []byte, name string) error {
	_, err := c.Do(ctx, Remove, Dirop(dir, name))
	return err
}

// Rmdir removes a folder.
func (c *Client) Rmdir(ctx context.Context, dir []byte, name string) error {
	_, err := c.Do(ctx, Rmdir, Dirop(dir, name))
	return err
}

// Rename moves a name.
func (c *Client) Rename(ctx context.Context, from []byte, name string, to []byte, newName string) error {
	_, err := c.Do(ctx, Rename, func(e *xdr.Encoder) {
		Dirop(from, name)(e)
		Dirop(to, newName)(e)
	})
	return err
}

// Link makes another name.
func (c *Client) Link(ctx context.Context, h, dir []byte, name string) error {
	_, err := c.Do(ctx, Link, func(e *xdr.Encoder) {
		e.Opaque(h)
		Dirop(dir, name)(e)
	})
	return err
}

// Symlink makes a link.
func (c *Client) Symlink(ctx context.Context, dir []byte, name, to string) ([]byte, Attr, error) {
	d, err := c.Do(ctx, Symlink, func(e *xdr.Encoder) {
		Dirop(dir, name)(e)
		Nothing().Append(e)
		e.String(to)
	})
	return made(&d, err)
}

// Entry is a name in a listing.
type Entry struct {
	ID     uint64
	Name   string
	Cookie uint64
	Handle []byte // of READDIRPLUS
}

// List lists a folder with READDIRPLUS in answers of at most max bytes.
func (c *Client) List(ctx context.Context, dir []byte, max uint32) ([]Entry, error) {
	var all []Entry
	cookie, verf := uint64(0), make([]byte, 8)
	for {
		d, err := c.Do(ctx, Readdirplus, func(e *xdr.Encoder) {
			e.Opaque(dir)
			e.Uint64(cookie)
			e.Fixed(verf)
			e.Uint32(max)
			e.Uint32(max)
		})
		if err != nil {
			return all, err
		}
		ReadPost(&d)
		verf = d.Fixed(8)
		for d.Bool() {
			n := Entry{ID: d.Uint64(), Name: d.String(255), Cookie: d.Uint64()}
			ReadPost(&d)
			if d.Bool() {
				n.Handle = d.Opaque(64)
			}
			all, cookie = append(all, n), n.Cookie
		}
		eof := d.Bool()
		if err := d.Done(); err != nil || eof {
			return all, err
		}
	}
}
