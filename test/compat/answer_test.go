package compat_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"livemount/nfsd/oncrpc"
	"livemount/nfsd/xdr"
	"livemount/test/nfsclient"
)

// answer is what there is to compare of an answer, by name. What begins with a question mark may be left out by a
// server; it is compared when both say it. Ids, times, handles and verifiers are not in it.
type answer map[string]string

// call calls a procedure of NFS and takes the answer apart to its last byte.
func (s *side) call(proc uint32, args func(*xdr.Encoder)) answer {
	a, _ := s.callFor(proc, args)
	return a
}

// callFor is call that returns the handle in the answer.
func (s *side) callFor(proc uint32, args func(*xdr.Encoder)) (answer, []byte) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	d, err := s.c.Do(ctx, proc, args)
	a := answer{"status": "OK"}
	var st nfsclient.Status
	var remote *oncrpc.ReplyError
	switch {
	case errors.As(err, &st):
		a["status"] = fmt.Sprint(uint32(st))
	case errors.As(err, &remote):
		a["status"] = remote.Error()
		return a, nil
	case err != nil: // it cannot be read as a reply, and the connection is over
		s.c = s.dial()
		return answer{"status": "broken"}, nil
	}
	var h []byte
	if err == nil {
		h = a.results(proc, &d)
	} else {
		a.refusal(proc, &d)
	}
	if err := d.Done(); err != nil {
		a["form"] = err.Error()
	}
	return a, h
}

// results decodes what follows an OK status.
func (a answer) results(proc uint32, d *xdr.Decoder) (handle []byte) {
	switch proc {
	case nfsclient.Getattr:
		a.attr("", d)
	case nfsclient.Lookup:
		handle = d.Opaque(64)
		a.post("?obj", d)
		a.post("?dir", d)
	case nfsclient.Access:
		a.post("?obj", d)
		a["access"] = fmt.Sprintf("%#x", d.Uint32())
	case nfsclient.Readlink:
		a.post("?obj", d)
		a["target"] = d.String(4096)
	case nfsclient.Read:
		a.post("?obj", d)
		a["count"] = fmt.Sprint(d.Uint32())
		a["eof"] = fmt.Sprint(d.Bool())
		a["data"] = fmt.Sprintf("%q", d.Opaque(1<<20))
	case nfsclient.Create, nfsclient.Mkdir, nfsclient.Symlink:
		if d.Bool() {
			handle = d.Opaque(64)
		}
		a.post("?obj", d)
		a.wcc("?dir", d)
	case nfsclient.Setattr, nfsclient.Remove, nfsclient.Rmdir:
		a.wcc("?obj", d)
	case nfsclient.Rename:
		a.wcc("?from", d)
		a.wcc("?to", d)
	case nfsclient.Link:
		a.post("?obj", d)
		a.wcc("?dir", d)
	default:
		a.moreResults(proc, d)
	}
	return handle
}

func (a answer) moreResults(proc uint32, d *xdr.Decoder) {
	switch proc {
	case nfsclient.Write:
		a.wcc("?obj", d)
		a["count"] = fmt.Sprint(d.Uint32())
		a["committed"] = fmt.Sprint(d.Uint32())
		d.Fixed(8)
	case nfsclient.Commit:
		a.wcc("?obj", d)
		d.Fixed(8)
	case nfsclient.Readdir, nfsclient.Readdirplus:
		a.listing(proc, d)
	case nfsclient.Fsstat:
		a.post("?obj", d)
		d.Fixed(6*8 + 4)
	case nfsclient.Fsinfo:
		a.post("?obj", d)
		d.Fixed(7*4 + 8 + 8)
		a["properties"] = fmt.Sprintf("%#x", d.Uint32())
	case nfsclient.Pathconf:
		a.post("?obj", d)
		for _, what := range []string{"links", "name bytes", "no trunc", "chown restricted", "case insensitive", "case preserving"} {
			a[what] = fmt.Sprint(d.Uint32())
		}
	}
}

// listing decodes entries. A server need not list "." and "..".
func (a answer) listing(proc uint32, d *xdr.Decoder) {
	a.post("?dir", d)
	d.Fixed(8)
	var names []string
	for d.Bool() {
		d.Uint64()
		name := d.String(1024)
		d.Uint64()
		if proc == nfsclient.Readdirplus {
			b := answer{}
			b.post("entry "+name, d)
			if name != "." && name != ".." {
				for k, v := range b {
					a["?"+k] = v
				}
			}
			if d.Bool() {
				d.Opaque(64)
			}
		}
		if name != "." && name != ".." {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	a["names"] = strings.Join(names, " ")
	a["eof"] = fmt.Sprint(d.Bool())
}

// refusal decodes what follows another status.
func (a answer) refusal(proc uint32, d *xdr.Decoder) {
	switch proc {
	case nfsclient.Getattr:
	case nfsclient.Rename:
		a.wcc("?from", d)
		a.wcc("?to", d)
	case nfsclient.Link:
		a.post("?obj", d)
		a.wcc("?dir", d)
	case nfsclient.Setattr, nfsclient.Write, nfsclient.Create, nfsclient.Mkdir, nfsclient.Symlink, nfsclient.Mknod,
		nfsclient.Remove, nfsclient.Rmdir, nfsclient.Commit:
		a.wcc("?obj", d)
	default:
		a.post("?obj", d)
	}
}

func (a answer) post(what string, d *xdr.Decoder) {
	if d.Bool() {
		a.attr(what, d)
	}
}

func (a answer) wcc(what string, d *xdr.Decoder) {
	if d.Bool() {
		d.Fixed(8 + 8 + 8)
	}
	a.post(what, d)
}

// attr decodes a fattr3. The size of a folder is the server's matter; a time is compared when a client has set it.
func (a answer) attr(what string, d *xdr.Decoder) {
	at := nfsclient.ReadAttr(d)
	kind := map[uint32]string{1: "file", 2: "folder", 5: "link"}[at.Type]
	a[what+" type"] = kind
	a[what+" mode of "+kind] = fmt.Sprintf("%#o", at.Mode)
	a[what+" links of "+kind] = fmt.Sprint(at.Links)
	a[what+" owner"] = fmt.Sprint(at.UID, at.GID)
	if kind != "folder" {
		a[what+" size"] = fmt.Sprint(at.Size)
	}
	if y := at.Mtime.Year(); 1970 < y && y < 2000 {
		a[what+" mtime"] = at.Mtime.UTC().Format(time.RFC3339Nano)
	}
}
