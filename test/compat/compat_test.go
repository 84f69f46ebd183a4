package compat_test

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"
)

// difference is something that go-nfs answers in another way. All but the last two are patterns of path.Match.
type difference struct {
	step, what   string
	nfsd, gonfs  string // the values
	rfc, because string // section of RFC 1813, and what it says or what go-nfs does
}

func (d *difference) matches(step, what, ours, theirs string) bool {
	fits := func(pattern, value string) bool {
		ok, err := path.Match(pattern, strings.ReplaceAll(value, "/", "|"))
		return ok && err == nil
	}
	return fits(d.step, step) && fits(d.what, what) && fits(d.nfsd, ours) && fits(d.gonfs, theirs)
}

func TestAnswersAreThePeers(t *testing.T) {
	a, b := ours(t, store(t, nil)), theirs(t, store(t, nil))
	list := known()
	used := make([]bool, len(list))
	for _, s := range steps() {
		x, y := s.do(a), s.do(b)
		if form := x["form"]; form != "" {
			t.Errorf("%s: the answer of nfsd: %s", s.name, form)
		}
		for _, what := range compared(x, y) {
			at := slices.IndexFunc(list, func(d difference) bool { return d.matches(s.name, what, x[what], y[what]) })
			if at < 0 {
				t.Errorf("%s: %s: nfsd %s, go-nfs %s", s.name, what, x[what], y[what])
				continue
			}
			used[at] = true
		}
	}
	for i, d := range list {
		if !used[i] {
			t.Errorf("no difference any more: %+v", d)
		}
	}
}

// compared returns the names of what differs.
func compared(a, b answer) []string {
	if a["status"] != b["status"] {
		return []string{"status"}
	}
	var list []string
	for what := range a {
		if theirs, said := b[what]; theirs != a[what] && (said || what[0] != '?') {
			list = append(list, what)
		}
	}
	for what := range b {
		if _, said := a[what]; !said && what[0] != '?' {
			list = append(list, what)
		}
	}
	slices.Sort(list)
	return list
}

// Example shows what is compared.
func Example() {
	x := answer{"status": "OK", "count": "5", "?obj size": "7"}
	fmt.Println(compared(x, answer{"status": "OK", "count": "6", "?obj size": "8"}))
	fmt.Println(compared(x, answer{"status": "OK", "count": "5", "eof": "true"}))
	fmt.Println(compared(x, answer{"status": "2"}))
	// Output:
	// [?obj size count]
	// [eof]
	// [status]
}
