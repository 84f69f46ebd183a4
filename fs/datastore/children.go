package datastore

import (
	"cmp"
	"slices"

	"livemount/fs"
)

// children are the entries of a folder, by name and in the order of their cookies. One that is removed keeps its place
// until there are many, so that removing costs the same in a large folder.
type children struct {
	byName map[string]*entry
	order  []*entry
	dead   int
}

func (c *children) len() int { return len(c.byName) }

// add adds an entry. Its cookie is mostly the highest.
func (c *children) add(e *entry) {
	c.byName[e.name] = e
	if n := len(c.order); n == 0 || c.order[n-1].cookie < e.cookie {
		c.order = append(c.order, e)
		return
	}
	at, _ := slices.BinarySearchFunc(c.order, e.cookie, byCookie)
	c.order = slices.Insert(c.order, at, e)
}

func byCookie(e *entry, c fs.Cookie) int { return cmp.Compare(e.cookie, c) }

// remove removes an entry that is there.
func (c *children) remove(e *entry) {
	delete(c.byName, e.name)
	e.gone = true
	c.dead++
	if c.dead > 16 && c.dead > len(c.order)/2 {
		c.order = slices.DeleteFunc(slices.Clone(c.order), func(e *entry) bool { return e.gone })
		c.dead = 0
	}
}

// behind returns the entries behind a cookie, also those that are gone.
func (c *children) behind(at fs.Cookie) []*entry {
	i, found := slices.BinarySearchFunc(c.order, at, byCookie)
	if found {
		i++
	}
	return c.order[i:]
}
