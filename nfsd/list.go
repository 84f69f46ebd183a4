package nfsd

import (
	"context"

	"livemount/fs"
	"livemount/nfsd/oncrpc"
)

// Cookies of a listing: 1 is behind ".", 2 behind "..", the folder's cookie plus 2 behind a node. They are made of what
// stands there, so they stay good whatever comes or goes, also over restarts; the cookie verifier is always zero.
const (
	behindDot    = 1
	behindDotDot = 2
)

// listing is READDIR or READDIRPLUS on its way.
type listing struct {
	r    *request
	ctx  context.Context
	dir  fs.Folder
	plus bool
	max  int // bytes of the whole answer
	room int // bytes of names and cookies, as dircount counts them
	any  bool
}

// readdir is procedure 16.
func (r *request) readdir(ctx context.Context) oncrpc.Status {
	dir, st := r.folder()
	cookie := r.Args.Uint64()
	r.Args.Fixed(8)
	count := r.Args.Uint32()
	l := listing{r: r, ctx: ctx, dir: dir, max: int(min(count, ioMax)), room: ioMax}
	return l.answer(st, cookie)
}

// readdirplus is procedure 17.
func (r *request) readdirplus(ctx context.Context) oncrpc.Status {
	dir, st := r.folder()
	cookie := r.Args.Uint64()
	r.Args.Fixed(8)
	dircount, maxcount := r.Args.Uint32(), r.Args.Uint32()
	l := listing{r: r, ctx: ctx, dir: dir, plus: true, max: int(min(maxcount, ioMax)), room: int(min(dircount, ioMax))}
	return l.answer(st, cookie)
}

// listMax bounds an answer, so that a listing needs no large buffer.
const listMax = 64 << 10

func (l *listing) answer(st status, cookie uint64) oncrpc.Status {
	r := l.r
	if st != statusOK {
		return r.fail(st, r.noAttr)
	}
	a := l.dir.Attr()
	if r.cred.rights(&a)&mayRead == 0 {
		return r.fail(statusAcces, func() { r.answer().post(&a) })
	}
	l.max = min(l.max, listMax)
	if err := r.Grow(l.ctx, l.max); err != nil {
		return r.fail(statusOf(err), func() { r.answer().post(&a) })
	}
	e, start := r.answer(), len(r.Out.B)
	l.max += start
	e.Uint32(uint32(statusOK))
	e.post(&a)
	e.Uint64(0) // cookie verifier
	done, err := l.entries(cookie)
	if err == nil && !done && !l.any {
		r.Out.B = r.Out.B[:start]
		return r.fail(statusTooSmall, func() { r.answer().post(&a) })
	}
	if err != nil {
		r.Out.B = r.Out.B[:start]
		return r.fail(statusOf(err), func() { r.answer().post(&a) })
	}
	e.Bool(false) // no more entries here
	e.Bool(done)
	return oncrpc.Success
}

// listBatch is how many names are asked for at a time.
const listBatch = 128

// entries appends as many as fit and says whether these were all.
func (l *listing) entries(cookie uint64) (done bool, err error) {
	if cookie < behindDot && !l.entry(".", l.dir.ID(), behindDot) {
		return false, nil
	}
	if cookie < behindDotDot && !l.entry("..", l.dir.Parent(), behindDotDot) {
		return false, nil
	}
	at := fs.Cookie(max(cookie, behindDotDot) - behindDotDot)
	for {
		list, err := l.dir.List(l.ctx, at, listBatch)
		if err != nil || len(list) == 0 {
			return err == nil, err
		}
		for _, e := range list {
			if !l.entry(e.Name, e.ID, uint64(e.Cookie)+behindDotDot) {
				return false, nil
			}
			at = e.Cookie
		}
	}
}

// entry appends one entry, if it fits with what ends the listing.
func (l *listing) entry(name string, id fs.NodeID, cookie uint64) bool {
	e, start := l.r.answer(), len(l.r.Out.B)
	e.Bool(true)
	e.Uint64(uint64(id))
	e.String(name)
	e.Uint64(cookie)
	l.room -= len(e.B) - start
	if l.plus {
		l.details(id)
	}
	const end = 8
	if len(e.B)+end > l.max || l.room < 0 && l.any {
		e.B = e.B[:start]
		return false
	}
	l.any = true
	return true
}

// details appends attributes and handle of a node; one that is gone by now has none.
func (l *listing) details(id fs.NodeID) {
	e := l.r.answer()
	n, err := l.r.ex.Tree.Node(id)
	if err != nil {
		e.Bool(false)
		e.Bool(false)
		return
	}
	a := n.Attr()
	e.post(&a)
	e.postHandle(l.r.handleOf(id))
}
