package datastore

import (
	"bytes"
	"time"

	"livemount/fs"
)

// Answers are kept until as many newer ones are there, at most for a while: a client that lost its connection asks
// again at once, and one that started anew may come to use the same number for another call. The while begins when the
// daemon starts, because a client waits for it.
const (
	repliesMax = 16384 // as many as many connections may have under way
	refusalMax = 4096  // of calls that were refused; they push no others out
	repliesFor = 30 * time.Minute
)

type reply struct {
	key   fs.CallKey
	bytes []byte
	at    time.Time
}

func (r *replies) add(key fs.CallKey, b []byte, at time.Time) {
	if r.byKey == nil {
		r.byKey = map[fs.CallKey]*reply{}
	}
	n := &reply{key, bytes.Clone(b), at}
	if len(r.ring) < r.max {
		r.ring = append(r.ring, n)
	} else {
		old := r.ring[r.next]
		if r.byKey[old.key] == old {
			delete(r.byKey, old.key)
		}
		r.ring[r.next] = n
		r.next = (r.next + 1) % r.max
	}
	r.byKey[key] = n
}

func (r *replies) get(key fs.CallKey, now time.Time) ([]byte, bool) {
	n := r.byKey[key]
	if n == nil || now.Sub(n.at) > repliesFor {
		return nil, false
	}
	return n.bytes, true
}
